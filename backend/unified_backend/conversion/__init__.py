"""Source -> canonical ONNX: the conversion, and what is mended afterwards."""
