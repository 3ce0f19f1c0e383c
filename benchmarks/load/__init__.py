"""The server under load: rates and deadlines, survival, a flood, a soak."""
