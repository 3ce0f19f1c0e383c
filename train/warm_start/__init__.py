"""Supervised warm start: examples, loss, optimizer, a model from scratch."""
