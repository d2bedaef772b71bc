"""RealityCapture and RealityScan: the registration as a CSV file of cameras, or an XMP file beside each picture."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from nerfit.errors import SceneError
from nerfit.files import peek_text, read_text, read_xml
from nerfit.scenes.images import image_size, orientation
from nerfit.scenes.reading.layouts import Layout, PosedConfig, Shot, check_skew, layout_scene, numbers, pose, refuse_lens
from nerfit.scenes.reading.picture_files import SceneFiles, matching
from nerfit.scenes.scene import Scene

_COLUMNS = ("name", "x", "y", "alt", "heading", "pitch", "roll", "f")
_XCR, _FILM = "{http://www.capturingreality.com/ns/xcr/1.1#}", 36.0
"""The namespace of the XMP files, and millimetres of film along a picture's larger side."""
_POLYNOMIAL = {"perspective": 0, "brown3": 3, "brown4": 4, "brown3t2": 6, "brown4t2": 6, "division": 0}
"""How many of the six distortion coefficients each model uses (of the division model, none)."""
_BROWN = "export it with a Brown distortion model (Alignment settings) or undistorted pictures"


@dataclass
class Config(PosedConfig):
    """How RealityCapture's exports are read."""


def detect(source: str) -> bool:
    """A folder with a .csv file of internal and external camera parameters, or such a file, or a folder with XMP files of its poses."""
    return _table(source) is not None or _sidecar(source) is not None


def load(source: str, config: Config) -> Scene:
    """The pictures with a pose.

    "RealityCapture XMP camera math": R (rows) and Position C take X to R·(X - C) with OpenCV's axes. Focal lengths are in millimetres of
    36 mm film along the larger side, principal points in that side, from the middle; radial terms are k1 to k4, and t1 and t2 are
    OpenCV's p2 and p1 (camorph; Epic's writeXmp). A CSV file's heading, pitch and roll, in degrees, make the OpenGL pose
    Rz(-heading)·Rx(pitch)·Ry(roll).
    """
    table, sidecar = _table(source), _sidecar(source)
    if table is not None:
        rows = _rows(table)
        pictures = SceneFiles(table.parent).find([row["name"] for row in rows], "the picture")
        shots = [_of_row(f"{table}, {row['name']}", row, picture) for row, picture in zip(rows, pictures, strict=True)]
        return layout_scene(Layout("realitycapture", table, table.parent, shots), config)
    if sidecar is None:
        raise SceneError(f"{source} has neither a .csv file of camera parameters nor XMP files of RealityCapture.")
    found = [_of_xmp(file, picture) for file, picture in _pairs(sidecar.parent)]
    return layout_scene(Layout("realitycapture", sidecar.parent, Path(source), [shot for shot in found if shot]), config)


def _table(source: str) -> Path | None:
    path = Path(source)
    files = [path] if os.path.isfile(path) else matching(path, "*.csv")
    return next((file for file in files if file.suffix.lower() == ".csv" and _has_columns(peek_text(file))), None)


def _has_columns(text: str) -> bool:
    """Whether one of the first lines names the columns; the number of cameras may come before."""
    return any(set(_COLUMNS) <= set(_names(line.split(","))) for line in text.lstrip("\ufeff").splitlines()[:3])


def _names(row: list[str]) -> list[str]:
    return [name.strip().lstrip("#").lower() for name in row]


def _rows(table: Path) -> list[dict[str, str]]:
    """The values of each picture by the names of their columns."""
    try:
        rows = list(csv.reader(read_text(table).splitlines()))
    except csv.Error as error:
        raise SceneError(f"{table} can't be read as a table: {error}.") from error
    head = next((i for i, row in enumerate(rows) if set(_COLUMNS) <= set(_names(row))), len(rows))
    entries = [dict(zip(_names(rows[head]), row, strict=False)) for row in rows[head + 1 :]]
    return [entry for entry in entries if entry.get("name")]


