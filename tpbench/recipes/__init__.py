"""The packaged recipes, one function a file."""
