"""Training and evaluation: data, the DeepSpeed loop, checkpoints, and the ranks that train together."""
