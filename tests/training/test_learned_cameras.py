"""Learned cameras: exact gradients, coarse to fine, errors after alignment, and poses found for real."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.camera_search.relocate import lost_views, relocate
from nerfit.cameras import Cameras
from nerfit.cameras.learned import ROTATIONS, CameraConfig, LearnedCameras
from nerfit.cameras.poses import transform_poses
from nerfit.cameras.rotations import axis_angle_to_matrix, six_to_matrix
from nerfit.commands import evaluate
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of, prepare
from nerfit.commands.train_run import train
from nerfit.config import arguments
from nerfit.errors import ConfigError
from nerfit.evaluation.poses import camera_errors
from nerfit.fields.frequency import frequency_encoding, opened_levels
from nerfit.fields.hash_field import HashField
from nerfit.kernels.field import field_reference
from nerfit.kernels.layouts import Cutoffs, FieldShape, GridLayout, March, Network, RaySet
from nerfit.kernels.marching import pack_occupancy
from nerfit.kernels.rendering import render_rays
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.views import render_view
from nerfit.rendering.volume import Rendering
from nerfit.runs import open_run
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training.trainer import Callback, Trainer


@pytest.fixture(scope="module")
def scene() -> Scene:
    return load("procedural:forward-facing", Config(size=24, views=9, samples=1))


def in_double(learned: LearnedCameras, noise: float = 0.1) -> LearnedCameras:
    """Parameters a little off their start, everything float64."""
    torch.manual_seed(0)
    learned.cameras = learned.cameras._map(lambda t: t.double() if t.is_floating_point() else t)
    learned = learned.double()
    with torch.no_grad():
        for p in learned.parameters():
            p.add_(noise * torch.randn_like(p))
    return learned


@pytest.mark.parametrize("ndc", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("rotation", "focal"), [("axis-angle", "square"), ("6d", "exp"), ("quaternion", "ratio")])
def test_rays_have_the_gradients_of_finite_differences(scene: Scene, rotation: Any, focal: Any, separate: bool, ndc: bool) -> None:
    config = CameraConfig(learn=True, rotation=rotation, focal=focal, separate=separate)
    learned = in_double(LearnedCameras(config, scene.cameras[:3], [0, 2]))
    views, x, y = torch.tensor([0, 2, 2, 0]), torch.tensor([1, 20, 7, 9]), torch.tensor([3, 0, 23, 11])
    names = [name for name, _ in learned.named_parameters()]

    def rays(*values: Tensor) -> Any:
        cameras = torch.func.functional_call(learned, dict(zip(names, values, strict=True)), ())
        found = replace(scene, ndc=ndc).rays(views, x, y, cameras)
        return found.origins, found.directions, found.viewdirs

    assert torch.autograd.gradcheck(rays, tuple(p.detach().clone().requires_grad_() for p in learned.parameters()))


@pytest.mark.parametrize("cascades", [1, 2])
def test_colours_of_the_hash_field_have_the_gradients_of_finite_differences(cascades: int) -> None:
    """In origins and directions, with view directions held; float64, so the definitions compute."""
    torch.manual_seed(1)
    shape = FieldShape(GridLayout(levels=2, log2_entries=10, coarsest=2, finest=3), 32)
    model = HashField(shape).double()
    table, weights = model.table.detach().normal_(0, 0.5), model.weights.detach()
    occupancy = pack_occupancy(torch.ones(cascades * 128**3), 0.5)
    origins, directions = torch.rand(3, 3).double() * 0.3 + 0.3, torch.nn.functional.normalize(torch.randn(3, 3).double(), dim=-1)
    near, far, jitter = torch.full((3,), 0.01).double(), torch.full((3,), 0.3).double(), torch.full((3,), 0.4).double()

    def colors(o: Tensor, d: Tensor) -> Any:
        rays, network = RaySet(o, d, directions, near, far, jitter), Network(table, weights, shape)
        rendered = render_rays(rays, March(occupancy, 0.031), network, Cutoffs(0.0, 0.0))
        return rendered.color, rendered.opacity

    # the march counts its steps along |d|; a turn keeps that, as cameras do
    def turned(o: Tensor, axis: Tensor) -> Any:
        return colors(o, directions @ axis_angle_to_matrix(axis).mT)

    inputs = origins.requires_grad_(), torch.full((3,), 0.02).double().requires_grad_()
    assert float(colors(origins, directions)[1].detach().min()) > 0.01
    assert torch.autograd.gradcheck(turned, inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("near_falloff", [0.0, 0.4])
@pytest.mark.parametrize("cascades", [1, 3])
def test_the_kernels_gradients_of_rays_are_those_of_the_definitions(cascades: int, near_falloff: float) -> None:
    """float32 kernels against float64 definitions: origins, directions of any length, table, weights."""
    torch.manual_seed(2)
    model = HashField(FieldShape(GridLayout(4, 12, 4, 24), 32))
    torch.nn.init.normal_(model.table, 0, 0.5)
    occupancy = pack_occupancy((torch.rand(cascades * 128**3) < 0.5).float(), 0.5)
    rays = 200
    origins = 0.5 + (torch.rand(rays, 3) - 0.5) * 2 ** (cascades - 1) * 0.9
    viewdirs = torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1)
    directions = viewdirs * (0.5 + torch.rand(rays, 1))
    near, far, jitter = torch.zeros(rays), torch.full((rays,), 2.0), torch.full((rays,), 0.5)
    goal = torch.rand(rays, 3)
    found = []
    for kind in (torch.float32, torch.float64):
        o, d, table, weights = (leaf.detach().to(kind).requires_grad_() for leaf in (origins, directions, model.table, model.weights))
        given, network = RaySet(o, d, *(t.to(kind) for t in (viewdirs, near, far, jitter))), Network(table, weights, model.shape)
        rendered = render_rays(given, March(occupancy, 0.02), network, Cutoffs(0.0, 0.0), near_falloff)
        ((rendered.color - goal.to(kind)).square().sum() + (rendered.opacity**2).sum() + (rendered.depth**2).sum()).backward()
        found.append([rendered.color, *(v.grad for v in (o, d, table, weights))])
    assert found[1][1] is not None and float(found[1][1].norm()) > 0.1
    for fast, exact in zip(*found, strict=True):
        assert fast is not None and exact is not None
        assert float((fast.double() - exact.detach()).norm() / exact.detach().norm()) < 1e-4


class Lamps(Method):
    """Glowing points in the dark: a ray's colour in closed form."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.register_buffer("places", torch.randn(9, 3, generator=generator) * 0.7)
        self.register_buffer("colors", torch.rand(9, 3, generator=generator))
        self.cameras = LearnedCameras(CameraConfig(learn=True), scene.cameras, scene.splits["train"])

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def render(self, batch: Batch) -> Rendering:
        assert batch.rays is not None
        to = self.get_buffer("places") - batch.rays.origins[:, None]
        off = torch.linalg.cross(to, batch.rays.viewdirs[:, None].expand_as(to)).square().sum(-1)
        return Rendering((torch.exp(-off / 0.1) @ self.get_buffer("colors")).clamp(max=1))

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        raise NotImplementedError


