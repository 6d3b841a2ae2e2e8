"""The benchmark: its plan, its loop, its jobs and the folder that keeps what they find."""
