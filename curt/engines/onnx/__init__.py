"""The engine on ONNX Runtime: what serves an exported folder."""
