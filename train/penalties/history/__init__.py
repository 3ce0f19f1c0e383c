"""Penalties that change with what the run's earlier steps have shown."""
