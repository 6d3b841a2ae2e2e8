"""The speed of our own operations: benchmarks, targets and their report (`tox -e opbench`, `tox -e gpu`)."""
