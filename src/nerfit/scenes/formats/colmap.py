"""COLMAP scenes: a sparse model and the pictures that it was made from, as COLMAP, mip-NeRF 360 and 3DGS lay them out."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.errors import SceneError
from nerfit.scenes.images import image_size, orientation, shrunk
from nerfit.scenes.point_depths import PointDepths, point_depths
from nerfit.scenes.reading.colmap_model import (
    ModelCamera,
    ModelImage,
    ModelPoints,
    find_models,
    poses,
    read_cameras,
    read_images,
    read_points,
)
from nerfit.scenes.reading.intrinsics import Intrinsics, cameras_of, quarter_turn, resized
from nerfit.scenes.reading.masks import find_masks
from nerfit.scenes.reading.normalise import NormaliseConfig, normalised_scene
from nerfit.scenes.reading.picture_files import SceneFiles, few, picture_files
from nerfit.scenes.scene import Scene
from nerfit.scenes.splits import held_out, make_splits

_PICTURES = ("images", "image", "input", "rgb")
"""Folders of pictures in a scene's folder, likeliest first."""


@dataclass
class Config(NormaliseConfig):
    """How a COLMAP model is read; ``factor`` takes the pictures of images_<factor> where there are any."""

    depths: bool = False
    """Keep the depths of the model's points in the training pictures that see them."""


def detect(source: str) -> bool:
    """A folder with a model anywhere that `find_models` looks, or a model's own folder."""
    return bool(find_models(Path(source)))


def load(source: str, config: Config) -> Scene:
    """The registered pictures that are there, in order of their names, of the model that has the most of these.

    Pictures without a pose and poses without a picture are counted in a warning and left out. A picture that its EXIF tag turns, as
    COLMAP does not, takes its camera along; where it mirrors one there is no such camera, and that one is left out too. Raises
    SceneError for files and ConfigError for settings without sense.
    """
    config.check()
    root = Path(source)
    model, registered, base, folder, paths = _largest(root, config.factor)
    home = root if base.is_relative_to(root) else base
    cameras = read_cameras(model)
    _warn_left_out(model, folder, registered, paths)
    images = _unmirrored(model, [image for image in registered if image.name in paths], paths, cameras)
    splits = make_splits(str(model), len(images), held_out(len(images), config.holdout), config.train_views)

    files = [paths[image.name] for image in images]
    sizes = [image_size(path) for path in files]
    shrink = 1 if folder.name.endswith(f"_{config.factor}") else config.factor
    small = [shrunk(size, shrink) for size in sizes]
    lenses, c2w = [], poses(images)
    for i, (image, path) in enumerate(zip(images, files, strict=True)):
        lens, c2w[i] = _lens(f"{model}, {image.name}", cameras.get(image.camera), path, sizes[i], small[i], c2w[i])
        lenses.append(lens)
    views = cameras_of(c2w, lenses, small, config.pixel_offset)
    masks = find_masks(files)
    points = read_points(model)
    scene = normalised_scene(
        config,
        views,
        files,
        masks,
        None if points is None else points.xyz,
        name=home.resolve().name,
        format="colmap",
        splits=splits,
        view_names=[Path(os.path.relpath(path, home)).as_posix() for path in files],
    )
    scene.points = _visible_points(model, points, scene, images) if config.depths else None
    return scene


def _visible_points(model: Path, points: ModelPoints | None, scene: Scene, images: list[ModelImage]) -> PointDepths:
    """Depths of the model's points in those training pictures that see them, but for pixels that are hidden or cut out."""
    if points is None or not len(points.picture):
        raise SceneError(f"{model} has no points that pictures see, whose depths scene.depths asks for; leave it out.")
    train = scene.splits["train"]
    numbers, order = torch.tensor([images[i].number for i in train]).sort()
    index = torch.searchsorted(numbers, points.picture).clamp(max=len(numbers) - 1)
    own, here = numbers[index] == points.picture, torch.linalg.inv(scene.to_original)
    xyz = (points.xyz @ here[:3, :3].T + here[:3, 3]).float()
    found = point_depths(scene.cameras, xyz, points.error, torch.tensor(train)[order][index[own]], points.point[own])
    shown = (scene.colors(found.view, found.x, found.y)[:, 3:] > 0).all(-1)
    found = found[shown & (found.depth > 0)]
    if not len(found):
        raise SceneError(f"{model}: no training picture sees a point, whose depths scene.depths asks for; leave it out.")
    return found


class _Found(NamedTuple):
    """A model, its registered pictures, the folder of its scene, in it that of the pictures, and those that are there by name."""

    model: Path
    registered: list[ModelImage]
    base: Path
    folder: Path
    paths: dict[str, Path]


def _largest(root: Path, factor: int) -> _Found:
    """The model with the most pictures that are there; says which others there are."""
    models, problem = _models(root)
    if not models:
        raise problem or SceneError(f"{root} has no COLMAP model; it should lie in sparse/0.")
    found = [_Found(model, images, *_pictures(root, model, images, factor)) for model, images in models if images]
    if not found:
        raise SceneError(f"{models[0][0]} has no picture with a pose; estimate the poses again.")
    best = max(found, key=lambda one: (len(one.paths), len(one.registered) if not one.paths else 0))
    if not best.paths:
        smaller = sorted(folder.name for folder in root.glob("images_*") if folder.name[7:].isdecimal())
        hint = f"; there is {smaller[0]}: add --scene.factor {smaller[0][7:]}" if smaller else ""
        first = f"images/{best.registered[0].name}"
        raise SceneError(f"{root}: none of the {len(best.registered)} pictures of {best.model} is there, such as {first}{hint}.")
    if len(found) > 1:
        others = ", ".join(f"{os.path.relpath(o.model, root)} ({len(o.paths)} of {len(o.registered)})" for o in found if o is not best)
        warnings.warn(
            f"{root} has {len(found)} COLMAP models, of which that with the most pictures that are there is used, "
            f"{os.path.relpath(best.model, root)} ({len(best.paths)} of {len(best.registered)}); the others: {others}.",
            stacklevel=3,
        )
    return best


