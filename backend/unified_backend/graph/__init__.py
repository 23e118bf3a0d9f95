"""ONNX -> better ONNX: what does not depend on the engine, and what can be said of a graph."""
