"""Kapture datasets (NAVER Labs Europe, format 1.1): text files of sensors, trajectories, records and points."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerfit.cameras.axes import convert_axes
from nerfit.cameras.poses import to_4x4
from nerfit.cameras.rotations import quaternion_to_matrix
from nerfit.errors import SceneError, one_line
from nerfit.files import peek_text, read_text
from nerfit.scenes.reading.colmap_model import LENS_MODELS
from nerfit.scenes.reading.layouts import PHOTOS, Layout, Shot, layout_scene, numbers, refuse_lens
from nerfit.scenes.reading.normalise import NormaliseConfig
from nerfit.scenes.scene import Scene

_KEYS = {"fx": "fl_x", "fy": "fl_y", "f": "fl_x", "d1": "k4", "d2": "k5", "d3": "k6", "s1": "sx1", "s3": "sy1"}
"""Our names of COLMAP's parameters, with those of transforms.json where they differ."""
_NESTED = 8
"""Most rigs that stand on rigs."""
_Poses = dict[tuple[str, ...], Any]


@dataclass
class Config(NormaliseConfig):
    """How Kapture datasets are read."""


def detect(source: str) -> bool:
    """A folder with sensors/sensors.txt and sensors/records_camera.txt."""
    sensors = Path(source) / "sensors"
    return (sensors / "records_camera.txt").is_file() and peek_text(sensors / "sensors.txt", 64).startswith("# kapture format")


def load(source: str, config: Config) -> Scene:
    """The pictures of records_camera.txt whose sensor, or its rig, has a pose at that time; and points3d.txt.

    kapture_format.adoc: lines of values with commas; poses (quaternion w x y z, translation) take world to device, and rig to sensor, as
    COLMAP's; camera models and their parameters are COLMAP's, pixels count from the picture's upper left corner.
    """
    folder = Path(source)
    place = folder / "sensors"
    lenses = {row[0]: _lens(place, row) for row in _rows(place / "sensors.txt", 1) if len(row) > 2 and row[2] == "camera"}
    poses = {tuple(row[:2]): _matrix(place / "trajectories.txt", row) for row in _rows(place / "trajectories.txt", 2)}
    rigs = {row[1]: (row[0], _matrix(place / "rigs.txt", row)) for row in _rows(place / "rigs.txt", 2)}
    shots, records = [], place / "records_camera.txt"
    for row in _rows(records, 3):
        if row[1] not in lenses:
            raise SceneError(f"{records}: the line of {row[-1]} names no camera of sensors.txt.")
        found = _pose(row[0], row[1], poses, rigs)
        if found is not None:
            c2w = convert_axes(torch.linalg.inv(found), "opencv")
            shots.append(Shot(row[2], c2w.numpy(), lenses[row[1]], place / "records_data" / row[2]))
    points = [row[:3] for row in _rows(folder / "reconstruction" / "points3d.txt", 3)]
    xyz = numbers(f"{folder}/reconstruction/points3d.txt", points, len(points), 3) if points else None
    return layout_scene(Layout("kapture", records, folder, shots, xyz), config)


def _rows(file: Path, least: int) -> Iterator[list[str]]:
    """The values of each line; nothing without the file. SceneError for a line of fewer than ``least``."""
    for line in read_text(file).splitlines() if file.is_file() else []:
        if line.strip() and not line.startswith("#"):
            values = [value.strip() for value in line.split(",")]
            if len(values) < least:
                raise SceneError(f"{file}: the line '{one_line(line)}' has too few values.")
            yield values


def _lens(place: Path, row: list[str]) -> dict[str, Any]:
    """A camera's line (identifier, name, kind, model, width, height, parameters) in the words of transforms.json."""
    what, model = f"{place / 'sensors.txt'}, camera {row[0]}", row[3] if len(row) > 3 else "none"
    if model not in LENS_MODELS:
        raise refuse_lens(what, model, PHOTOS)
    names = ("w", "h", *LENS_MODELS[model].parameters)
    values = numbers(what, row[4:], len(names)).tolist()
    return {"camera_model": model} | {_KEYS.get(name, name): value for name, value in zip(names, values, strict=True)}


def _matrix(file: Path, row: list[str]) -> torch.Tensor:
    """The 4x4 matrix of a line's quaternion and translation; of one without, which Kapture allows, NaN."""
    if not all(row[2:]):
        return torch.full((4, 4), torch.nan, dtype=torch.float64)
    values = numbers(f"{file}, the line of {', '.join(row[:2])}", row[2:], 7)
    rotation = quaternion_to_matrix(torch.from_numpy(values[:4]))
    return to_4x4(torch.cat([rotation, torch.from_numpy(values[4:, None])], 1))


def _pose(time: str, device: str, poses: _Poses, rigs: dict[str, tuple[str, Any]]) -> torch.Tensor | None:
    """The matrix that takes world to device: the device's own, or its rig's and from there on; None where nothing is known."""
    onwards = torch.eye(4, dtype=torch.float64)
    for _ in range(_NESTED):
        if (time, device) in poses:
            matrix = onwards @ poses[time, device]
            return matrix if matrix.isfinite().all() else None
        if device not in rigs:
            return None
        device, step = rigs[device]
        onwards = onwards @ step
    return None
