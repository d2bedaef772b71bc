"""Scenes of IDR (Yariv et al. 2020) and NeuS (Wang et al. 2021), such as DTU: ``image``, ``mask`` and one .npz file of cameras."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from nerfit.errors import SceneError
from nerfit.files import npz_names, read_npz
from nerfit.scenes.reading.layouts import Layout, PosedConfig, Shot, check_skew, layout_scene, numbers, pose
from nerfit.scenes.reading.picture_files import picture_files
from nerfit.scenes.scene import Scene

_CAMERAS = ("cameras_sphere.npz", "cameras_large.npz", "cameras.npz", "cameras_linear_init.npz")
_PICTURES, _MASKS = ("image", "images", "rgb"), ("mask", "masks")


@dataclass
class Config(PosedConfig):
    """How scenes of IDR and NeuS are read."""


def detect(source: str) -> bool:
    """A folder with cameras_sphere.npz (or cameras.npz, cameras_large.npz) and image."""
    return any((Path(source) / name).is_file() for name in _CAMERAS) and bool(_files(Path(source), _PICTURES))


def load(source: str, config: Config) -> Scene:
    """The pictures in order of their names, the i-th with world_mat_i.

    NeuS's models/dataset.py: world_mat is P = K[R|t] with OpenCV's axes, scale_mat takes the unit sphere about the object to the world;
    rays run through pixels at whole numbers, so our principal point is 0.5 larger. The world is that of world_mat, in which NeuS writes its
    meshes. Masks belong to the pictures in order of their names; what they hide is left out.
    """
    folder = Path(source)
    file = next((folder / name for name in _CAMERAS if (folder / name).is_file()), folder / _CAMERAS[0])
    pictures, masks = _files(folder, _PICTURES), _files(folder, _MASKS)
    cameras = sorted(name for name in npz_names(file) if name.startswith("world_mat_") and "inv" not in name)
    if len(cameras) != len(pictures):
        raise SceneError(f"{file} has {len(cameras)} cameras (world_mat_0, ...), but there are {len(pictures)} pictures; they must match.")
    if masks and len(masks) != len(pictures):
        raise SceneError(f"{masks[0].parent} holds {len(masks)} masks for {len(pictures)} pictures; remove the others, or all.")
    matrices = read_npz(file, [f"world_mat_{i}" for i in range(len(pictures))])
    shots = [
        _shot(f"{file}, world_mat_{i}", matrix, picture, masks[i] if masks else None)
        for i, (matrix, picture) in enumerate(zip(matrices, pictures, strict=True))
    ]
    return layout_scene(Layout("neus", file, folder, shots), config)


def _files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The pictures of the first of some folders that has any."""
    return next((files for name in names if (files := sorted(picture_files(folder / name)))), [])


def _shot(what: str, matrix: np.ndarray, picture: Path, mask: Path | None) -> Shot:
    rows = matrix[:3] if matrix.ndim == 2 and matrix.shape == (4, 4) else matrix
    k, rotation, center = decomposed(what, numbers(what, rows, 3, 4))
    check_skew(what, k[0, 1], k[1, 1], 2 * k[1, 2])
    lens = {"fl_x": k[0, 0].item(), "fl_y": k[1, 1].item(), "cx": k[0, 2].item() + 0.5, "cy": k[1, 2].item() + 0.5}
    return Shot(picture.name, pose(what, rotation, center), lens, picture, mask)


def decomposed(what: str, p: Float[np.ndarray, "3 4"]) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Intrinsics K, rotation R and position C of a projection matrix ~ K[R|-RC] (Hartley and Zisserman, section 6.2.4)."""
    m = p[:, :3]
    if not abs(np.linalg.det(m)) > 1e-9 * np.prod(np.linalg.norm(m, axis=1)):
        raise SceneError(f"{what} is no projection matrix: its first three columns are flat.")
    p = p * np.sign(np.linalg.det(m))
    m = p[:, :3]
    q, r = np.linalg.qr(m[::-1].T)  # m = (flipped r)ᵀ·(flipped q)ᵀ
    k, rotation = r.T[::-1, ::-1], q.T[::-1]
    signs = np.sign(np.diag(k))
    k, rotation = k * signs, signs[:, None] * rotation
    return k / k[2, 2], rotation, -np.linalg.solve(m, p[:, 3])
