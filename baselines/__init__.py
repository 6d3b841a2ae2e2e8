"""Other methods of token reduction, one paper a file. A new file here is a new method."""
