"""Scenes with a text file for each pose, as Tanks and Temples is handed on: NSVF's (Liu et al. 2020) and NeRF++'s (Zhang et al. 2020)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.axes import convert_axes
from nerfit.cameras.poses import transform_poses
from nerfit.cameras.rotations import checked_rotations
from nerfit.errors import SceneError
from nerfit.files import read_text
from nerfit.scenes.images import image_size, shrunk
from nerfit.scenes.reading.intrinsics import cameras_of, read_intrinsics
from nerfit.scenes.reading.normalise import NormaliseConfig, normalise
from nerfit.scenes.reading.pinhole import files_of_views, read_numbers, read_pose
from nerfit.scenes.reading.pixel_cache import load_pixels
from nerfit.scenes.scene import Scene
from nerfit.scenes.splits import held_out, make_splits

_PREFIXES = {"train": "0_", "val": "1_", "test": "2_"}
_FOLDERS = {"train": "train", "val": "validation", "test": "test"}


@dataclass
class Config(NormaliseConfig):
    """How NSVF's and NeRF++'s scenes are read; within a bbox.txt, near and far are the depths of its corners unless given."""

    def unused(self) -> dict[str, str]:
        """Keys of captures of which points are known."""
        return {"ndc": "normalised device coordinates need points of the scene, which these files don't hold"}


def detect(source: str) -> bool:
    """A folder with intrinsics.txt, rgb and pose, or one whose train has rgb, pose and a folder intrinsics."""
    folder, train = Path(source), Path(source) / "train"
    return (folder / "intrinsics.txt").is_file() and _has(folder, "rgb", "pose") or _has(train, "rgb", "pose", "intrinsics")


def load(source: str, config: Config) -> Scene:
    """The views of all splits; of val and test one stands in for the other where it is missing.

    NSVF's pictures and poses lie in one folder, their names begin with 0_ (train), 1_ (val) and 2_ (test), and one intrinsics.txt is
    for all; where they do not begin so, every ``holdout``-th is for testing. NeRF++ has a folder for each split, and intrinsics
    for each picture. Poses are camera-to-world in OpenCV's axes, principal points count from the corner of the picture.
    Raises SceneError for files and ConfigError for settings without sense.
    """
    config.check()
    folder = Path(source)
    views, splits = _views(folder, config)
    paths = [files[0] for files in views]
    names = [path.relative_to(folder).as_posix() for path in paths]
    sizes = [image_size(path) for path in paths]
    if (folder / "intrinsics.txt").is_file():
        _check_alike(paths, sizes)
    small = [shrunk(size, config.factor) for size in sizes]
    matrices = {file: _intrinsics(file) for file in dict.fromkeys(files[2] for files in views)}
    lenses = []
    for (path, _, file), size, target in zip(views, sizes, small, strict=True):
        _check_centre(file, matrices[file], size)
        lenses.append(read_intrinsics(f"{file}, {path.name}", matrices[file], {}, size, target))
    poses = torch.from_numpy(np.stack([read_pose(files[1]) for files in views]))
    c2w = checked_rotations(convert_axes(poses, "opencv"), str(folder), names)
    cameras = cameras_of(c2w[:, :3], lenses, small, config.pixel_offset)
    pixels = load_pixels(paths, small)
    corners = _corners(folder / "bbox.txt") if (folder / "bbox.txt").is_file() else None
    known = "object" if corners is not None or pixels.shape[1] == 4 else None
    normalised = normalise(cameras, None, config.bounds or known, config.centre)
    cameras.c2w = transform_poses(c2w, normalised.transform).to(torch.float32)
    span = normalised.near, normalised.far
    if corners is not None and normalised.bounds == "object":
        span = _depths(folder, cameras, corners @ normalised.transform[:3, :3].T + normalised.transform[:3, 3])
    near, far = config.reach(*span)
    return Scene(
        name=folder.resolve().name,
        format="nsvf",
        cameras=cameras,
        near=near,
        far=far,
        splits=splits,
        pixels=pixels,
        bounds=normalised.bounds,
        background=config.background,
        default_path=normalised.default_path,
        view_names=names,
        to_original=torch.linalg.inv(normalised.transform),
        depth_range=normalised.depth_range,
    )


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_dir() for name in names)


def _views(folder: Path, config: Config) -> tuple[list[tuple[Path, ...]], dict[str, list[int]]]:
    """Picture, pose and intrinsics of every view, and the views of each split."""
    single = folder / "intrinsics.txt"
    splits: dict[str, list[int]] = {}
    views: list[tuple[Path, ...]] = []
    if single.is_file():
        views = [(*files, single) for files in files_of_views(folder, "pose")]
        splits = {split: [i for i, files in enumerate(views) if files[0].name.startswith(p)] for split, p in _PREFIXES.items()}
        if sum(map(len, splits.values())) < len(views):
            return views, make_splits(str(folder), len(views), held_out(len(views), config.holdout), config.train_views)
    else:
        for split, name in _FOLDERS.items():
            if split == "train" or (folder / name).is_dir():
                found = files_of_views(folder / name, "pose", "intrinsics")
                splits[split] = list(range(len(views), len(views) + len(found)))
                views += found
    if not splits["train"]:
        raise SceneError(
            f"{folder}: of {len(views)} pictures none is left to train on; their names should begin with {_PREFIXES['train']}."
        )
    val, test = splits.get("val", []), splits.get("test", [])
    return views, make_splits(str(folder), len(views), test or val, config.train_views, splits["train"], val or test)


def _check_alike(paths: list[Path], sizes: list[tuple[int, int]]) -> None:
    """Raise SceneError for pictures of several sizes, where one camera is for all."""
    for path, (width, height) in zip(paths, sizes, strict=True):
        if (width, height) != sizes[0]:
            raise SceneError(
                f"{path} is {width}x{height}, unlike the first picture, {sizes[0][0]}x{sizes[0][1]}, with the same intrinsics.txt."
            )


def _intrinsics(file: Path) -> dict[str, float]:
    """Focal lengths and principal point in pixels from a 3x3 or 4x4 matrix, or from the three numbers f cx cy in the first line."""
    numbers = read_numbers(file)
    if numbers.size in (9, 16):
        k = numbers.reshape(3, 3) if numbers.size == 9 else numbers.reshape(4, 4)[:3, :3]
        if np.abs(k[[0, 1, 2, 2], [1, 0, 0, 1]]).max() < 1e-3 * k[0, 0] and k[2, 2] == 1:
            return {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
    elif numbers.size > 9 and len(read_text(file).split("\n")[0].split()) in (3, 4):
        return {"fl_x": numbers[0], "fl_y": numbers[0], "cx": numbers[1], "cy": numbers[2]}
    raise SceneError(f"{file} must hold a 3x3 or 4x4 matrix of fx 0 cx 0 fy cy 0 0 1, or begin with the line f cx cy 0.")


def _check_centre(file: Path, lens: dict[str, float], size: tuple[int, int]) -> None:
    """Raise SceneError for a principal point outside the middle half of a picture."""
    if not all(0.25 < lens[key] / side < 0.75 for key, side in zip(("cx", "cy"), size, strict=True)):
        problem = f"the principal point {lens['cx']:g} {lens['cy']:g} is far from the middle of a picture of {size[0]}x{size[1]}"
        raise SceneError(f"{file}: {problem}; was that picture made smaller?")


def _corners(file: Path) -> Float[Tensor, "8 3"]:
    """The corners of a bbox.txt: the least and largest x y z, and usually the size of a voxel."""
    numbers = read_numbers(file)
    if numbers.size not in (6, 7) or (numbers[:3] >= numbers[3:6]).any():
        raise SceneError(f"{file} must hold the least x y z of the scene's box and then the largest.")
    return torch.cartesian_prod(*torch.from_numpy(numbers[:6].reshape(2, 3).T))


def _depths(folder: Path, cameras: Cameras, corners: Float[Tensor, "8 3"]) -> tuple[float, float]:
    """The least depth of a box's corners in any view, but at least a twentieth of the largest, and that; SceneError where none shows it."""
    pixels, before = cameras.project(torch.arange(len(cameras)), corners.mean(0).to(torch.float32).expand(len(cameras), 3))
    size = torch.stack([cameras.width, cameras.height], -1)
    if not (before & (pixels >= 0).all(-1) & (pixels <= size).all(-1)).any():
        raise SceneError(f"{folder / 'bbox.txt'}: no picture shows the middle of that box.")
    views = torch.arange(len(cameras)).repeat_interleave(len(corners))
    depths = cameras.depths(views, corners.to(torch.float32).repeat(len(cameras), 1))
    far = float(depths.max())
    return max(float(depths.min()), 0.05 * far), far
