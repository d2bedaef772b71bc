"""Pictures in a scene's folder: those that lie there, and the ones that names from other machines mean."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from nerfit.errors import SceneError
from nerfit.files import cache_folder
from nerfit.scenes.images import SUFFIXES

DYNAMIC = "dynamic_mask_"
"""Beginning of the names of instant-ngp's masks."""
ASIDE = re.compile(r"(images?_?)?masks?(_\w+)?|depths?(_\w+)?|normals?|semantics?|segmentations?", re.I)
"""Folders with pictures that are no photographs."""

PICTURE_FOLDERS = ("images", "image", "input", "rgb", "photos", "photo", "pictures", "frames")
"""Folders of a scene's photographs, in small letters."""
RAW = (".nef", ".cr2", ".cr3", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".nrw", ".raw", ".3fr", ".iiq", ".x3f")
"""Endings of the names of raw pictures, in small letters."""
CONVERT_RAW = "convert them first: darktable-cli FILE.nef FILE.jpg, or RawTherapee"

_SMALLER = re.compile(r"images_\d+")
"""Folders of smaller copies of the pictures, in small letters."""
_SCENE = (".json", ".npy", ".npz")
"""Endings of files that make a folder of pictures a scene of its own."""
_LEFT_OVERS = ("thumbs.db", "desktop.ini", "__macosx")
_TAIL, _MOST_FOLDERS, _MOST_FILES = 16, 10_000, 500_000
"""Most folders of a name that are compared, and most folders and files of a scene that are searched."""


def is_left_over(name: str) -> bool:
    """Whether a file or folder is hidden, or one that macOS and Windows leave behind."""
    return name.startswith(".") or name.lower() in _LEFT_OVERS


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files and folders that a pattern fits, by name, without left-overs; none without a folder."""
    return sorted(path for path in folder.glob(pattern) if not is_left_over(path.name)) if folder.is_dir() else []


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name with numbers in order of their values; no masks or hidden files; [] without a folder."""
    if not folder.is_dir():
        return []
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not is_left_over(p.name) and p.is_file()]
    stems = {stem_of(p.name) for p in files}
    files = [p for p in files if not (p.name.startswith(DYNAMIC) or (is_mask_name(p.name) and mask_stem(p.name) in stems))]
    return sorted(files, key=lambda p: natural_order(p.name))


def natural_order(name: str) -> tuple[list[tuple[str, int]], str]:
    """A key that sorts names with the numbers in them in order of their values."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name)], name


def photographs(folder: Path) -> list[Path]:
    """The photographs of a folder: its own pictures, else those of its folder ``images`` or ``input``, else of all its subfolders.

    Of pictures of one stem in a folder, such as IMG_1.heic beside IMG_1.jpg, the first of `SUFFIXES` is taken.
    """
    if own := one_per_stem(picture_files(folder)):
        return own
    below = {path.name.lower(): path for path in listed(folder, files=False) if not ASIDE.fullmatch(path.name)}
    for name in PICTURE_FOLDERS:
        if name in below and (found := photographs(below[name])):
            return found
    smaller = [name for name in below if _SMALLER.fullmatch(name)]
    for name in sorted(smaller, key=lambda name: int(name[7:][:9]))[1:]:
        del below[name]
    plain = [path for path in below.values() if not any(file.suffix.lower() in _SCENE for file in listed(path, files=True))]
    return [picture for path in plain for picture in one_per_stem(picture_files(path))]


def read_photographs(folder: Path) -> list[Path]:
    """`photographs`; says which pictures of the folder are passed over, and when they lie in several folders."""
    found = photographs(folder)
    used = list(dict.fromkeys(path.parent for path in found))
    if len(used) > 1:
        shown = few([path.name for path in used])
        warnings.warn(
            f"{folder}: the pictures of {len(used)} folders are one scene, those of each with lenses of their own: {shown}", stacklevel=3
        )
    twins = [path.name for parent in used for path in picture_files(parent) if path not in set(found)]
    if twins:
        warnings.warn(
            f"{folder}: {len(twins)} pictures have the names of others of another kind and are passed over: {few(twins)}", stacklevel=3
        )
    if raw := [path.name for parent in used for path in listed(parent, files=True) if path.suffix.lower() in RAW]:
        warnings.warn(f"{folder}: {len(raw)} raw files are passed over: {few(raw)}; {CONVERT_RAW}.", stacklevel=3)
    more = [path for parent in used for path in folders_below(parent, 2) if path not in used and not ASIDE.fullmatch(path.name)]
    for path in more:
        if count := len(picture_files(path)):
            warnings.warn(
                f"{path}: {count} pictures below {path.parent} are passed over; move them beside the others to use them.", stacklevel=3
            )
    return found


def one_per_stem(files: Sequence[Path]) -> list[Path]:
    """Of pictures of one folder and one stem the first of `SUFFIXES`."""
    best: dict[str, Path] = {}
    for path in sorted(files, key=_rank):
        best.setdefault(path.name.lower().removesuffix(path.suffix.lower()), path)
    kept = set(best.values())
    return [path for path in files if path in kept]


def relative_names(files: Sequence[Path]) -> list[str]:
    """The names of pictures below the folder that they share."""
    shared = os.path.commonpath([path.parent for path in files])
    return [path.relative_to(shared).as_posix() for path in files]


def few(names: Sequence[str], between: str = ", ", most: int = 3) -> str:
    """The first of many names."""
    return between.join([*names[:most], *(["..."] if len(names) > most else [])])


def stem_of(name: str) -> str:
    """A picture's name in small letters without its ending, or the two of ``0001.jpg.png``."""
    stem = name.lower()
    for _ in range(2):
        stem = next((stem.removesuffix(suffix) for suffix in SUFFIXES if stem.endswith(suffix) and stem != suffix), stem)
    return stem


