"""LLFF scenes: a folder of photographs and ``poses_bounds.npy`` (Mildenhall et al. 2019; the real scenes of NeRF)."""

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.axes import convert_axes
from nerfit.cameras.poses import average_pose, recentre, scale_of, spherify, transform_poses
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import ConfigError, SceneError, require_min
from nerfit.files import peek_text, read_npy
from nerfit.scenes.images import image_size, orientation
from nerfit.scenes.reading.masks import find_masks
from nerfit.scenes.reading.normalise import looks_one_way
from nerfit.scenes.reading.picture_files import few, one_per_stem, picture_files, stem_of
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Scene
from nerfit.scenes.splits import HoldoutConfig, held_out, make_splits


@dataclass
class Config(HoldoutConfig):
    """How an LLFF scene is read."""

    factor: int | None = None
    """Use pictures this many times smaller than the originals; none = 8, or what width and height say."""
    width: int | None = None
    """Use pictures of this width in place of a factor; the height follows unless it is given too."""
    height: int | None = None
    """Use pictures of this height in place of a factor; the width follows unless it is given too."""
    holdout: int = 8
    """Keep every Nth picture for testing, in the order of their names, from the first on; 0 = only the one nearest the average pose."""
    recentre: bool = True
    """Move the world's origin and axes to the average camera."""
    bd_factor: float | None = 0.75
    """Scale the world so that the nearest content lies at 1 / bd_factor; none = keep the file's scale."""
    spherify: bool = False
    """For photographs taken all around an object: put the cameras about the unit sphere."""
    ndc: bool | None = None
    """Normalised device coordinates, for views that all look the same way; none = where every pixel's ray allows them."""


def detect(source: str) -> bool:
    """Whether ``source`` is a folder in this format."""
    return (Path(source) / "poses_bounds.npy").is_file()


def load(source: str, config: Config) -> Scene:
    """The scene in folder ``source``.

    The file's world is scaled (bd_factor), recentred and spherified as the config says, in that order, as LLFF's own
    loader does; ``to_original`` undoes it all. The folder is never written to: pictures of a size that isn't there are
    made here and kept in a cache of our own (`load_pixels`). Raises SceneError for files and ConfigError for settings that
    don't make sense.
    """
    folder = Path(source)
    _check(config)
    poses = read_poses(folder / "poses_bounds.npy")
    files, (width, height) = _pictures(folder, poses, config)
    names = [file.name for file in files]
    c2w = _upright(files, checked_rotations(poses.c2w, str(folder / "poses_bounds.npy"), names))
    c2w, transform = normalise(c2w, float(poses.bounds.min()), config)
    low, high = (float(b) * scale_of(transform) for b in (poses.bounds.min(), poses.bounds.max()))

    cameras = Cameras.pinhole(c2w, 1.0, width, height, config.pixel_offset)
    cameras.fx, cameras.fy = ((poses.focal * k).to(torch.float32) for k in (width / poses.width, height / poses.height))
    forward = not config.spherify and looks_one_way(cameras)
    ndc = forward if config.ndc is None else config.ndc
    if not forward and not config.spherify and config.ndc is not False:
        what = "were turned off, as" if config.ndc is None else "are on, though"
        warnings.warn(f"{folder}: normalised device coordinates {what} the cameras do not all look one way (along -z).", stacklevel=2)
    near, far = config.reach(0.0, 1.0) if ndc else config.reach(0.9 * low, high)
    masks = find_masks(files)
    return Scene(
        name=folder.resolve().name,
        format="llff",
        cameras=cameras,
        near=near,
        far=far,
        splits=make_splits(str(folder), len(c2w), _test_views(c2w, config.holdout), config.train_views),
        pixels=load_pixels(files, [(width, height)] * len(files), masks),
        masked=any(masks),
        bounds="forward-facing" if ndc else "object" if config.spherify else "unbounded",
        background=config.background,
        ndc=ndc,
        default_path="sphere" if config.spherify else "spiral" if forward else "ellipse",
        view_names=names,
        to_original=torch.linalg.inv(transform),
        depth_range=(low, high),
    )


def _check(config: Config) -> None:
    for key in ("factor", "width", "height", "bd_factor"):
        value = getattr(config, key)
        if value is not None and not value > 0:
            raise ConfigError(f"{key} must be larger than 0, not {value}.")
    if config.factor is not None and (config.width is not None or config.height is not None):
        raise ConfigError("factor and width or height both say how large the pictures are; give one or the other.")
    require_min("scene.", config, holdout=0)
    if config.spherify and config.ndc:
        raise ConfigError("spherify is for cameras all around an object and ndc for cameras that look one way; turn one of them off.")


