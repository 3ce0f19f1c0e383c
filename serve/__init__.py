"""The HTTP server that answers within its deadline."""

import os

# ONNX Runtime reports home from Linux, too, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
