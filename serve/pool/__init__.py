"""Workers and the deadline-ordered queue in front of them."""
