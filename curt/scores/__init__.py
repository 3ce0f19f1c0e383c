"""What a predicted verdict, its reasoning and a difference between two figures are worth."""