class Poses(NamedTuple):
    """The content of ``poses_bounds.npy``, in its own world and units: OpenGL poses, sizes and focal lengths of the full pictures."""

    c2w: Float[Tensor, "views 3 4"]
    height: float
    width: float
    focal: Float[Tensor, "views"]
    bounds: Float[Tensor, "views 2"]
    """Nearest and farthest depth that each view sees."""


def read_poses(path: Path) -> Poses:
    """Read ``poses_bounds.npy``: N×17 numbers, a row-major 3×5 matrix and two depths a view.

    The matrix holds the camera's axes down, right, backwards, its position, and (height, width, focal) in pixels.
    Raises SceneError for anything else.
    """
    table = read_npy(path)
    if table.dtype.kind not in "fiu" or table.ndim != 2 or table.shape[1] != 17 or not len(table):
        shape = f"{' x '.join(map(str, table.shape))} {table.dtype}"
        raise SceneError(f"{path} holds {shape}, not the N x 17 numbers (15 for the pose, 2 depth bounds) of an LLFF scene.")
    with np.errstate(invalid="ignore"):  # signalling NaN
        table = torch.from_numpy(table.astype(np.float64))
    for view in (~table.isfinite().all(1)).nonzero()[:1, 0].tolist():
        raise SceneError(f"{path}: row {view} holds numbers that are not finite; estimate the poses again or leave that view out.")
    matrix, bounds = table[:, :15].reshape(-1, 3, 5), table[:, 15:]
    height, width, focal = matrix[:, :, 4].T
    if not (matrix[:, :, 4] > 0).all():
        raise SceneError(f"{path}: image sizes and focal lengths must be larger than 0; they are the fifth column of each pose.")
    if (height != height[0]).any() or (width != width[0]).any():
        raise SceneError(f"{path}: the views differ in size, where an LLFF scene has pictures of one size.")
    for view in ((bounds[:, 0] <= 0) | (bounds[:, 1] < bounds[:, 0])).nonzero()[:1, 0].tolist():
        low, high = bounds[view].tolist()
        raise SceneError(f"{path}: row {view} has the depth bounds {low:g} and {high:g}, which must be 0 < near <= far.")
    return Poses(convert_axes(matrix[:, :, :4], "llff"), float(height[0]), float(width[0]), focal, bounds)


def _upright(files: list[Path], c2w: Float[Tensor, "views 3 4"]) -> Float[Tensor, "views 3 4"]:
    """Poses of pictures as `read_image` turns them, whose EXIF tags LLFF, as COLMAP, ignores; SceneError for one that is stored mirrored.

    A quarter turn exchanges width and height, which tells whether the poses are of the pictures as they are stored, and is refused.
    """
    c2w = c2w.clone()
    for view, file in enumerate(files):
        turns, mirrored = orientation(file)
        if mirrored:
            raise SceneError(
                f"{file} is stored mirrored, as its EXIF tag says and LLFF ignores; save it upright and estimate the poses again."
            )
        if turns == 2:
            c2w[view, :, :2] *= -1
    return c2w


def normalise(c2w: Float[Tensor, "views 3 4"], nearest: float, config: Config) -> tuple[Float[Tensor, "views 3 4"], Float[Tensor, "4 4"]]:
    """Poses scaled by 1/(bd_factor·``nearest`` depth), recentred, spherified; and the similarity that did it."""
    scale = 1.0 if config.bd_factor is None else 1 / (config.bd_factor * nearest)
    transform = torch.diag(torch.tensor([scale, scale, scale, 1.0], dtype=torch.float64))
    c2w = transform_poses(c2w, transform)
    for wanted, step in ((config.recentre, recentre), (config.spherify, spherify)):
        if wanted:
            c2w, moved = step(c2w)
            transform = moved @ transform
    return c2w, transform


def _test_views(c2w: Float[Tensor, "views 3 4"], holdout: int) -> list[int]:
    """The views that `held_out` keeps for testing; for 0 the one nearest the average position."""
    nearest = int((c2w[:, :, 3] - average_pose(c2w)[:, 3]).square().sum(-1).argmin())
    return held_out(len(c2w), holdout) or [nearest]


