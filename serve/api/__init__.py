"""The HTTP routes: what a client sends and reads."""
