"""What a transforms file says and nerfit does not use."""

import warnings
from collections.abc import Set
from pathlib import Path
from typing import Any

from nerfit.scenes.reading.picture_files import few

_SILENT = {"rotation", "sharpness", "colmap_im_id", "scale", "offset", "from_na", "comment"}
"""Keys that say nothing about a still scene's pictures or cameras, or what follows from other keys."""


def warn_unused(file: Path, meta: dict[str, Any], keys: Set[str], frame_keys: Set[str]) -> None:
    """Warn of the keys of a transforms file and of its frames beside those that are used; empty values don't count.

    The ``time`` of a moving scene (D-NeRF) has a sentence of its own.
    """
    frames = meta["frames"]
    named = {key: None for key, value in meta.items() if value is not None and key not in keys | _SILENT}
    named |= {key: None for frame in frames for key, value in frame.items() if value is not None and key not in frame_keys | keys | _SILENT}
    moments = {str(frame.get("time")) for frame in frames if "time" in frame}
    if "time" in named:
        del named["time"]
        if len(moments) > 1:
            warnings.warn(
                f"{file}: its frames have a time, {len(moments)} different ones, which is not used: a single still scene is trained, and "
                "what moves is blurred.",
                stacklevel=3,
            )
    if named:
        warnings.warn(f"{file}: not used: {few(list(named), most=10)}.", stacklevel=3)
