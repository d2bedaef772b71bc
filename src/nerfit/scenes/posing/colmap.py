"""pycolmap, or one sentence where it has no wheels."""

from nerfit.errors import PoseError

__all__ = ["pycolmap"]

try:
    import pycolmap
except ImportError as missing:
    raise PoseError(
        f"poses of photographs and videos are estimated by pycolmap, which is not here ({missing}): pip install pycolmap has it for "
        "Linux x86-64, macOS ARM64 and Windows x64; elsewhere train posed scenes (transforms.json, COLMAP models), or learn the "
        "cameras with --scene.format unposed (recipe instant-unknown)."
    ) from missing
