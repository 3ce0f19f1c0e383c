"""OpenAI's protocol over the same answers: requests, replies and structured output."""
