"""What a model costs: multiply-adds, seconds, bytes, traces."""
