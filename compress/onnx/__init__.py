"""Export to ONNX Runtime: graphs, recipes, parity with the parent."""
