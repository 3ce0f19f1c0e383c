"""Export to TensorRT-LLM: the unified Hugging Face checkpoint and its checks."""
