"""From a fact to a served answer: checks, result cache, and how sure the verdict is."""
