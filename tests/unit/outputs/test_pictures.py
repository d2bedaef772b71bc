"""Drawn pictures: normals of scenes in NDC are those of the world, and a GPU's lack of memory only makes chunks smaller."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.cameras.ndc import from_ndc, to_ndc
from nerfit.errors import RunError
from nerfit.methods.batch import Batch
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.views import render_view
from nerfit.outputs.pictures.render_path import view_normals
from nerfit.rendering.volume import Rendering
from nerfit.scenes.formats import procedural
from nerfit.scenes.scene import Scene

TINY = NerfConfig(depth=1, width=4, skips=[], frequencies=0, view_frequencies=0, samples=4, fine_samples=0)


def room() -> Scene:
    return procedural.load("procedural:forward-facing", procedural.Config(size=6, views=2, samples=1))


def lens(scene: Scene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c = scene.cameras[0]
    return c.fx, c.fy, c.width, c.height


def test_ndc_points_lie_on_ndc_rays_and_come_back() -> None:
    scene = room()
    pixels = torch.arange(36)
    views = torch.zeros_like(pixels)
    world = scene.cameras.rays(views, pixels % 6, pixels // 6, 0.0, 1.0)
    ndc = scene.rays(views, pixels % 6, pixels // 6)
    points = world.origins + 3.5 * world.directions
    warped = to_ndc(points, *lens(scene))
    assert_close(from_ndc(warped, *lens(scene)), points)
    t = ((warped - ndc.origins) * ndc.directions).sum(-1) / ndc.directions.square().sum(-1)
    assert_close(ndc.origins + t[:, None] * ndc.directions, warped)


class Ramp(Nerf):
    """Density that falls along one direction of the world, given points in NDC as every method is."""

    def __init__(self, scene: Scene, along: Tensor) -> None:
        super().__init__(TINY, scene)
        self.scene, self.along = scene, along

    def density(self, points: Tensor) -> Tensor:
        return torch.exp(-from_ndc(points, *lens(self.scene)) @ self.along)


def test_normals_in_ndc_are_those_of_the_world() -> None:
    scene = room()
    along = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=-1)
    opaque = torch.ones(6, 6)
    normals = view_normals(Ramp(scene, along), scene, scene.cameras, 0, Rendering(torch.zeros(6, 6, 3), 0.6 * opaque, opaque), 7)
    assert_close(normals, along.expand(6, 6, 3), 1e-4)


class Interrupted(Nerf):
    """A method whose density fails, as on a device that runs out of memory."""

    def density(self, points: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")


def test_normals_that_fail_leave_the_precision_as_it_was() -> None:
    scene, opaque = room(), torch.ones(6, 6)
    method = Interrupted(TINY, scene)
    method.precision = torch.bfloat16
    with pytest.raises(torch.cuda.OutOfMemoryError):
        view_normals(method, scene, scene.cameras, 0, Rendering(torch.zeros(6, 6, 3), opaque, opaque), 7)
    assert method.precision == torch.bfloat16


class Cramped(Nerf):
    """A method on a device where more than ``room`` rays at a time don't fit."""

    room = 10

    def render(self, batch: Batch) -> Rendering:
        if len(batch) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return super().render(batch)


def test_views_that_do_not_fit_are_drawn_in_smaller_chunks(monkeypatch: Any) -> None:
    scene = procedural.load("procedural", procedural.Config(size=16, views=1, val_views=0, test_views=1, samples=1))
    method = Cramped(TINY, scene)
    monkeypatch.setattr(Cramped, "room", 70)
    small = render_view(method, scene, scene.cameras, 0, 256)
    monkeypatch.setattr(Cramped, "room", 1000)
    assert_close(small.rgb, render_view(method, scene, scene.cameras, 0, 256).rgb)
    monkeypatch.setattr(Cramped, "room", 10)
    with pytest.raises(RunError, match="too little free memory"):
        render_view(method, scene, scene.cameras, 0, 256)
