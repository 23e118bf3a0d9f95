"""ONNX -> better ONNX."""
