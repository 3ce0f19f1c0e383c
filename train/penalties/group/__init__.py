"""Penalties that compare a completion with the others of its prompt's group."""