def mask_stem(name: str) -> str:
    """`stem_of` the picture that a mask of that name belongs to: ``0001_mask.png`` to ``0001.jpg``."""
    return stem_of(_MASK_END.sub("", stem_of(name)))


def is_mask_name(name: str) -> bool:
    """Whether a name says that it is a mask's."""
    return _MASK_END.search(stem_of(name)) is not None


_MASK_END = re.compile(r"[-_. ]masks?$")


class SceneFiles:
    """The files of a scene's folder, among which `find` looks for names that may come from another machine."""

    def __init__(self, folder: Path, allow_outside: bool | None = None) -> None:
        """``allow_outside`` is None for formats without that option."""
        self.folder = folder
        self.allow_outside = allow_outside

    def find(self, names: Sequence[str], what: str = "the frame", aside: bool = False) -> list[Path]:
        """The files that names mean, which need not exist; a name without a suffix stands for the first kind of picture that is there.

        A name without a file at its path means the one of the same stem, in any case and of any kind: in the folder that it names,
        if other names are right about that; else in the folders of the scene that share most of the last ones of its path, but for
        those that other names mean. ``names`` should therefore be all those of a scene. With ``aside`` these may be folders of masks
        and depths. Raises SceneError for names that fit two files, for two names that fit one alone, and, unless that is allowed, as
        it is in nerfit's own cache, for files outside the folder, by a link too; ``what`` begins the sentence.
        """
        direct = {name: self._direct(name) for name in dict.fromkeys(names)}
        found = {name: path for name, path in direct.items() if path is not None and self._allowed(path)}
        if len(found) < len(direct):
            guessed: dict[Path, str] = {}
            for name, path in self._guesses([name for name in direct if name not in found], set(map(_folders, found)), what, aside).items():
                if (other := guessed.setdefault(path, name)) != name:
                    raise SceneError(f"{what}s '{other}' and '{name}' both fit {path} alone; give each its own picture.")
                found[name] = path
        for name, path in direct.items():
            if path is not None and name not in found:
                inside(self.folder, path, f"{what} '{name}'", self.allow_outside is not None)
        return [found[name] if name in found else self._due(name) for name in names]

    def _due(self, name: str) -> Path:
        """The path at which a name's file should be."""
        path = self.folder / name.replace("\\", "/")
        return path if path.suffix else Path(f"{path}{SUFFIXES[0]}")

    def _guesses(self, names: Sequence[str], right: set[tuple[str, ...]], what: str, aside: bool) -> dict[str, Path]:
        """Files of names that have none at their paths; ``right`` are the folders of those that have."""
        free = {own for files in self._by_stem.values() for own, _ in files} - right
        meant: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        for folders in dict.fromkeys(map(_folders, names)):
            shared = {own: _shared(own, folders) for own in free}
            most = max(shared.values(), default=0)
            if folders in right:
                meant[folders] = {folders}
            elif most:
                meant[folders] = {own for own in free if shared[own] == most}
        free -= {own for folders in meant.values() for own in folders}
        guesses = {name: self._guess(f"{what} '{name}'", name, meant.get(_folders(name), free), aside) for name in names}
        return {name: path for name, path in guesses.items() if path is not None}

    def _direct(self, name: str) -> Path | None:
        """The file at a name's path, with a picture's suffix where it has none."""
        for path in (self.folder / name, self.folder / name.replace("\\", "/")):
            endings = [""] if path.suffix.lower() in SUFFIXES else ["", *SUFFIXES]
            if there := next((p for p in (Path(f"{path}{ending}") for ending in endings) if os.path.isfile(p)), None):
                return there
        return None

    def _allowed(self, path: Path) -> bool:
        return bool(self.allow_outside) or is_inside(self.folder, path)

    def _guess(self, what: str, name: str, meant: set[tuple[str, ...]], aside: bool) -> Path | None:
        """The file of a name's stem in one of those folders."""
        *_, last = ["", *_parts(name)]
        folders, suffix = _folders(name), Path(last).suffix.lower()
        scored: list[tuple[tuple[int, ...], Path]] = []
        for own, path in self._by_stem.get(stem_of(last), []):
            unnamed = [part for part in own if part not in folders]
            if own not in meant or any(_SMALLER.fullmatch(part) or (not aside and ASIDE.fullmatch(part)) for part in unnamed):
                continue
            if path.suffix.lower() in (suffix, *SUFFIXES) and is_inside(self.folder, path):
                scored.append(((own == folders, own[-1:] == ("images",), -len(own)), path))
        if not scored:
            return None
        best = max(score for score, _ in scored)
        fits = sorted((path for score, path in scored if score == best), key=lambda p: (p.suffix.lower() != suffix, _rank(p), p.name))
        if other := next((path for path in fits if path.parent != fits[0].parent), None):
            raise SceneError(f"{what} may be {fits[0]} or {other}; remove the one that is not meant.")
        return fits[0]

    @cached_property
    def _by_stem(self) -> dict[str, list[tuple[tuple[str, ...], Path]]]:
        """All files by their stems, each with the names of its folders in small letters."""
        table: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
        count = 0
        for folder in folders_below(self.folder):
            own = tuple(part.lower() for part in folder.relative_to(self.folder).parts)
            for path in listed(folder, files=True):
                table.setdefault(stem_of(path.name), []).append((own, path))
                count += 1
            if count > _MOST_FILES:
                raise SceneError(f"{self.folder} holds more than {_MOST_FILES} files, too many to look for pictures; name the scene's own.")
        return table


