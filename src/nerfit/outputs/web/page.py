"""A baked field as one HTML file that any browser with WebGL 2 opens from disk."""

import base64
import json
import math
import zlib
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.poses import look_at, world_up
from nerfit.errors import ConfigError
from nerfit.outputs.web.bake import BLOCK, EARLY_STOP, STEP, Baked, in_world
from nerfit.scenes.images import replacing
from nerfit.scenes.scene import Scene


@dataclass
class Orbit:
    """The camera of the page: on a sphere around ``target``, ``up`` upwards, with a vertical field of view (radians)."""

    target: Float[Tensor, "3"]
    position: Float[Tensor, "3"]
    up: Float[Tensor, "3"]
    fov: float

    def camera(self, width: int, height: int) -> Cameras:
        """The camera of a picture of that size."""
        focal = 0.5 * height / math.tan(0.5 * self.fov)
        return Cameras.pinhole(look_at(self.position, self.target, self.up)[None], focal, width, height)


def first_orbit(scene: Scene, baked: Baked) -> Orbit:
    """The camera at the first test view (or the first training view), looking at the middle of the matter."""
    view = (scene.splits.get("test") or scene.splits["train"])[0]
    middle = (baked.blocks.double().mean(0) + 0.5) * BLOCK
    points = baked.grid.scene_points(middle[None])
    target = (points if baked.lens is None else in_world(points, baked.lens))[0].double()
    camera = scene.cameras[view]
    fov = 2 * math.atan(0.5 * float(camera.height[0]) / float(camera.fy[0]))
    if camera.lens is not None and int(camera.lens[0]) != 0:
        fov = math.radians(50)
    return Orbit(target, camera.c2w[0, :, 3].double(), world_up(scene.cameras.c2w), fov)


def check_web_name(path: Path) -> None:
    """Raise ConfigError for a name without .html."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"a web page is written as .html, not as '{path.name}'.")


def write_web(path: Path, scene: Scene, baked: Baked) -> Path:
    """Write the page; raises ConfigError for a name without .html and RunError when it can't be written."""
    check_web_name(path)
    orbit = first_orbit(scene, baked)
    meta = {
        "name": scene.name,
        "sides": baked.sides,
        "count": len(baked.blocks),
        "cells": [BLOCK * n - 1 for n in baked.sides],
        "low": baked.grid.positions(torch.zeros(1, 3))[0].tolist(),
        "spacing": baked.grid.spacing,
        "slope": baked.slope,
        "step": STEP,
        "leastLight": EARLY_STOP,
        "ndc": [0, 0] if baked.lens is None else [2 * float(baked.lens[i] / baked.lens[i + 2]) for i in (0, 1)],
        "background": scene.backdrop.tolist(),
        "target": orbit.target.tolist(),
        "position": orbit.position.tolist(),
        "up": orbit.up.tolist(),
        "fov": orbit.fov,
    }
    page = files("nerfit").joinpath("outputs", "web", "page.html").read_text(encoding="utf-8")
    data = base64.b64encode(packed(baked)).decode()
    page = page.replace("{{title}}", escape(scene.name)).replace("{{meta}}", json.dumps(meta).replace("<", "\\u003c"))
    with replacing(path) as temporary:
        temporary.write_text(page.replace("{{data}}", data), encoding="utf-8")
    return path


def packed(baked: Baked) -> bytes:
    """DEFLATE (RFC 1950) of: each block's distance to the nearest block with matter, then the nodes, one channel after another.

    Distances are the largest of those along the axes, in blocks, at most 255, in order of the flat index; 0 says that the
    block's nodes follow.
    """
    from scipy.ndimage import distance_transform_cdt

    empty = torch.ones(baked.sides, dtype=torch.uint8)
    empty[baked.blocks.unbind(-1)] = 0
    distance = np.asarray(distance_transform_cdt(empty.numpy(), "chessboard")).clip(max=255).astype("u1")
    return zlib.compress(distance.tobytes() + baked.nodes.movedim(-1, 0).contiguous().numpy().tobytes(), 9)
