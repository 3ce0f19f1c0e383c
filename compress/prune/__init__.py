"""Heads, neurons and layers removed for good."""
