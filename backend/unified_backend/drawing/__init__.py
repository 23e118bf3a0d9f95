"""Graphs as SVG pictures: boxes, arrows between them, and their places."""
