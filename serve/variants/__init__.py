"""Several models behind one server: A/B, canary, shadow, load and unload while it runs."""
