"""What stands around every request: keys, limits, headers, shedding, tracing."""
