"""The server under load: rates, deadlines, overload, survival, front, soak."""