def test_a_lost_camera_is_found_again() -> None:
    """One camera is turned away by 40 degrees; those that fit stay where they are."""
    scene = load("procedural:object", Config(size=24, views=12, samples=1))
    method = Lamps(scene)
    views = len(scene.cameras)
    rgb = [render_view(method, scene, scene.cameras, view, 1 << 14).rgb for view in range(views)]
    scene.pixels = (torch.stack(rgb).reshape(-1, 3) * 255).round().to(torch.uint8)
    lost = scene.splits["train"][3]
    turn = axis_angle_to_matrix(torch.tensor([0.5, -0.3, 0.4]))
    assert method.cameras is not None
    method.cameras.place_at(lost, turn @ scene.cameras.c2w[lost])
    assert lost_views(method, scene, 0)[0] == [lost]
    for step in range(4):
        if relocate(method, scene, step):
            break
    found = method.cameras(1.0).c2w.detach()
    off = [float((poses[lost] - scene.cameras.c2w[lost]).norm()) for poses in (found, turn @ scene.cameras.c2w)]
    assert off[0] < 0.1 * off[1]
    others = [view for view in range(views) if view != lost]
    assert torch.equal(found[others], scene.cameras.c2w[others])


def test_cameras_that_begin_elsewhere_are_searched_there_too() -> None:
    """The second half of the places that are tried for a lost camera lies around where the search began."""
    scene = load("procedural:object", Config(size=8, views=6, samples=1))
    learned = LearnedCameras(CameraConfig(learn=True), scene.cameras, scene.splits["train"])
    moved = replace(scene.cameras, c2w=scene.cameras.c2w + torch.tensor([0.0, 0.0, 0.0, 0.5]))
    learned.begin_at(moved)
    assert torch.equal(learned.began, moved.c2w)
    assert torch.equal(learned(1.0).c2w, moved.c2w)


