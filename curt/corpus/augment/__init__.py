"""More training cases from those that are there: distractors and other wordings."""
