"""COLMAP scenes: a sparse model and the pictures that it was made from, as COLMAP, mip-NeRF 360 and 3DGS lay them out."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.errors import SceneError
from nerfit.scenes.images import SUFFIXES, image_size, orientation, shrunk
from nerfit.scenes.point_depths import PointDepths, point_depths
from nerfit.scenes.reading.colmap_model import ModelCamera, ModelImage, ModelPoints, is_model, poses, read_cameras, read_images, read_points
from nerfit.scenes.reading.frames import image_path
from nerfit.scenes.reading.intrinsics import Intrinsics, cameras_of, quarter_turn, resized
from nerfit.scenes.reading.normalise import NormaliseConfig, normalised_scene
from nerfit.scenes.reading.pixel_cache import find_masks, picture_files
from nerfit.scenes.scene import Scene
from nerfit.scenes.splits import held_out, make_splits

_MODELS = ("sparse", "colmap/sparse", "distorted/sparse", ".")
_PICTURES = ("images", "image", "input", "rgb", ".")
"""Folders of models and pictures in a scene's folder, likeliest first."""


@dataclass
class Config(NormaliseConfig):
    """How a COLMAP model is read; ``factor`` takes the pictures of images_<factor> where there are any."""

    depths: bool = False
    """Keep the depths of the model's points in the training pictures that see them."""


def detect(source: str) -> bool:
    """A folder with a model in sparse/0, sparse, colmap/sparse/0 or distorted/sparse/0, or a model's own folder."""
    return bool(_models(Path(source)))


def load(source: str, config: Config) -> Scene:
    """The registered pictures that are there, in order of their names, of the model with the most of them.

    Pictures without a pose and poses without a picture are counted in a warning and left out. A picture that its EXIF tag turns, as
    COLMAP does not, takes its camera along; where it mirrors one there is no such camera, and that one is left out too. Raises
    SceneError for files and ConfigError for settings without sense.
    """
    config.check()
    root = Path(source)
    model, registered = _largest(root)
    cameras = read_cameras(model)
    base, folder, paths = _pictures(root, model, registered, config.factor)
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
        name=base.resolve().name,
        format="colmap",
        splits=splits,
        view_names=[os.path.relpath(path, base) for path in files],
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


def _models(root: Path) -> list[Path]:
    """The models of a scene's folder, from the first folder that has any."""
    for folder in (root / name for name in _MODELS):
        if folder.is_dir():
            numbered = sorted((p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()), key=lambda p: int(p.name))
            if found := [p for p in (*numbered, folder) if is_model(p, whole=p == root)]:
                return found
    return []


def _largest(root: Path) -> tuple[Path, list[ModelImage]]:
    """The model with the most pictures, and these."""
    models = [(model, read_images(model)) for model in _models(root)]
    if not models:
        raise SceneError(f"{root} has no COLMAP model; it should lie in sparse/0.")
    model, images = max(models, key=lambda found: len(found[1]))
    if not images:
        raise SceneError(f"{model} has no picture with a pose; estimate the poses again.")
    if len(models) > 1:
        counts = ", ".join(f"{path.name} ({len(own)})" for path, own in models)
        warnings.warn(f"{root} has {len(models)} models that don't meet, the largest of which is used: {counts} pictures.", stacklevel=3)
    return model, images


def _pictures(root: Path, model: Path, images: list[ModelImage], factor: int) -> tuple[Path, Path, dict[str, Path]]:
    """The scene's folder, in it the one that has the most of the pictures (of that factor, if any), and their paths by name."""
    bases = [root, *(p.parent for p in (model.absolute().parent, model.absolute()) if p.name == "sparse")]
    for ending in [f"_{factor}", ""] if factor > 1 else [""]:
        folders = [(base, base / (name + ending)) for base in bases for name in _PICTURES if not ending or name != "."]
        found = [(base, folder, _there(folder, images, bool(ending))) for base, folder in folders if folder.is_dir()]
        best = max(found, key=lambda entry: len(entry[2]), default=None)
        if best and best[2]:
            return best
    smaller = sorted(folder.name for folder in root.glob("images_*") if folder.name[7:].isdecimal())
    hint = f"; there is {smaller[0]}: add --scene.factor {smaller[0][7:]}" if smaller else ""
    raise SceneError(f"{root}: none of the {len(images)} pictures of {model} is there, such as images/{images[0].name}{hint}.")


def _there(folder: Path, images: list[ModelImage], resaved: bool) -> dict[str, Path]:
    """The pictures of a folder by name; where they were ``resaved`` they may have another suffix. SceneError for names that lead out."""
    found = {}
    for image in images:
        path = image_path(folder, image.name)
        there = next(filter(os.path.isfile, (path, *map(path.with_suffix, SUFFIXES)) if resaved else (path,)), None)
        if there:
            found[image.name] = there
    return found


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
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            warnings.warn(f"{what.format(len(names), all_)}: {shown}", stacklevel=3)


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