def _sidecar(source: str) -> Path | None:
    """The first XMP file with a pose in a folder or its folder images."""
    for folder in (Path(source), Path(source) / "images"):
        for file in matching(folder, "*.xmp")[:5]:
            text = peek_text(file, 1 << 16)
            if "capturingreality.com" in text and "Rotation" in text:
                return file
    return None


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The XMP files and the pictures of their names."""
    files = matching(folder, "*.xmp")
    found = zip(files, SceneFiles(folder).find([file.stem for file in files], "the picture"), strict=True)
    return [(file, picture) for file, picture in found if os.path.isfile(picture)]


def _of_row(what: str, entry: dict[str, str], picture: Path) -> Shot:
    keys = (*_COLUMNS[1:], "px", "py", "k1", "k2", "k3", "k4", "t1", "t2")
    values = numbers(what, [entry.get(key) or 0.0 for key in keys], len(keys)).tolist()
    x, y, z, heading, pitch, roll, f, px, py, *k = values
    h, p, r = np.radians([-heading, pitch, roll])
    about_z = [[np.cos(h), -np.sin(h), 0], [np.sin(h), np.cos(h), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]]
    about_y = [[np.cos(r), 0, np.sin(r)], [0, 1, 0], [-np.sin(r), 0, np.cos(r)]]
    turn = np.array(about_z) @ about_x @ about_y
    lens = _lens(picture, f, 1.0, (px, py), k) if os.path.isfile(picture) else {}
    return Shot(entry["name"], pose(what, turn.T, [x, y, z], "opengl"), lens, picture)


def _of_xmp(file: Path, picture: Path) -> Shot | None:
    """A picture's pose and lens; None where the file has no pose."""
    nodes = list(read_xml(file).iter())
    rotation, position = _words(nodes, "Rotation"), _words(nodes, "Position")
    if not rotation:
        return None
    model = (_words(nodes, "DistortionModel") or ["brown3"])[0].lower()
    k = numbers(f"{file}: DistortionCoeficients", (_words(nodes, "DistortionCoeficients") + ["0"] * 6)[:6], 6).tolist()
    if model not in _POLYNOMIAL or any(k[_POLYNOMIAL[model] :]):
        raise refuse_lens(str(file), model, _BROWN)
    keys = ("FocalLength35mm", "AspectRatio", "PrincipalPointU", "PrincipalPointV", "Skew")
    defaults = ("0", "1", "0", "0", "0")
    given = [(_words(nodes, key) or [default])[0] for key, default in zip(keys, defaults, strict=True)]
    f, aspect, u, v, skew = numbers(f"{file}: {', '.join(keys)}", given, 5).tolist()
    width, height = image_size(picture)
    check_skew(str(file), skew * max(width, height), f * aspect * max(width, height) / _FILM, height)
    turn = numbers(f"{file}: Rotation", rotation, 9).reshape(3, 3)
    return Shot(picture.name, pose(str(file), turn, position), _lens(picture, f, aspect, (u, v), k), picture)


def _words(nodes: list[Element], name: str) -> list[str]:
    """The value of a property, an element of that name or an attribute, as words; none without it."""
    for node in nodes:
        text = node.text if node.tag == _XCR + name else node.get(_XCR + name)
        if text:
            return text.split()
    return []


def _lens(picture: Path, f: float, aspect: float, middle: tuple[float, float], k: list[float]) -> dict[str, Any]:
    """Film's lengths in pixels of the picture as it is stored."""
    width, height = image_size(picture)
    if orientation(picture)[0] % 2:
        width, height = height, width
    size = max(width, height)
    lens = {"w": width, "h": height, "fl_x": f * size / _FILM, "fl_y": f * aspect * size / _FILM}
    lens |= {"cx": width / 2 + middle[0] * size, "cy": height / 2 + middle[1] * size}
    return lens | dict(zip(("k1", "k2", "k3", "k4", "p2", "p1"), k, strict=True))
