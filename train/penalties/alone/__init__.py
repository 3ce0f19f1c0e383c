"""Penalties that judge a completion by itself: its length, and the stated budget or a limit."""
