"""Samples along rays to colour, depth and opacity; the losses on them."""
