"""Metrics of a trained field on held-out views."""
