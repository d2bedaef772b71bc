"""Coordinates to features: frequency encoding."""
