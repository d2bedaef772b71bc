"""The pictures of a folder, and the cache for what is made of them."""

import os
import re
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""Endings of the names of pictures, in small letters."""


def cache_folder() -> Path:
    """Where things are kept that can be made again: $NERFIT_CACHE, else ~/.cache/nerfit."""
    return Path(os.environ.get("NERFIT_CACHE") or Path.home() / ".cache" / "nerfit")


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name with numbers in order of their values; no hidden files; [] without a folder."""
    if not folder.is_dir():
        return []
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    return sorted(files, key=lambda p: ([(int(n or -1), text) for n, text in re.findall(r"(\d*)(\D*)", p.name)], p.name))
