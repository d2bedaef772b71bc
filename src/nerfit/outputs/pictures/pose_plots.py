"""Pictures of a search for camera poses: where cameras went, from above and from the front, and a film of the search."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nerfit.camera_search.history import PoseHistory
from nerfit.cameras import Cameras
from nerfit.cameras.poses import align, transform_poses
from nerfit.errors import SceneError
from nerfit.outputs.pictures.frusta import draw_search
from nerfit.outputs.pictures.video import write_video
from nerfit.scenes.images import colorize, write_png
from nerfit.training.trainer import Trainer

FPS, STILL = 20.0, 20
"""Frames per second of the film, and how many times its last one is shown."""


def draw_paths(paths: Float[Tensor, "records views 3"], given: Float[Tensor, "views 3"], size: int = 300) -> UInt8[np.ndarray, "h w 3"]:
    """Two panels, x and y, x and z: the ``given`` positions as grey rings, each camera's path in its colour, a dot where it is now."""
    paths, given = paths.cpu().double(), given.cpu().double()
    shown = torch.cat([paths[-1], given])
    middle, half = (shown.amax(0) + shown.amin(0)) / 2, 0.6 * float((shown.amax(0) - shown.amin(0)).max()) or 1.0
    tints = colorize(np.linspace(0, 0.9, len(given))[None], 0, 1)[0]
    panels = []
    for across, upwards in ((0, 1), (0, 2)):
        canvas = Image.new("RGB", (2 * size, 2 * size), "white")
        draw = ImageDraw.Draw(canvas)

        def to_pixels(x: Tensor, a: int = across, b: int = upwards) -> list[tuple[float, float]]:
            flat = (x - middle)[..., [a, b]] * torch.tensor([1.0, -1.0]) / half * size + size
            return [(float(u), float(v)) for u, v in flat.reshape(-1, 2)]

        for u, v in to_pixels(given):
            draw.ellipse((u - 8, v - 8, u + 8, v + 8), outline=(150, 150, 155), width=3)
        for view, tint in enumerate((tints * 255).astype(int).tolist()):
            points = to_pixels(paths[:, view])
            draw.line([*points, points[-1]], fill=tuple(tint), width=2)
            draw.ellipse((points[-1][0] - 5, points[-1][1] - 5, points[-1][0] + 5, points[-1][1] + 5), fill=tuple(tint))
        draw.text((12, 8), "xyz"[across] + "xyz"[upwards], fill="black", font=ImageFont.load_default(28))
        draw.rectangle((0, 0, 2 * size - 1, 2 * size - 1), outline=(210, 210, 215), width=2)
        panels.append(np.array(canvas.reduce(2)))
    return np.concatenate(panels, 1)


def aligned_records(history: PoseHistory, given: Cameras, records: Sequence[int]) -> list[Cameras]:
    """The cameras of some records of the search, all moved by the similarity that fits the newest positions best to the ``given`` ones."""
    try:
        moved = align(history.c2w[-1][:, :, 3], given.centers)
    except SceneError:
        moved = torch.eye(4, dtype=torch.float64)
    found = [history.cameras(record, given) for record in records]
    return [replace(cameras, c2w=transform_poses(cameras.c2w, moved).float()) for cameras in found]


def log_paths(trainer: Trainer) -> None:
    """The paths so far, for the log."""
    history = trainer.search.history
    if history is None or not history.steps or trainer.log is None:
        return
    found = aligned_records(history, given := _given(trainer), range(len(history.steps)))
    picture = draw_paths(torch.stack([c.centers for c in found]), given.centers)
    trainer.log.images(trainer.state.step, {"cameras/positions": torch.from_numpy(picture) / 255})


def draw_poses(trainer: Trainer, folder: Path) -> list[Path]:
    """The cameras that were found over the given ones (frusta.png), their paths (positions.png) and a film of the search (search.mp4)."""
    history = trainer.search.history
    if history is None or not history.steps:
        return []
    found = aligned_records(history, given := _given(trainer), range(len(history.steps)))
    write_png(folder / "positions.png", draw_paths(torch.stack([c.centers for c in found]), given.centers))
    frames = list(draw_search(found, given))
    write_png(folder / "frusta.png", frames[-1])
    film = write_video(folder / "search.mp4", [*frames, *[frames[-1]] * STILL], FPS)
    return [folder / "frusta.png", folder / "positions.png", film]


def _given(trainer: Trainer) -> Cameras:
    """The training views' cameras as the user gave them."""
    return trainer.scene.cameras[trainer.scene.splits["train"]].to("cpu")
