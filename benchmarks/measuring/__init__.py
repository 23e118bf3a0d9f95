"""What the benchmark scripts share: models, repositories, measurements, tables."""
