"""The development engine on PyTorch and transformers."""
