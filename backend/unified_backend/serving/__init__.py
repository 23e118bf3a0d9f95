"""Triton glue: config completion, execution, tensors, metrics."""
