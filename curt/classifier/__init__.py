"""The linear classifier that reads a fact first: charges, articles, term, and how sure it is."""
