"""Batches that are answered when nobody waits: kept in files, worked off, asked for over HTTP."""