def test_a_learned_focal_length_leaves_normalised_device_coordinates_as_they_are(scene: Scene, tmp_path: Path) -> None:
    """Rays of a placed scene, saved and loaded, are those that were trained on."""
    assert scene.ndc
    method = Nerf(NerfConfig(depth=2, width=8, skips=[], camera=CameraConfig(learn=True, focal="exp", fov=70.0)), scene).eval()
    pixels = torch.arange(24)
    trained = scene.rays(torch.full_like(pixels, 2), pixels, pixels, method.training_cameras())
    method.place(scene).save(tmp_path)
    seen = Scene.load(tmp_path).rays(torch.full_like(pixels, 2), pixels, pixels)
    assert_close(seen.directions, trained.directions.detach(), 1e-5)
    assert_close(seen.origins, trained.origins.detach(), 1e-5)


STEP = 1e-6


def test_a_training_loss_has_the_gradients_of_finite_differences(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through batch, rays, network and quadrature of the method nerf, for every parameter of the cameras; in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    config = NerfConfig(depth=2, width=32, skips=[], frequencies=2, view_frequencies=1, samples=12, fine_samples=0, rays=64)
    config.camera = CameraConfig(learn=True, focal="square")
    torch.manual_seed(0)
    method = Nerf(config, scene).double()
    assert method.cameras is not None
    in_double(method.cameras, 0.01)

    def loss() -> Tensor:
        batch = method.next_batch(scene, 0, torch.Generator().manual_seed(3))
        return method.losses(method.render(batch), batch, 0)["rgb"]

    loss().backward()
    for p in method.cameras.parameters():
        assert p.grad is not None
        way = torch.randn_like(p)
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                p.add_(sign * STEP * way)
                values.append(float(loss()))
                p.sub_(sign * STEP * way)
        assert float((p.grad * way).sum()) == pytest.approx((values[0] - values[1]) / (2 * STEP), rel=1e-3)


def test_no_motion_is_where_each_way_to_write_it_begins() -> None:
    for matrix, start in ROTATIONS.values():
        assert_close(matrix(torch.tensor(start)), torch.eye(3))
    six = torch.randn(5, 6, dtype=torch.float64)
    rotation = six_to_matrix(six)
    assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(5, 3, 3), 1e-12)
    assert (torch.linalg.det(rotation) > 0).all() and (torch.linalg.cross(rotation[:, :, 0], six[:, :3]).abs() < 1e-12).all()


