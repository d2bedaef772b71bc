"""Shared by the scene formats: frames, intrinsics, depth maps, point files, pixels."""
