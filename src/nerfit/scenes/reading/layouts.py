"""What the layouts of other programs share: pictures with poses and lenses, as a program lists them, become a scene.

A format turns its files into `Shot`s, whose lenses have the words of transforms.json, and calls `layout_scene`.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from nerfit.cameras.axes import Axes, convert_axes
from nerfit.cameras.poses import scale_of
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError, one_line
from nerfit.scenes.images import image_size, orientation, shrunk
from nerfit.scenes.reading.depths import load_depths
from nerfit.scenes.reading.intrinsics import Intrinsics, cameras_of, number, quarter_turn, read_intrinsics
from nerfit.scenes.reading.masks import Mask, find_masks
from nerfit.scenes.reading.normalise import NormaliseConfig, normalised_scene
from nerfit.scenes.reading.picture_files import SceneFiles, few, inside, matching, picture_files
from nerfit.scenes.reading.pinhole import LARGEST
from nerfit.scenes.scene import Scene
from nerfit.scenes.splits import held_out, make_splits

PHOTOS = "add --scene.format photos to estimate poses from the pictures instead"
"""The way out of a layout that can't be read."""
_SKEW = 0.5
"""Pixels at a picture's edge by which axes that are not square may move what is seen; lenses have no skew."""


class Shot(NamedTuple):
    """A picture as a program lists it.

    ``name`` is the program's, ``c2w`` the pose in the file's world with OpenGL axes, ``lens`` has keys of transforms.json (see
    `read_intrinsics`; cx and cy count from the picture's corner). ``path`` is the picture where the layout fixes its place.
    """

    name: str
    c2w: Float[np.ndarray, "rows 4"]
    lens: dict[str, Any]
    path: Path | None = None
    mask: Path | None = None
    depth: Path | None = None


@dataclass
class PosedConfig(NormaliseConfig):
    """Options of layouts that hold poses and no points of the scene."""

    def unused(self) -> dict[str, str]:
        """Keys of captures of which points are known."""
        return {"ndc": "normalised device coordinates need points of the scene, which these files don't hold"}


class Layout(NamedTuple):
    """What a format has read: the file of the cameras (for messages), the scene's folder, its pictures, and points [n, 3] if known."""

    form: str
    file: Path
    folder: Path
    shots: Sequence[Shot]
    points: Any = None
    depth_unit: float | None = None


def layout_scene(layout: Layout, config: NormaliseConfig, depths: bool = False) -> Scene:
    """The scene of those pictures that are there, in order of their paths.

    Names are matched with the pictures by `SceneFiles.find`. A picture that its EXIF tag turns, as photogrammetry programs do not, takes
    its camera along (`quarter_turn`) where the sizes don't say otherwise. Raises SceneError for files and ConfigError for settings without
    sense.
    """
    config.check()
    file, folder = layout.file, layout.folder
    found = _present(layout)
    paths, shots = [path for path, _ in found], [shot for _, shot in found]
    names = [os.path.relpath(path, folder) for path in paths]
    splits = make_splits(str(file), len(paths), held_out(len(paths), config.holdout), config.train_views)
    sizes = [image_size(path) for path in paths]
    small = [shrunk(size, config.factor) for size in sizes]
    poses = torch.from_numpy(np.stack([np.asarray(shot.c2w, np.float64)[:3] for shot in shots]))
    c2w = checked_rotations(poses, str(file), names)
    if len(paths) > 1 and torch.equal(poses, poses[:1].expand_as(poses)):
        text = f"{file}: all {len(paths)} pictures have the same pose, as where nothing was tracked; {PHOTOS}."
        warnings.warn(one_line(text), stacklevel=3)
    lenses = []
    for i, (path, shot) in enumerate(found):
        lens, c2w[i] = _turned(f"{file}, {shot.name}", shot, path, sizes[i], small[i], c2w[i])
        lenses.append(lens)
    points = None if layout.points is None else torch.from_numpy(np.asarray(layout.points, np.float64).reshape(-1, 3))
    scene = normalised_scene(
        config,
        cameras_of(c2w, lenses, small, config.pixel_offset),
        paths,
        _masks(shots, paths),
        None if points is None else points[points.isfinite().all(-1)],
        name=folder.resolve().name,
        format=layout.form,
        splits=splits,
        view_names=names,
    )
    if depths and any(shot.depth for shot in shots):
        scene.depths = load_depths([shot.depth for shot in shots], small, layout.depth_unit) / scale_of(scene.to_original)
    return scene


def _present(layout: Layout) -> list[tuple[Path, Shot]]:
    """The pictures that are there and their shots, by path; says which are not, and which have no pose.

    SceneError where none is there, or one is listed twice.
    """
    if not layout.shots:
        raise SceneError(f"{layout.file} has no picture with a pose; {PHOTOS}.")
    named = iter(SceneFiles(layout.folder).find([shot.name for shot in layout.shots if shot.path is None], "the picture"))
    found, absent = {}, []
    for shot in layout.shots:
        path = next(named) if shot.path is None else shot.path
        if not os.path.isfile(path):
            absent.append(shot.name)
            continue
        inside(layout.folder, path, f"the picture '{shot.name}'")
        if path in found:
            raise SceneError(f"{layout.file} lists {path} twice, as {found[path].name} and as {shot.name}; leave one out.")
        found[path] = shot
    shown = few(absent)
    if not found:
        raise SceneError(f"{layout.file} has poses of {len(layout.shots)} pictures, such as {shown}, of which none is in {layout.folder}.")
    if absent:
        text = f"{layout.file}: {len(absent)} of {len(layout.shots)} pictures are not there and were left out: {shown}"
        warnings.warn(one_line(text), stacklevel=4)
    beside = {path for folder in {path.parent for path in found} for path in picture_files(folder) if not path.stem.endswith("_masked")}
    if lone := sorted(path.name for path in beside - found.keys()):
        text = f"{layout.folder}: {len(lone)} of {len(beside)} pictures have no pose in {layout.file} and were left out: {few(lone)}"
        warnings.warn(one_line(text), stacklevel=4)
    return sorted(found.items(), key=lambda item: str(item[0]))


