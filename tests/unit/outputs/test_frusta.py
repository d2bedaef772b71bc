import math

import numpy as np
import pytest
import torch

from nerfit.cameras import Cameras
from nerfit.outputs.pictures import frusta
from nerfit.outputs.pictures.frusta import draw_cameras


def look_at(position, target=(0.0, 0.0, 0.0), up=(0.0, 0.0, 1.0)):
    """c2w [3, 4] at ``position``, looking at ``target``."""
    back = np.subtract(position, target) / np.linalg.norm(np.subtract(position, target))
    right = np.cross(up, back) / np.linalg.norm(np.cross(up, back))
    return torch.tensor(np.stack([right, np.cross(back, right), back, position], -1))


def hemisphere(count=100):
    turns = [(2.399963 * i, 0.05 + 0.9 * i / count) for i in range(count)]
    positions = [(4 * math.sqrt(1 - z * z) * math.cos(a), 4 * math.sqrt(1 - z * z) * math.sin(a), 4 * z) for a, z in turns]
    return Cameras.pinhole(torch.stack([look_at(p) for p in positions]), 1111.0, 800, 800)


def forward_facing():
    positions = torch.tensor([(0.3 * x, 0.25 * y, 0.02 * (x - y)) for y in range(-2, 2) for x in range(-2, 3)])
    c2w = torch.cat([torch.eye(3).expand(20, 3, 3), positions[..., None]], -1)
    return Cameras.pinhole(c2w, 400.0, 504, 378)


SCENES = {
    "hemisphere": (hemisphere(), 2.0, 6.0),
    "forward-facing": (forward_facing(), 1.33, math.inf),
    "one camera": (hemisphere(3)[0], 2.0, 6.0),
    "one camera, no end": (hemisphere(3)[0], 2.0, math.inf),
    "one place": (Cameras.pinhole(torch.stack([look_at((0, 0, 0), (math.cos(a), math.sin(a), 0)) for a in range(6)]), 99, 80, 50), 0, 5),
    "upside down": (Cameras.pinhole(torch.stack([look_at((2, 1, 0), up=(0, -1, 0)), look_at((0, 1, 2), up=(0, -1, 0))]), 99, 80, 50), 1, 3),
    "straight down": (Cameras.pinhole(torch.stack([look_at((x, 0, 5), (x, 0, 0), (0, 1, 0)) for x in range(4)]), 99, 80, 50), 1, 9),
    "far from the origin": (Cameras.pinhole(torch.stack([look_at((5000 + x, 0, 5), (5000, 0, 0)) for x in range(1, 4)]), 99, 80, 50), 1, 9),
}  # fmt: skip


def shades(image, channel):
    """Count of the pixels in which one channel stands out from two equal ones."""
    rest = np.delete(image.astype(int), channel, -1)
    return int(((image[..., channel] - rest.max(-1) > 80) & (np.ptp(rest, -1) < 20)).sum())


@pytest.mark.parametrize("name", SCENES)
def test_the_drawing_fills_its_frame(name):
    cameras, near, far = SCENES[name]
    image = draw_cameras(cameras, near, far, size=400)
    assert image.shape == (400, 400, 3) and image.dtype == np.uint8
    ys, xs = np.nonzero(image.min(-1) < 200)
    assert max(np.ptp(xs), np.ptp(ys)) > 0.85 * 400, "the drawing is scaled to its frame"
    assert min(xs.min(), ys.min()) >= 10 and max(xs.max(), ys.max()) < 390, "nothing but the grid is cut off"
    assert min(shades(image, channel) for channel in range(3)) > 15, "each world axis shows"
    r, g, b = np.moveaxis(image.astype(int), -1, 0)
    assert ((r - g > 40) & (g - b > 30)).sum() > 100, "near and far planes show in orange"


def test_drawing_leaves_the_cameras_alone():
    cameras = hemisphere(5)
    before = cameras.state()
    first, second = draw_cameras(cameras, 2, 6, size=200), draw_cameras(cameras, 2, 6, size=200)
    assert np.array_equal(first, second) and cameras.state() == before


def test_corner_rays_are_the_cameras_own():
    cameras = forward_facing().crop(100, 50, 200, 300)
    rays = frusta._corner_rays(cameras)
    left, right, top, bottom = (100 - 252) / 400, (300 - 252) / 400, (189 - 50) / 400, (189 - 350) / 400
    expected = [(left, top, -1), (right, top, -1), (right, bottom, -1), (left, bottom, -1)]
    assert np.allclose(rays, np.broadcast_to(expected, (20, 4, 3)), atol=1e-6)


def test_projection_keeps_up_up_and_right_right():
    points = np.array([(x, y, z) for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    for axis in range(3):
        for sign in (1.0, -1.0):
            up = sign * np.eye(3)[axis]
            forward = np.roll(up, 1)
            view = frusta._view(points, forward, up)
            assert np.allclose(view.axes @ view.axes.T, np.eye(3)) and np.linalg.det(view.axes) == pytest.approx(1)
            xy, depth = view.project(np.stack([np.zeros(3), up, forward]))
            assert (depth > 0).all() and xy[1, 1] < xy[0, 1] and abs(xy[1, 0] - xy[0, 0]) < 1e-12, "up points up the picture"
            assert depth[2] > depth[0], "cameras are seen from behind"


def test_the_grid_lies_below_everything_at_round_steps():
    points = np.random.default_rng(0).uniform(-7, 9, (50, 3))
    for sign in (1.0, -1.0):
        grid = frusta._grid(points, np.array([0.0, sign, 0.0]))
        assert (grid[..., 1] == (points[:, 1].min() if sign > 0 else points[:, 1].max())).all()
        assert np.allclose(grid[..., [0, 2]] / 2, np.round(grid[..., [0, 2]] / 2)), "a span of 16 gets steps of 2"
        assert (grid.min((0, 1))[[0, 2]] <= points.min(0)[[0, 2]]).all() and (grid.max((0, 1))[[0, 2]] >= points.max(0)[[0, 2]]).all()


def test_dashes_lie_on_their_segment():
    dashes = frusta._dashed(np.array([[(0.0, 0, 0), (6.0, 0, 3)]]), 3)
    assert dashes.shape == (3, 2, 3) and np.allclose(dashes[..., 0], 2 * dashes[..., 2])
    assert np.diff(dashes[..., 0], axis=1).sum() == pytest.approx(0.6 * 6)
