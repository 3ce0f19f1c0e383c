"""Warm start, GRPO with a length penalty, and what surrounds them."""
