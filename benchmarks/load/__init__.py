"""The server under load: rates, deadlines, survival, front, soak."""
