"""Engines behind an OpenAI-compatible HTTP server: vLLM and TensorRT-LLM."""
