"""Pixels to rays and back: cameras, lenses, poses, rotations, NDC and camera paths.

One convention throughout: ``c2w`` takes camera to world coordinates with OpenGL axes
(x right, y up, the camera looks along -z). Every other convention is converted on reading (`axes`).
"""

from nerfit.cameras.cameras import Cameras, Rays

__all__ = ["Cameras", "Rays"]
