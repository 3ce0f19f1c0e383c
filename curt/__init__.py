"""Curt: short legal reasoning that fits a deadline. The library every stage shares."""

__version__ = "0.1.0"