def _models(root: Path) -> tuple[list[tuple[Path, list[ModelImage]]], SceneError | None]:
    """The models of a scene's folder with their pictures, copies left out, and the reason why another can't be read."""
    models: list[tuple[Path, list[ModelImage]]] = []
    problem = None
    for model in find_models(root):
        try:
            images = read_images(model)
        except SceneError as error:
            problem = problem or error
            continue
        if not any(_same(images, others) for _, others in models):
            models.append((model, images))
    if models and problem:
        warnings.warn(f"{problem} Another model is used.", stacklevel=4)
    return models, problem


def _same(images: list[ModelImage], others: list[ModelImage]) -> bool:
    """Whether two models pose the same pictures in the same way, but for the rounding of a text file."""
    if [image.name for image in images] != [image.name for image in others]:
        return False
    return np.allclose([image.pose for image in images], [image.pose for image in others], rtol=1e-5, atol=1e-8)


def _pictures(root: Path, model: Path, images: list[ModelImage], factor: int) -> tuple[Path, Path, dict[str, Path]]:
    """The scene's folder, in it the one that has the most of the pictures (of that factor, if any), and their paths by name."""
    inner = [folder for folder in (model, *model.parents) if folder.is_relative_to(root) and folder != root][1:]
    outer = [p.parent for p in (model.absolute().parent, model.absolute()) if p.name == "sparse"]
    bases = dict.fromkeys([*inner, root, *outer])
    for ending in [f"_{factor}", ""] if factor > 1 else [""]:
        named = [(base, base / (name + ending)) for base in bases for name in _PICTURES]
        for folders in (named, [(base, base) for base in bases] if not ending else []):
            found = [(base, folder, _there(folder, images)) for base, folder in folders if folder.is_dir()]
            best = max(found, key=lambda entry: len(entry[2]), default=None)
            if best and best[2]:
                return best
    return root, root, {}


def _there(folder: Path, images: list[ModelImage]) -> dict[str, Path]:
    """The pictures of a folder by name, which `SceneFiles.find` finds. SceneError for names that lead out."""
    paths = SceneFiles(folder).find([image.name for image in images], "the picture")
    return {image.name: path for image, path in zip(images, paths, strict=True) if os.path.isfile(path)}


def _warn_left_out(model: Path, folder: Path, registered: list[ModelImage], used: dict[str, Path]) -> None:
    """Count poses without a picture, and pictures without a pose."""
    nested = {Path(image.name).parent for image in registered}
    lone = sorted({path for part in nested for path in picture_files(folder / part)} - set(used.values()))
    absent = [image.name for image in registered if image.name not in used]
    for names, all_, what in (
        (absent, len(registered), f"{model}: {{}} of {{}} pictures with a pose are not in {folder} and were left out"),
        ([p.name for p in lone], len(lone) + len(used), f"{folder}: {{}} of {{}} pictures have no pose in {model} and were left out"),
    ):
        if names:
            warnings.warn(f"{what.format(len(names), all_)}: {few(names)}", stacklevel=3)


def _unmirrored(model: Path, images: list[ModelImage], paths: dict[str, Path], cameras: dict[int, ModelCamera]) -> list[ModelImage]:
    """The pictures that are not stored mirrored, which COLMAP doesn't notice; says which are."""
    mirrored = [image.name for image in images if image.camera in cameras and _orientation(paths[image.name], cameras[image.camera])[1]]
    if mirrored:
        problem = (
            f"{model}: {len(mirrored)} of {len(images)} pictures are stored mirrored, as their EXIF tag says and COLMAP ignores, such as "
            f"{mirrored[0]}; save them upright and estimate the poses again"
        )
        if len(mirrored) == len(images):
            raise SceneError(f"{problem}.")
        warnings.warn(f"{problem}; they were left out.", stacklevel=3)
    return [image for image in images if image.name not in mirrored]


def _orientation(path: Path, camera: ModelCamera) -> tuple[int, bool]:
    """`orientation`, or nothing where the model was made of pictures that had been turned."""
    turns, mirrored = orientation(path)
    return (turns, mirrored) if turns % 2 == 0 or _alike(image_size(path), (camera.height, camera.width)) else (0, False)


def _lens(
    what: str, camera: ModelCamera | None, path: Path, size: tuple[int, int], small: tuple[int, int], c2w: Float[Tensor, "3 4"]
) -> tuple[Intrinsics, Float[Tensor, "3 4"]]:
    """Lens, in pixels of ``small``, and pose of a picture that is stored at ``size``, with whose EXIF tag the camera turns."""
    if camera is None:
        raise SceneError(f"{what}: the model lacks this picture's camera; export the model again.")
    width, height, lens = camera
    for _ in range(_orientation(path, camera)[0]):
        lens, c2w = quarter_turn(lens, height, c2w)
        width, height = height, width
    if not _alike(size, (width, height)):
        raise SceneError(f"{what} is {size[0]}x{size[1]} where its camera has {width}x{height}; it was turned or cropped.")
    return resized(lens, small[0] / width, small[1] / height), c2w


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have one shape, but for rounding."""
    return abs(size[1] - size[0] * other[1] / other[0]) <= 1 + 0.02 * size[1]
