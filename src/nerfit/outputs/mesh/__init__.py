"""Triangles and points of a field."""