def _pictures(folder: Path, poses: Poses, config: Config) -> tuple[list[Path], tuple[int, int]]:
    """The files to read, and the width and height to shrink them to."""
    width, height, exact = _target_size(poses, config)
    files = _listed(folder, image_files(folder / exact), len(poses.c2w))
    whole = _listed(folder, image_files(folder / "images"), len(poses.c2w))
    if files and len(files) < len(poses.c2w) == len(whole):
        warnings.warn(f"{folder / exact} holds {len(files)} of {len(whole)} pictures; those of images are shrunk instead.", stacklevel=3)
        files = []
    if files:
        size = _common_size(folder, files, poses, check_shape=config.width is None and config.height is None)
        return files, size
    files = _source(folder, poses.width / width, len(poses.c2w))
    w, h = _common_size(folder, files, poses)
    if w < width - 1 or h < height - 1:
        raise SceneError(
            f"{files[0].parent} holds pictures of {w}x{h}, smaller than the {width}x{height} asked for; "
            f"use --factor {math.ceil(poses.width / w - 0.01)} or more."
        )
    return files, (min(w, width), min(h, height))


def _listed(folder: Path, files: list[Path], count: int) -> list[Path]:
    """Of more pictures than there are poses those that LLFF's view_imgs.txt lists, or that come first of each stem (IMG.png, IMG.JPG)."""
    if len(files) <= count:
        return files
    if len(single := one_per_stem(files)) == count:
        what = f"{len(files) - count} pictures have the names of others of another kind, and are not used"
        warnings.warn(f"{files[0].parent}: {what}.", stacklevel=4)
        return single
    names = peek_text(folder / "view_imgs.txt", 1 << 20).split("\n")
    stems = {stem_of(re.split(r"[\\/]", name.strip())[-1]) for name in names if name.strip()}
    chosen = [file for file in single if stem_of(file.name) in stems]
    if len(chosen) == count:
        warnings.warn(f"{files[0].parent}: {len(files) - count} pictures are not in view_imgs.txt, and have no pose.", stacklevel=4)
        return chosen
    return files


def _target_size(poses: Poses, config: Config) -> tuple[int, int, str]:
    """Width and height of the pictures to use, and the name of the folder that may have them."""
    if config.width is None and config.height is None:
        factor = config.factor or 8
        name = "images" if factor == 1 else f"images_{factor}"
        return max(1, round(poses.width / factor)), max(1, round(poses.height / factor)), name
    width = config.width or max(1, round(poses.width * (config.height or 0) / poses.height))
    height = config.height or max(1, round(poses.height * width / poses.width))
    return width, height, f"images_{width}x{height}"


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder in plain order of their names, which is the order of the poses; [] without a folder."""
    return sorted(picture_files(folder))


def _source(folder: Path, factor: float, count: int) -> list[Path]:
    """The pictures to shrink: those of ``images``, else of the ``images_<k>`` with the smallest k, at most ``factor``."""
    if files := image_files(folder / "images"):
        return _listed(folder, files, count)
    found = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r"images_(\d+)", p.name)) and image_files(p)}
    if not found:
        raise SceneError(f"{folder} has no pictures: an LLFF scene keeps them as png or jpg in its folder images or images_<factor>.")
    if min(found) > factor + 0.01:
        raise SceneError(f"{folder} has no pictures larger than those of images_{min(found)}; use --factor {min(found)} or more.")
    return _listed(folder, image_files(found[min(found)]), count)


def _common_size(folder: Path, files: list[Path], poses: Poses, check_shape: bool = True) -> tuple[int, int]:
    """The one size of all pictures, which must be as many as the poses and shaped as the poses say."""
    if len(files) != len(poses.c2w):
        others = {path.name: n for path in sorted(folder.glob("images*")) if (n := len(image_files(path))) and path != files[0].parent}
        fits = next((name for name, n in others.items() if n == len(poses.c2w)), None)
        way = "list those with a pose in view_imgs.txt, or remove the others, or estimate the poses again"
        if fits is not None:
            factor = fits.removeprefix("images").removeprefix("_") or "1"
            way = f"{fits} holds as many as there are poses: add --scene.factor {factor}" if factor.isdecimal() else way
        raise SceneError(
            f"{files[0].parent} holds {len(files)} pictures ({few([file.name for file in files])}) but poses_bounds.npy "
            f"{len(poses.c2w)} poses; {way}."
        )
    sizes = [image_size(f) for f in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            others = f"{files[0].name} is {sizes[0][0]}x{sizes[0][1]}"
            raise SceneError(f"{file} is {size[0]}x{size[1]} where {others}; an LLFF scene has pictures of one size.")
    w, h = sizes[0]
    if check_shape and abs(h - w * poses.height / poses.width) > 1 + 0.02 * h:
        raise SceneError(
            f"the pictures of {files[0].parent} are {w}x{h}, but {folder / 'poses_bounds.npy'} is for "
            f"{poses.width:g}x{poses.height:g}; they differ in shape (rotated or cropped?)."
        )
    return w, h
