"""What the tests share: where real data lies, a tiny made-up Blender scene, and how close float32 must come to a float64 twin."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor

import nerfit.kernels.cpu.runtime  # noqa: F401 - the cache of compiled kernels is chosen here, before any test sets NERFIT_CACHE

settings.register_profile("nerfit", max_examples=30, deadline=None)
settings.load_profile("nerfit")

if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # processes side by side share the cores
    THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
    torch.set_num_threads(THREADS)
    os.environ["OMP_NUM_THREADS"] = str(THREADS)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Plain ``pytest`` runs in a process for each core, file by file; a selection runs in this process, or as ``-n`` says."""
    option, everything = config.option, config.args_source is pytest.Config.ArgsSource.TESTPATHS
    chosen = option.keyword or option.usepdb or option.markexpr != "not slow"
    worker = hasattr(config, "workerinput")  # it comes here too, and must start no workers of its own
    if everything and not chosen and not worker and getattr(option, "numprocesses", 0) is None:
        option.numprocesses, option.dist, option.loadscopereorder = min(os.cpu_count() or 1, 8), "loadfile", False


ROOT = Path(__file__).parents[1]
"""The repository."""

DATA = Path(os.environ.get("NERFIT_DATA") or ROOT.parent / "shared" / "data")
"""The folder of real scenes: $NERFIT_DATA, else shared/data beside the repository."""


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """`DATA`; the test is skipped without it."""
    if not DATA.is_dir():
        pytest.skip(f"there is no folder of real scenes at {DATA}; set NERFIT_DATA")
    return DATA


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, for pixels and poses."""
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def blender_folder(tmp_path: Path) -> Path:
    """A coloured ball of radius 1 at the origin as a Blender scene of 10x8 pixels: 5 train, 3 val and 6 test views, 4 away.

    As in the official scenes, depth and normal PNGs lie beside the test views.
    """
    folder = tmp_path / "ball"
    for split, count, phase in (("train", 5, 0.0), ("val", 3, 0.4), ("test", 6, 0.8)):
        (folder / split).mkdir(parents=True)
        frames: list[dict[str, Any]] = []
        for i in range(count):
            c2w = around(2 * math.pi * (i + phase) / count, 0.3 + 0.1 * i)
            picture = Image.fromarray(ball_picture(c2w))
            picture.save(folder / split / f"r_{i}.png")
            if split == "test":
                picture.save(folder / split / f"r_{i}_depth_0001.png")
                picture.save(folder / split / f"r_{i}_normal_0001.png")
            frames.append({"file_path": f"./{split}/r_{i}", "rotation": 0.01, "transform_matrix": c2w.tolist()})
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": FOV, "frames": frames}))
    return folder


WIDTH, HEIGHT, FOV = 10, 8, 0.7


def around(azimuth: float, elevation: float) -> np.ndarray:
    """A camera 4 away from the origin that looks at it, z up."""
    back = np.array([math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)])
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(back, right), back, 4 * back], 1)
    return c2w


def ball_picture(c2w: np.ndarray) -> np.ndarray:
    """RGBA: the ball's normals as colours where the ray through a pixel's centre meets it, else transparent."""
    focal = 0.5 * WIDTH / math.tan(0.5 * FOV)
    picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    for j in range(HEIGHT):
        for i in range(WIDTH):
            d = c2w[:3, :3] @ [(i + 0.5 - WIDTH / 2) / focal, -(j + 0.5 - HEIGHT / 2) / focal, -1.0]
            a, b, c = d @ d, d @ c2w[:3, 3], c2w[:3, 3] @ c2w[:3, 3] - 1
            if b * b > a * c:
                normal = c2w[:3, 3] + d * (-b - math.sqrt(b * b - a * c)) / a
                picture[j, i] = np.rint([*(normal + 1) * 127.5, 255])
    return picture


def assert_close(value: Any, reference: Any, tolerance: float = 1e-5) -> None:
    """Same shape, and max|difference| / max|reference| within the tolerance; NaN is never close."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    reference = reference.detach().cpu().numpy() if isinstance(reference, Tensor) else np.asarray(reference)
    assert value.shape == reference.shape, f"shape {value.shape}, expected {reference.shape}"
    if reference.size:
        difference, scale = np.abs(value.astype(float) - reference).max(), np.abs(reference).max()
        assert difference <= tolerance * scale, f"off by {difference:.3g} where values reach {scale:.3g}"


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation matrix."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.linalg.det(q)
