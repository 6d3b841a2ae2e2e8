"""The benchmark: its plan, its loop, its jobs and the folder that keeps their results."""
