"""What lies at a path that is no scene, in words, and the nearest thing that would be one."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from nerfit.scenes.images import SUFFIXES
from nerfit.scenes.reading.picture_files import CONVERT_RAW, RAW, listed

_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
_TRIED = 50
"""Most folders, and files that are no pictures, that are tried."""


def contents(source: str, detected: Callable[[str], str | None]) -> str:
    """What lies at ``source`` and how to get on, as the end of a sentence; ``detected`` names the format of a path, if any."""
    path = Path(source)
    if os.path.isfile(path):
        suffix = path.suffix.lower()
        if suffix in RAW:
            return f"it is a raw picture; {CONVERT_RAW}"
        return "it is a packed file; unpack it and name the folder" if suffix in _PACKED else f"it is a file of {path.stat().st_size} bytes"
    if not path.is_dir():
        return "there is nothing of that name"
    files, folders = listed(path, files=True), listed(path, files=False)
    kinds = Counter(file.suffix.lower() or file.name for file in files).most_common(4)
    parts = [f"{count} {kind}" for kind, count in kinds]
    parts += [f"the folder{'s' * (len(folders) > 1)} {', '.join(folder.name for folder in folders[:5])}"] if folders else []
    return f"it holds {' and '.join(parts) or 'nothing'}{_way_out(path, files, folders, detected)}"


def _way_out(path: Path, files: list[Path], folders: list[Path], detected: Callable[[str], str | None]) -> str:
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    others = [file for file in files if file.suffix.lower() not in (*SUFFIXES, *RAW, *_PACKED)]
    for inner in (*folders[:_TRIED], *others[:_TRIED]):
        if form := detected(str(inner)):
            return f"; {inner} is a scene ({form}): name that"
    if raw := [file.name for file in files if file.suffix.lower() in RAW]:
        return f"; {raw[0]} is a raw picture: {CONVERT_RAW}"
    if len(pictures) == 1:
        return f"; one picture is no scene: add more, or fit it alone with nerfit train image {pictures[0]}"
    if packed := [file.name for file in files if file.suffix.lower() in _PACKED]:
        return f"; unpack {packed[0]} first"
    return ""