def test_the_encoding_opens_octave_by_octave() -> None:
    assert opened_levels(4, 1.0) is None
    weights = opened_levels(4, 0.625)
    assert weights is not None
    assert_close(weights, torch.tensor([1.0, 1.0, 0.5, 0.0]))
    x = torch.randn(3, 2)
    full, part = (frequency_encoding(x, 4, w) for w in (None, weights))
    assert torch.equal(part[:, :10], full[:, :10]) and (part[:, 14:] == 0).all() and torch.allclose(part[:, 10:14], 0.5 * full[:, 10:14])
    config = CameraConfig(learn=True, coarse_from=0.1, coarse_until=0.5)
    assert [config.opened(p) for p in (0.0, 0.1, 0.3, 0.5, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_closed_levels_of_the_hash_field_are_not_there() -> None:
    torch.manual_seed(3)
    model = HashField(FieldShape(GridLayout(4, 10, 4, 32), 32))
    torch.nn.init.normal_(model.table)
    x, d = torch.rand(9, 3), torch.nn.functional.normalize(torch.randn(9, 3), dim=-1)
    opened = torch.tensor([1.0, 0.5, 0.0, 0.0])
    masked = model.table.detach().clone()
    for level, share in enumerate(opened):
        masked[4 * model.shape.grid.offsets[level] : 4 * model.shape.grid.offsets[level + 1]] *= share
    expected = field_reference(x, d, Network(masked, model.weights, model.shape))
    found = field_reference(x, d, model.network(False, opened))
    assert_close(found[1], expected[1])
    assert_close(model.density(x, False, opened), expected[0], 1e-4)


def some_cameras(n: int = 6) -> Cameras:
    generator = torch.Generator().manual_seed(5)
    rotation = axis_angle_to_matrix(torch.randn(n, 3, generator=generator))
    return Cameras.pinhole(torch.cat([rotation, torch.randn(n, 3, 1, generator=generator)], -1), 50.0, 40, 30)


def test_errors_are_those_left_by_the_best_similarity() -> None:
    reference = some_cameras()
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[:3, :3] = 3 * axis_angle_to_matrix(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    similarity[:3, 3] = torch.tensor([1.0, 5.0, -2.0])
    moved = replace(reference, c2w=transform_poses(reference.c2w, similarity).float())
    assert max(camera_errors(moved, reference).values()) < 1e-3
    turned = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.radians(2.0)]))
    turned = replace(moved, c2w=torch.cat([moved.c2w[:, :, :3] @ turned, moved.c2w[:, :, 3:]], -1), fx=moved.fx * 1.1)
    errors = camera_errors(turned, reference)
    assert errors["rotation_degrees"] == pytest.approx(2, rel=1e-3) and errors["focal_percent"] == pytest.approx(10, rel=1e-3)
    assert errors["translation_percent"] < 1e-3


def test_other_views_are_carried_along() -> None:
    given = some_cameras()
    learned = LearnedCameras(CameraConfig(learn=True, start="identity", focal="exp", fov=90.0), given, [0, 1, 3, 4])
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[:3, :3] = 0.5 * axis_angle_to_matrix(torch.tensor([0.3, 0.2, -0.1], dtype=torch.float64))
    world = transform_poses(given.c2w, similarity).float()
    with torch.no_grad():
        learned.shift.copy_(world[learned.views, :, 3])
    cameras, moved = learned.placed()
    assert_close(moved, similarity, 1e-4)
    assert_close(cameras.c2w[[2, 5]], world[[2, 5]], 1e-4)
    assert_close(cameras.c2w[[0, 1, 3, 4], :, :3], torch.eye(3).expand(4, 3, 3))
    assert_close(cameras.fx, torch.full((6,), 20.0))


def test_other_views_whose_places_nobody_knows_stand_by_the_next_one() -> None:
    unknown = replace(some_cameras(), c2w=torch.eye(3, 4).repeat(6, 1, 1))
    learned = LearnedCameras(CameraConfig(learn=True, start="identity"), unknown, [1, 2, 4])
    torch.nn.init.normal_(learned.shift)
    cameras, moved = learned.placed()
    assert torch.equal(moved, torch.eye(4, dtype=torch.float64))
    assert_close(cameras.c2w[[0, 5]], learned().c2w[[1, 4]])


