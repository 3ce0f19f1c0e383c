"""Readers, writers and the seeded case generator; all yield `Case`."""
