"""Fused operations beside their plain PyTorch definitions."""
