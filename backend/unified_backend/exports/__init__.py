"""The canonical ONNX model in the format of another engine: see `export`."""
