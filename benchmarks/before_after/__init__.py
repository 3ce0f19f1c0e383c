"""Long reasoning and penalised reasoning on one server."""
