"""The native twins of operations on token sets for CPUs, compiled by numba: same names, signatures and answers.

Shapes: B sets, N tokens, K clusters, C width. Matrix products stay with PyTorch. Everything around them is compiled
loops over sets instead of dozens of small operators. They do the same arithmetic in the same order as the definitions:
from the same tokens, the results are equal to the last bit, for NaN and infinity too, as long as twice an inner product
does not overflow.

numba caches compiled code on disk. `twins.prepare` compiles or loads it: seconds the first time, a fraction of one
later. The first use in a process pays for that, so measurements warm up first. The cache of a file does not notice
changes in other files, so no compiled function calls one of another file; tests/test_native.py checks it.
"""
