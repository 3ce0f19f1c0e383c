"""From an admitted request to a reply: result cache, checks and confidence."""