def test_cameras_move_in_their_window_alone() -> None:
    learned = LearnedCameras(CameraConfig(learn=True, learn_from=0.2, learn_until=0.6), some_cameras(), [0, 1])
    assert [learned(p).c2w.requires_grad for p in (0.0, 0.2, 0.5, 0.65, 1.0)] == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("choice", "reported"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"disturb": -1.0}, "disturb must not be negative"),
        ({"fov": 200.0}, "fov must lie between"),
        ({"learn_from": 0.5, "learn_until": 0.5}, "below learn_until"),
        ({"coarse_from": 0.5, "coarse_until": 0.4}, "below coarse_until"),
        ({"refine_after": 1.0}, "refine_after must be"),
    ],
)
def test_wrong_settings_are_refused(choice: dict[str, Any], reported: str) -> None:
    with pytest.raises(ConfigError, match=reported):
        LearnedCameras(CameraConfig(learn=True, **choice), some_cameras(), [0])


def test_keys_without_effect_are_reported() -> None:
    assert CameraConfig().unused().keys() == {f.name for f in fields(CameraConfig)} - {"learn"}
    assert CameraConfig(learn=True).unused().keys() == {"fov", "separate", "focal_lr"}
    assert not CameraConfig(learn=True, focal="exp").unused()


def test_a_run_keeps_its_cameras(tmp_path: Path) -> None:
    """Trained from nothing, evaluated, resumed and opened again: cameras.json, the checkpoint and the metrics tell the same."""
    small = {"scene": {"size": 16, "views": 9, "samples": 1}, "steps": 20}
    model = {"depth": 2, "width": 16, "samples": 8, "fine_samples": 0, "rays": 64}
    model |= {"camera": {"learn": True, "start": "identity", "focal": "square"}}
    words = [*arguments(small | {"model": model}), "--json", "--out"]
    plan, options, folder = prepare(request("nerf", "procedural:forward-facing", [*words, str(tmp_path / "run")]))
    first = train(plan, options, folder)["test"]
    assert first["cameras"].keys() == {"rotation_degrees", "translation_percent", "focal_percent"}
    assert "carried into the learned world" in first["protocol"]
    again = prepare(request(None, None, ["--out", str(folder), "--resume", "--steps", "30", "--json"]))
    second = train(*again)["test"]
    run = open_run(folder, images=False)
    saved = json.loads((folder / "cameras.json").read_text())
    assert_close(run.scene.cameras.c2w, torch.tensor(saved["normalised"]["c2w"]))
    assert_close(plan.load_scene().cameras.c2w, torch.tensor(saved["given"]["c2w"]))
    evaluated = evaluate.run(evaluate.Options(run=folder, reference_poses="procedural:forward-facing", pose_steps=1))
    assert second["cameras"] != first["cameras"] and "photometric" in evaluated["protocol"]


def test_a_run_stopped_half_way_is_opened_as_it_was(tmp_path: Path) -> None:
    """With the octaves that are still closed."""
    words = ["--scene.size=16", "--scene.views=9", "--scene.samples=1", "--steps=40", "--log.image-every=0", "--model.depth=2"]
    words += ["--model.width=16", "--model.skips", "--model.samples=8", "--model.rays=64", "--model.camera.coarse-until=0.8"]
    plan = plan_of(request("nerf", "procedural:forward-facing", [*words, "--recipe=nerfmm", "--threads=1"]))
    scene = plan.load_scene()
    stop = Callback(10, lambda trainer: setattr(trainer, "interrupted", 2))
    trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, tmp_path, [stop], quiet=True)
    trainer.train()
    plan.save(tmp_path)
    scene.save(tmp_path)
    run = open_run(tmp_path, images=False, device="cpu")
    assert run.method.progress == trainer.method.progress == 0.25
    camera = scene.cameras[0]
    assert torch.equal(run.render(camera).rgb, render_view(trainer.method.eval(), scene, camera, 0, run.chunk).rgb)
