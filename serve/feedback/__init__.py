"""What people say of an answer, kept for training."""
