"""Judging a trained field on held-out views."""
