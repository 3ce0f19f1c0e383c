"""A student taught by its teacher."""
