"""Pinned environments that hold one framework each, and the workers that run in them."""
