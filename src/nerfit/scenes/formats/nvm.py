"""VisualSFM's models (Wu 2011): ``.nvm`` files."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import comb
from typing import Any

import numpy as np
import torch

from nerfit.cameras.rotations import quaternion_to_matrix
from nerfit.errors import SceneError
from nerfit.files import peek_text, text_lines
from nerfit.scenes.reading.layouts import Layout, Shot, center_of, layout_scene, needed_file, numbers, pose, project_file
from nerfit.scenes.reading.normalise import NormaliseConfig
from nerfit.scenes.scene import Scene

_PLACES = ("*.nvm",)
_STRONGEST = 10.0
"""The largest radial distortion that is taken for one."""


@dataclass
class Config(NormaliseConfig):
    """How VisualSFM's models are read."""


def detect(source: str) -> bool:
    """A folder with an .nvm file, or such a file."""
    file = project_file(source, *_PLACES)
    return file is not None and peek_text(file, 64).startswith("NVM_V3")


def load(source: str, config: Config) -> Scene:
    """The first model's pictures and points.

    VisualSFM's documentation: a line has name, focal length, quaternion w x y z of the world-to-camera rotation, position, radial
    distortion and 0. Axes are OpenCV's and the principal point is the middle. A distortion k belongs to the measurement (PBA's
    "measurement distortion"): the picture's point m, over the focal length, lies at m(1 + k‖m‖²) without distortion; ours goes the
    other way (`inverse_of_radial`). The header NVM_V3_R9T stands for models with a rotation matrix and a translation.
    """
    file = needed_file(source, ".nvm file", *_PLACES)
    lines = text_lines(file)
    header = next(lines, [""])
    turns, shared = 9 if "R9T" in header[0] else 4, _shared_lens(str(file), header)
    count = int(numbers(f"{file}: its number of cameras", next(lines, []), 1)[0])
    rows = list(islice(lines, max(count, 0)))
    if len(rows) < count:
        raise SceneError(f"{file} ends within its {count} cameras; copy it again.")
    shots = [_shot(str(file), row, turns, shared) for row in rows]
    return layout_scene(Layout("nvm", file, file.parent, shots, np.array(list(_points(lines)))), config)


def _shared_lens(file: str, header: list[str]) -> tuple[float, dict[str, Any]]:
    """What "FixedK fx cx fy cy" in the first line says of all pictures: fy/fx, and the principal point."""
    if "FixedK" not in header:
        return 1.0, {}
    at = header.index("FixedK") + 1
    fx, cx, fy, cy = numbers(f"{file}: FixedK", header[at : at + 4], 4).tolist()
    return (fy / fx if fx else 1.0), {"cx": cx, "cy": cy}


def _shot(file: str, words: list[str], turns: int, shared: tuple[float, dict[str, Any]]) -> Shot:
    """A camera's line: the name, in which VisualSFM writes quotation marks for spaces, and its numbers."""
    size = turns + 6
    name = " ".join(words[:-size]).replace('"', " ")
    what = f"{file}, {name}"
    f, *turn, x, y, z, k, _ = numbers(what, words[-size:], size).tolist()
    if turns == 9:
        rotation, center = np.reshape(turn, (3, 3)), center_of(what, np.reshape(turn, (3, 3)), [x, y, z])
    else:
        rotation, center = quaternion_to_matrix(torch.tensor(turn, dtype=torch.float64)).numpy(), [x, y, z]
    if abs(k) > _STRONGEST:
        raise SceneError(f"{what} has a radial distortion of {k:g}, which is none; undistort the pictures.")
    return Shot(name, pose(what, rotation, center), {"fl_x": f, "fl_y": f * shared[0], **shared[1], **inverse_of_radial(k)})


def _points(lines: Iterator[list[str]]) -> Iterator[list[float]]:
    """The positions of points, in lines that begin with x y z; none where their number is none."""
    try:
        count = int(next(lines, ["0"])[0])
        for words in islice(lines, max(count, 0)):
            x, y, z = map(float, words[:3])
            yield [x, y, z]
    except ValueError:
        return


def inverse_of_radial(k: float) -> dict[str, Any]:
    """The lens of transforms.json that distorts what u = m(1 + k‖m‖²) undoes.

    m = u·Σ aₙ(k‖u‖²)ⁿ with aₙ = (-1)ⁿ·C(3n, n)/(2n + 1) (series reversion); the Padé approximant of order [3/3] of the sum is a
    FULL_OPENCV lens. Its error is below 1e-7 of ‖u‖ for |k|·‖u‖² up to 0.05.
    """
    if not k:
        return {}
    top = {key: p * k**n for n, (key, p) in enumerate(zip(("k1", "k2", "k3"), _PADE[0][1:], strict=True), 1)}
    below = {key: q * k**n for n, (key, q) in enumerate(zip(("k4", "k5", "k6"), _PADE[1][1:], strict=True), 1)}
    return {"camera_model": "FULL_OPENCV", **top, **below}


def _pade(order: int) -> tuple[list[float], list[float]]:
    """Numerator and denominator of the approximant, from 1 on."""
    a = [(-1) ** n * comb(3 * n, n) / (2 * n + 1) for n in range(2 * order + 1)]
    matrix = [[a[order + row - column] for column in range(order)] for row in range(order)]
    q = [1.0, *np.linalg.solve(matrix, [-a[order + 1 + row] for row in range(order)]).tolist()]
    return [sum(q[j] * a[i - j] for j in range(i + 1)) for i in range(order + 1)], q


_PADE = _pade(3)
