"""ONNX graphs into better ones: in a lower precision, quantised. Functions of a model, which know no settings."""
