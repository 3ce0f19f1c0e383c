"""The HTTP server that answers within its deadline."""
