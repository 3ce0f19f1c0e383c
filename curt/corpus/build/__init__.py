"""From many cases to a corpus: cleaned, deduplicated, split, counted, with a data card."""
