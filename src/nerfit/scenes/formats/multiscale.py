"""Blender scenes at several resolutions at once, as mip-NeRF uses them (Barron et al. 2021): metadata.json and pictures."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from nerfit.errors import ConfigError, SceneError, require_min
from nerfit.files import peek_json, read_json, write_json
from nerfit.scenes.formats import blender
from nerfit.scenes.images import image_size, resize_area, write_png
from nerfit.scenes.reading.picture_files import SceneFiles
from nerfit.scenes.reading.pinhole import View, pinhole_scene
from nerfit.scenes.scene import Scene, SceneConfig
from nerfit.scenes.splits import chosen_views

_KEYS = ("file_path", "cam2world", "width", "height", "pix2cam", "near", "far")


@dataclass
class Config(SceneConfig):
    """Options of multi-scale scenes; near and far are the files' least and largest unless given."""

    testskip: int = 1
    """Keep every Nth validation and test picture; with 4 scales a multiple of 4 keeps full size only."""


def detect(source: str) -> bool:
    """A folder whose metadata.json has a train split with pix2cam."""
    match peek_json(Path(source) / "metadata.json"):
        case {"train": {"pix2cam": _}}:
            return True
    return False


def load(source: str, config: Config) -> Scene:
    """Read the splits of metadata.json: each maps names of quantities to lists with an entry for every picture.

    ``lossmult``, the area of a pixel in pixels of full size, isn't read: pixels drawn from a view drawn uniformly, whatever
    its size, have that weight already. Raises SceneError for files and ConfigError for settings without sense.
    """
    require_min("scene.", config, testskip=0)
    folder = Path(source)
    file = folder / "metadata.json"
    meta = read_json(file)
    rows = {split: _rows(file, meta, split) for split in ("train", "val", "test") if split == "train" or split in meta}
    chosen, splits = chosen_views(rows, config.train_views, config.testskip)
    paths = SceneFiles(folder).find([row[0] for _, row in chosen])
    views, near, far = zip(*(_view(what, file, row) for (what, row), file in zip(chosen, paths, strict=True)), strict=True)
    return pinhole_scene(folder, views, min(near), max(far), config, format="multiscale", splits=splits)


def _rows(file: Path, meta: Any, split: str) -> list[tuple[str, tuple[Any, ...]]]:
    """The entries of a split, one for each picture, and the picture's name for errors."""
    table = meta.get(split) if isinstance(meta, dict) else None
    columns = {key: column for key in _KEYS if isinstance(table, dict) and isinstance(column := table.get(key), list)}
    if len(columns) < len(_KEYS) or len({*map(len, columns.values())}) > 1 or not columns["file_path"]:
        raise SceneError(f"{file}: {split} must have lists of one length named {', '.join(_KEYS)}.")
    if any(not isinstance(name, str) for name in columns["file_path"]):
        raise SceneError(f"{file}: each file_path of {split} must be a name.")
    rows = zip(*(columns[key] for key in _KEYS), strict=True)
    return [(f"{file}, picture {i} of {split}", row) for i, row in enumerate(rows)]


def _view(what: str, file: Path, row: tuple[Any, ...]) -> tuple[View, float, float]:
    """A picture's view, near and far; pix2cam takes (x, y, 1), in pixels from the corner, to a direction of depth -1."""
    _, *numbers = row
    try:
        c2w, width, height, pix2cam, near, far = (np.array(value, dtype=np.float64) for value in numbers)
    except (TypeError, ValueError, OverflowError):
        raise SceneError(f"{what}: all but file_path must be numbers.") from None
    shapes = [v.shape for v in (c2w, width, height, pix2cam, near, far)]
    if shapes != [(4, 4), (), (), (3, 3), (), ()] or not all(np.isfinite(v).all() for v in (c2w, pix2cam, near, far)):
        raise SceneError(f"{what}: cam2world must be 4x4, pix2cam 3x3 and the rest one number each, all finite.")
    if not (pix2cam[0, 0] > 0 > pix2cam[1, 1] and np.allclose(pix2cam, _pix2cam(*(lens := _lens(pix2cam))))):
        raise SceneError(f"{what}: pix2cam is not that of a pinhole camera.")
    if not os.path.isfile(file):
        raise SceneError(f"{what}: {file} is not there.")
    if (size := image_size(file)) != (width, height):
        raise SceneError(f"{what}: {file} is {size[0]}x{size[1]}, not {width:g}x{height:g}.")
    return View(file, size, c2w, lens), float(near), float(far)


def _lens(pix2cam: Float[np.ndarray, "3 3"]) -> tuple[float, float, float, float]:
    """fx fy cx cy of a pix2cam."""
    return 1 / pix2cam[0, 0], -1 / pix2cam[1, 1], -pix2cam[0, 2] / pix2cam[0, 0], -pix2cam[1, 2] / pix2cam[1, 1]


def _pix2cam(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[1 / fx, 0, -cx / fx], [0, -1 / fy, cy / fy], [0, 0, -1]])


def make_multiscale(source: str, out: Path, scales: int = 4, factor: int = 1) -> int:
    """Write a Blender scene, shrunk by ``factor``, at ``scales`` sizes, each half the one before; returns the number of pictures.

    Each pixel is the mean of the four below it, with colours premultiplied by alpha (mip-NeRF itself averages them straight).
    Raises ConfigError where a size doesn't come out whole, and for an ``out`` that has a metadata.json.
    """
    scene = blender.load(source, blender.Config(factor=factor))
    width, height = int(scene.cameras.width[0]), int(scene.cameras.height[0])
    step = 2 ** (scales - 1) if scales > 0 else 0
    if step == 0 or width % step or height % step:
        raise ConfigError(f"{source}: pictures of {width}x{height} can't be halved {scales - 1} times; choose another number of scales.")
    if (out / "metadata.json").exists():
        raise ConfigError(f"{out} has a metadata.json already; choose another folder.")
    meta: dict[str, dict[str, list[Any]]] = {}
    for split, views in scene.splits.items():
        table = meta.setdefault(split, {key: [] for key in (*_KEYS, "focal", "label", "lossmult")})
        for i, view in enumerate(views):
            image = (scene.image(view, None) * 255).round().byte().numpy()
            for label in range(scales):
                w, h, focal = width >> label, height >> label, float(scene.cameras.fx[view]) / 2**label
                name = f"images_{split}/{i:03d}_d{label}.png"
                write_png(out / name, resize_area(image, w, h))
                pose = [*scene.cameras.c2w[view].tolist(), [0.0, 0.0, 0.0, 1.0]]
                row = (name, pose, w, h, _pix2cam(focal, focal, w / 2, h / 2).tolist(), scene.near, scene.far, focal, label, 4.0**label)
                for column, value in zip(table.values(), row, strict=True):
                    column.append(value)
    write_json(out / "metadata.json", meta)
    return sum(len(table["file_path"]) for table in meta.values())
