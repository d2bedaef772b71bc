"""Exports of a trained field: pictures, videos, meshes, points, web pages and drawings of its cameras."""
