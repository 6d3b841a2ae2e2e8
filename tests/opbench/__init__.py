"""The speed of our own operations: benchmarks, their targets and their report (`tox -e opbench`, `tox -e gpu`)."""
