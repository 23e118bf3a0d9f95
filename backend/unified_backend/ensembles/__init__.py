"""Pipelines of models and stages: defined in YAML, written as a Triton ensemble or as one fused model."""
