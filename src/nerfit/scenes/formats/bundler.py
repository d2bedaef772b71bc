"""Bundler's output (Snavely et al. 2006): ``bundle.out`` and the list of its pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from nerfit.errors import SceneError
from nerfit.files import peek_text, text_lines
from nerfit.scenes.reading.layouts import Layout, Shot, center_of, layout_scene, needed_file, numbers, pose, project_file
from nerfit.scenes.reading.normalise import NormaliseConfig
from nerfit.scenes.scene import Scene

_PLACES = ("bundle.out", "bundle/bundle.out", "bundle.rd.out", "*.bundle.out", "bundle*.out", "bundle/bundle*.out")
_LISTS = ("{stem}.list.txt", "{name}.list.txt", "list.txt", "pictures.txt")


@dataclass
class Config(NormaliseConfig):
    """How Bundler's output is read."""


def detect(source: str) -> bool:
    """A folder with bundle.out (or bundle/bundle.out), or such a file, which begins with '# Bundle file'."""
    file = project_file(source, *_PLACES)
    return file is not None and peek_text(file, 64).startswith("# Bundle file")


def load(source: str, config: Config) -> Scene:
    """The pictures that have a focal length, and the points.

    Bundler's manual: P = R·X + t, p = -P/P.z, p' = f·r(p)·p with r(p) = 1 + k1‖p‖² + k2‖p‖⁴; x points right, y up, the camera looks
    along -z, and p' counts from the middle of the picture. So axes are OpenGL's, the principal point is the middle, and k1 and k2 are ours.
    """
    file = needed_file(source, "bundle.out", *_PLACES)
    lines = text_lines(file)
    counts = numbers(f"{file}: its number of cameras and points", [next(lines, []), next(lines, [])][1], 2)
    names = _names(file, int(counts[0]))
    shots = []
    for name in names:
        rows = list(islice(lines, 5))
        what = f"{file}, {name}"
        if len(rows) < 5:
            raise SceneError(f"{file} ends within its {len(names)} cameras; copy it again.")
        f, k1, k2 = numbers(f"{what}: its focal length, k1 and k2", rows[0], 3).tolist()
        if f != 0:
            c2w = pose(what, rows[1:4], center_of(what, rows[1:4], rows[4]), "opengl")
            shots.append(Shot(name, c2w, {"fl_x": f, "k1": k1, "k2": k2}))
    root = file.parent.parent if file.parent.name == "bundle" else file.parent
    return layout_scene(Layout("bundler", file, root, shots, np.array(list(_points(lines, int(counts[1]))))), config)


def _names(file: Path, count: int) -> list[str]:
    """The pictures' names, one for each camera: the first word of each line of the list."""
    folders = (file.parent, file.parent.parent) if file.parent.name == "bundle" else (file.parent,)
    stem = file.stem.removesuffix(".bundle")
    places = [folder / name.format(stem=stem, name=file.name) for folder in folders for name in _LISTS]
    listed = next((place for place in places if place.is_file()), None)
    if listed is None:
        raise SceneError(f"{file} needs the list of its pictures, list.txt, beside it.")
    names = [words[0] for words in text_lines(listed)]
    if len(names) != count:
        raise SceneError(f"{listed} lists {len(names)} pictures, but {file} has {count} cameras.")
    return names


def _points(lines: Iterator[list[str]], count: int) -> Iterator[list[float]]:
    """The positions of points, each followed by lines of its colour and of the pictures that show it; up to the first that is none."""
    for _ in range(count):
        try:
            x, y, z = map(float, next(lines, []))
        except ValueError:
            return
        yield [x, y, z]
        list(islice(lines, 2))
