"""What a served model does under load: a server of its own, and Triton's perf_analyzer against it."""
