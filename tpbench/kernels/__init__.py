"""Fused operations and their definitions in plain PyTorch."""