def _masks(shots: Sequence[Shot], paths: Sequence[Path]) -> list[Mask | None]:
    """The masks that a layout names, whose black hides, else those beside the pictures."""
    masks = [shot.mask for shot in shots]
    if not any(masks):
        return find_masks(paths)
    count, first = sum(mask is not None for mask in masks), next(filter(None, masks))
    warnings.warn(f"what masks hide is left out, in {count} of {len(masks)} pictures, the first by {first}.", stacklevel=4)
    return [mask and Mask(mask) for mask in masks]


def _turned(
    what: str, shot: Shot, path: Path, size: tuple[int, int], small: tuple[int, int], c2w: Float[torch.Tensor, "3 4"]
) -> tuple[Intrinsics, Float[torch.Tensor, "3 4"]]:
    """Lens in pixels of ``small``, and pose, of a picture that is shown at ``size``, with whose EXIF tag the camera turns."""
    turns, mirrored = orientation(path)
    if mirrored:
        raise SceneError(
            f"{path} is stored mirrored, as its EXIF tag says and {what} ignores; save it upright and estimate its pose again."
        )
    w, h = (number(what, key, shot.lens) for key in ("w", "h"))
    if turns % 2 and w and h and (w > h) == (size[0] > size[1]):  # the file's pictures were turned already
        turns = 0
    if turns % 2:
        size, small = (size[1], size[0]), (small[1], small[0])
    lens = read_intrinsics(what, shot.lens, {}, size, small)
    for _ in range(turns):
        lens, c2w = quarter_turn(lens, small[1], c2w)
        small = small[1], small[0]
    return lens, c2w


def project_file(source: str, *places: str) -> Path | None:
    """The file that ``source`` is, if its name is that of one of ``places``, or the first of these that lies in the folder ``source``."""
    path = Path(source)
    if os.path.isfile(path):
        return path if any(path.match(Path(place).name) for place in places) else None
    if not path.is_dir():
        return None
    return next((file for place in places for file in matching(path, place) if os.path.isfile(file)), None)


def needed_file(source: str, name: str, *places: str) -> Path:
    """`project_file`; SceneError, with the ``name`` of what is missing, where there is none."""
    file = project_file(source, *places)
    if file is None:
        raise SceneError(f"{source} has no {name}.")
    return file


def numbers(what: str, value: Any, *shape: int) -> Float[np.ndarray, "..."]:
    """A nested list as an array of that shape, float64; SceneError, with ``what`` in front, for anything else or numbers beyond 1e9."""
    try:
        array = np.empty(0) if np.iscomplexobj(value) else np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        array = np.empty(0)
    if array.shape != shape or not (np.abs(array) < LARGEST).all():
        raise SceneError(f"{what} should be {'x'.join(map(str, shape))} finite numbers below 1e9.")
    return array


def pose(what: str, rotation: Any, center: Any, axes: Axes = "opencv") -> Float[np.ndarray, "3 4"]:
    """The OpenGL pose of a camera at ``center`` [3] whose ``rotation`` [3, 3] takes world to camera coordinates with those axes."""
    turn = numbers(f"{what}: its rotation", rotation, 3, 3).T
    c2w = np.concatenate([turn, numbers(f"{what}: its position", center, 3)[:, None]], 1)
    return convert_axes(torch.from_numpy(c2w), axes).numpy()


def center_of(what: str, rotation: Any, translation: Any) -> Float[np.ndarray, "3"]:
    """The position -RᵀT of a camera that takes a point X of the world to R·X + T."""
    return -numbers(f"{what}: its rotation", rotation, 3, 3).T @ numbers(f"{what}: its translation", translation, 3)


def check_skew(what: str, skew: float, fy: float, height: float) -> None:
    """Refuse axes that are not square where that moves a pixel of the upper or lower edge by half a pixel: x' = fx·x + ``skew``·y."""
    shift = abs(skew) * height / 2 / max(abs(fy), 1e-9)
    if not shift <= _SKEW:
        raise SceneError(f"{what} has pixels that are not square (skew {skew:g}, {shift:.1f} pixels at its edge); undistort the pictures.")


def sphere(what: str, width: float, height: float) -> dict[str, Any]:
    """The lens of a picture of all directions; SceneError unless it is twice as wide as high, for ours spans 180 degrees upwards."""
    if abs(width - 2 * height) > 1:
        raise SceneError(f"{what} is a spherical picture of {width:g}x{height:g}, which should be twice as wide as high.")
    return {"camera_model": "EQUIRECTANGULAR", "w": width, "h": height}


def refuse_lens(what: str, model: Any, way_out: str) -> SceneError:
    """The error of a lens that there is none for."""
    return SceneError(f"{what} has a lens of the kind {str(model)[:40]!r}, which is not supported; {way_out}.")
