"""A ball baked into a page: its grid, its pictures beside the field's own, the bytes in the file, and a browser's picture."""

import base64
import io
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import around, assert_close
from fields import CENTER, Ball
from nerfit.cameras import Cameras
from nerfit.cameras.ndc import from_ndc
from nerfit.errors import ConfigError, RunError
from nerfit.methods.base import Method
from nerfit.metrics.psnr_ssim import psnr
from nerfit.outputs.web.bake import BLOCK, STEP, BakeConfig, Baked, bake, dense, draw, in_world, likeness
from nerfit.outputs.web.page import first_orbit, write_web
from nerfit.scenes.scene import Scene


@pytest.fixture(scope="module")
def scene() -> Scene:
    poses = [around(1.1 * i, 0.9 * np.sin(2.3 * i)) for i in range(12)]
    cameras = Cameras.pinhole(torch.from_numpy(np.stack(poses)), 60.0, 48, 40)
    return Scene("ball </script>", "procedural", cameras, 2.8, 5.2, {"train": list(range(12)), "test": [1, 5]}, background="white")


@pytest.fixture(scope="module")
def baked(scene: Scene) -> Baked:
    return bake(Ball(60.0), scene, BakeConfig(resolution=96), 4096)


def test_the_grid_holds_the_field(baked: Baked) -> None:
    """Opacity of the shell, and colours that follow the view direction, at nodes; nothing outside the ball."""
    nodes = dense(baked)
    flat = (nodes[..., 0] > 100).nonzero()
    points = baked.grid.scene_points(flat)
    assert (points - CENTER).norm(dim=-1).max() < 0.8 + baked.grid.scene_spacing
    right = points[:, 0] > CENTER[0] + 0.05
    bytes_ = nodes[flat.unbind(-1)].float()
    alpha = bytes_[:, 0]
    assert ((bytes_[:, 1] / alpha)[right] > 0.9).all() and ((bytes_[:, 2] / alpha)[right] < 0.1).all()
    slope_z_blue = (bytes_[:, 12] - 128) / 127 * baked.slope / (alpha / 255)
    assert (slope_z_blue - 0.4).abs().median() < 0.05
    assert nodes[0, 0, 0].tolist() == [0] * 4 + [128] * 9


def test_its_pictures_are_those_of_the_field(scene: Scene, baked: Baked) -> None:
    found = likeness(Ball(60.0), scene, baked, 4096)
    assert len(found) == 2 and min(found) > 26, found


def test_the_march_beside_a_slow_twin(baked: Baked) -> None:
    """One ray at a time in float64, every step of the way."""
    cameras = Cameras.pinhole(torch.from_numpy(around(0.4, 0.3))[None], 8.0, 5, 5)
    picture = draw(baked, cameras, 0, 1.0)
    table = dense(baked).double().numpy()
    for i, j in [(0, 0), (2, 2), (1, 3), (4, 2)]:
        d = cameras.c2w[0, :, :3].double().numpy() @ [(i + 0.5 - 2.5) / 8, -(j + 0.5 - 2.5) / 8, -1]
        d /= np.linalg.norm(d)
        o = baked.grid.nodes_of(cameras.c2w[0, :, 3][None])[0].double().numpy()
        color, light, t = np.zeros(3), 1.0, 0.5 * STEP
        while t < 400 and light >= 0.01:
            p = o + t * d
            t += STEP
            c = np.floor(p).astype(int)
            if (c < 0).any() or (c >= np.array(table.shape[:3]) - 1).any():
                continue
            f, value = p - c, np.zeros(13)
            for corner in np.ndindex(2, 2, 2):
                value += np.prod(np.where(corner, f, 1 - f)) * table[tuple(c + corner)]
            if value[0] == 0:
                continue
            opacity = 1 - (1 - value[0] / 255) ** STEP
            slopes = (value[4:].reshape(3, 3) - 128) / 127 * baked.slope
            color += light * opacity / max(value[0] / 255, 1e-3) * (value[1:4] / 255 + d @ slopes)
            light *= 1 - opacity
        assert picture[j, i].numpy() == pytest.approx(np.clip(color + light, 0, 1), abs=5e-3)


def test_solid_matter_is_drawn_as_it_is(baked: Baked) -> None:
    """Opacities of one at all eight corners may add up to a little more: the ray ends there all the same."""
    solid = Baked(baked.grid, baked.blocks, torch.full_like(baked.nodes, 128), baked.slope)
    solid.nodes[..., 0] = 255
    cameras = Cameras.pinhole(torch.from_numpy(around(0.4, 0.3))[None], 20.0, 15, 15)
    picture = draw(solid, cameras, 0, 1.0)
    assert picture.isfinite().all()
    assert_close(picture[7, 7], torch.full((3,), 128 / 255), 1e-3)


