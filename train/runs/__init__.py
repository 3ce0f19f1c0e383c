"""A run as processes and files: checkpoints, weights, progress."""
