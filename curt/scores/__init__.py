"""Scores of verdicts and of reasoning, and the intervals of what was measured."""