def test_the_page_holds_the_grid(scene: Scene, baked: Baked, tmp_path: Path) -> None:
    text = write_web(tmp_path / "ball.html", scene, baked).read_text()
    assert "{{" not in text and text.count("</script>") == 2 and "http" not in text
    found = re.search(r"const meta = (\{.*\});", text)
    assert found is not None
    meta = json.loads(found[1])
    data = re.search(r'type="text/plain">([^<]*)<', text)
    assert data is not None
    payload = np.frombuffer(zlib.decompress(base64.b64decode(data[1])), np.uint8)
    blocks = int(np.prod(meta["sides"]))
    distance = payload[:blocks].reshape(meta["sides"])
    places = np.argwhere(distance == 0)
    assert places.tolist() == baked.blocks.tolist() and len(places) == meta["count"]
    nodes = payload[blocks:].reshape(13, meta["count"], BLOCK, BLOCK, BLOCK)
    assert (np.moveaxis(nodes, 0, -1) == baked.nodes.numpy()).all()
    for empty in np.argwhere(distance > 0)[::37]:
        assert distance[tuple(empty)] == np.abs(places - empty).max(1).min()


def test_what_cannot_be_baked_is_refused(scene: Scene, baked: Baked, tmp_path: Path) -> None:
    class Colorless(Ball):
        radiance = Method.radiance

    with pytest.raises(ConfigError, match="colours at single points"):
        bake(Colorless(), scene, BakeConfig(resolution=16, views=3), 4096)
    with pytest.raises(RunError, match="no matter"):
        bake(Ball(), scene, BakeConfig(resolution=16, views=3, box=(9, 9, 9, 10, 10, 10)), 4096)
    with pytest.raises(ConfigError, match="at least 1"):
        bake(Ball(), scene, BakeConfig(views=0), 4096)
    with pytest.raises(ConfigError, match=r"\.html"):
        write_web(tmp_path / "ball.txt", scene, baked)


class FarBall(Ball):
    """The ball 4 before the cameras of a scene in NDC."""

    def world(self, points: Tensor) -> Tensor:
        return from_ndc(torch.cat([points[:, :2], points[:, 2:].clamp(max=0.99)], -1), *self.lens) + torch.tensor([0.0, 0, 4])

    def __init__(self, scene: Scene) -> None:
        super().__init__(60.0)
        self.lens = scene.ndc_by(torch.device("cpu"))

    def density(self, points: Tensor) -> Tensor:
        return 3 * super().density(self.world(points))

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(points), super().radiance(self.world(points), viewdirs)[1]


@pytest.fixture(scope="module")
def forward() -> tuple[Scene, Baked]:
    """A ball seen from a grid of cameras in normalised device coordinates, and its bake."""
    centers = torch.cartesian_prod(torch.linspace(-0.6, 0.6, 4), torch.linspace(-0.5, 0.5, 3), torch.tensor([0.0, 0.2]))
    cameras = Cameras.pinhole(torch.cat([torch.eye(3).expand(24, 3, 3), centers[..., None]], -1), 60.0, 48, 40)
    scene = Scene("far", "llff", cameras, 0.0, 1.0, {"train": list(range(24)), "test": [1, 22]}, bounds="forward-facing", ndc=True)
    return scene, bake(FarBall(scene), scene, BakeConfig(resolution=96), 4096)


def test_a_forward_facing_field_is_baked_in_ndc(forward: tuple[Scene, Baked]) -> None:
    """The nodes lie on the ball's near side in the world, and pictures are those of the field, from test views and from beside them."""
    scene, baked = forward
    assert baked.lens is not None
    nodes = (dense(baked)[..., 0] > 100).nonzero()
    world = in_world(baked.grid.scene_points(nodes), baked.lens) + torch.tensor([0.0, 0, 4])
    assert ((world - CENTER).norm(dim=-1) < 0.95).all() and float((world - CENTER)[:, 2].max()) == pytest.approx(0.8, abs=0.12)
    found = likeness(FarBall(scene), scene, baked, 4096)
    assert len(found) == 2 and min(found) > 24, found
    orbit = first_orbit(scene, baked)
    assert_close(orbit.target + torch.tensor([0.0, 0, 4]), CENTER + torch.tensor([0.0, 0, 0.5]), 0.8)


def test_what_lies_beyond_the_box_is_not_held_against_the_page(scene: Scene) -> None:
    box = (-1.0, -1.2, -1.0, 0.1, 1.2, 1.2)
    half = bake(Ball(60.0), scene, BakeConfig(resolution=96, box=box), 4096)
    assert min(likeness(Ball(60.0), scene, half, 4096)) > 24


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["object", "forward-facing"])
def test_a_browser_draws_the_same(kind: str, scene: Scene, baked: Baked, forward: tuple[Scene, Baked], tmp_path: Path) -> None:
    if kind == "forward-facing":
        scene, baked = forward
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    page = write_web(tmp_path / "ball.html", scene, baked)
    flags = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars"]
    flags += ["--window-size=320,240", "--virtual-time-budget=20000", f"--screenshot={tmp_path / 'shot.png'}"]
    subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=300)
    shot = torch.from_numpy(np.array(Image.open(io.BytesIO((tmp_path / "shot.png").read_bytes())).convert("RGB"))) / 255
    drawn = draw(baked, first_orbit(scene, baked).camera(shot.shape[1], shot.shape[0]), 0, 1.0)
    top = int(0.7 * shot.shape[0])  # below is the hint
    assert psnr(shot[:top], drawn[:top]) > 35
