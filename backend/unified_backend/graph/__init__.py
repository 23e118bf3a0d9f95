"""ONNX graphs into better ones: simplified, in a lower precision, quantised; functions that know no settings."""