def folders_below(root: Path, depth: int = 6) -> Iterator[Path]:
    """A folder and those in it, near ones first, at most ``depth`` deep, without hidden ones and links."""
    level = [root]
    left = _MOST_FOLDERS
    for _ in range(depth + 1):
        yield from level[:left]
        left -= len(level)
        if left <= 0:
            return
        level = [folder for parent in level for folder in listed(parent, files=False)]


def listed(folder: Path, files: bool) -> list[Path]:
    """The files or the folders in a folder, by name, without left-overs; none where it can't be read."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if (entry.is_file() if files else entry.is_dir(follow_symlinks=False))]
    except (OSError, ValueError):
        return []
    return [folder / name for name in sorted(found) if not is_left_over(name)]


def _parts(name: str) -> list[str]:
    """The parts of a path of any system."""
    return [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")]


def _folders(name: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in _parts(name)[-_TAIL - 1 : -1])


def _shared(own: tuple[str, ...], named: tuple[str, ...]) -> int:
    """Number of last parts that two paths share."""
    count = 0
    while count < min(len(own), len(named)) and own[-1 - count] == named[-1 - count]:
        count += 1
    return count


def _rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES)


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, links followed, lies in a folder, or the folder in nerfit's own cache, whose scenes may name any file."""
    real = os.path.realpath if os.path.isfile(path) else os.path.abspath
    here = Path(real(folder))
    return Path(real(path)).is_relative_to(here) or here.is_relative_to(real(cache_folder()))


def inside(folder: Path, path: Path, what: str, may_be_allowed: bool = False) -> Path:
    """A path that a scene's file names, which need not exist; SceneError for one out of its folder, unless that is in nerfit's cache.

    ``may_be_allowed`` says that the format has an option for it.
    """
    if not is_inside(folder, path):
        cure = "add --scene.allow-outside if that is meant" if may_be_allowed else "copy it there"
        raise SceneError(f"{what} points outside {folder}; {cure}.")
    return path
