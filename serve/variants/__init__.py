"""Several models behind one server: A/B, canary, shadow, hot load."""
