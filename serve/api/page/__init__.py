"""The page at `/`: markup, style and script, and what puts them together."""
