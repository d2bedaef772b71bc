"""Photometric bundle adjustment: its derivatives, the corner of a room found again, and strangers."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import around
from nerfit.camera_search import adjust as adjusting
from nerfit.camera_search.adjust import adjust
from nerfit.camera_search.history import PoseHistory
from nerfit.camera_search.photometric import _moved, _project_points, adjust_photometrically
from nerfit.cameras import Cameras
from nerfit.cameras.learned import CameraConfig
from nerfit.cameras.rotations import axis_angle_to_matrix
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of
from nerfit.errors import ConfigError
from nerfit.evaluation.poses import camera_errors, learned_camera_errors
from nerfit.methods.instant import Instant, InstantConfig
from nerfit.scenes.formats.procedural import Config, load
from nerfit.training.trainer import Callback, Trainer
from photographs import FOCAL, HEIGHT, WIDTH, photograph

VIEWS = 5


@given(st.integers(0, 2**31))
def test_derivatives_of_the_pixels_of_points(seed: int) -> None:
    """By both poses, the logarithm of the focal length and inverse depth, beside central differences."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(3, 4).repeat(2, 1, 1).double()
    cameras = Cameras.pinhole(poses, 300.0, WIDTH, HEIGHT)._map(lambda t: t.double() if t.is_floating_point() else t)
    cameras = _moved(cameras, torch.cat([0.1 * torch.randn(12, generator=generator), torch.zeros(1)]).double())
    hosts, pixels = torch.tensor([0]), torch.tensor([[90.0, 130.0]]).double()
    rho = torch.tensor([0.4 + 0.3 * float(torch.rand(1, generator=generator))]).double()
    _, jacobian, shown = _project_points(cameras, 1, hosts, pixels, rho)
    assert bool(shown.all())
    for k in range(14):
        ends = []
        for sign in (1, -1):
            step = torch.zeros(14).double()
            step[k] = sign * 1e-6
            ends.append(_project_points(_moved(cameras, step[:13]), 1, hosts, pixels, rho + step[13])[0])
        assert torch.allclose(jacobian[..., k], (ends[0] - ends[1]) / 2e-6, atol=1e-4)


@pytest.fixture(scope="module")
def room() -> tuple[Tensor, Cameras]:
    """Grey pictures of the corner of a papered room, and their cameras."""
    poses = np.stack([around(0.5 + 0.12 * i, 0.55 + 0.05 * (i % 3)) for i in range(VIEWS)])
    pictures = torch.from_numpy(np.stack([photograph(c2w) for c2w in poses]))[..., 0] / 255
    return pictures, Cameras.pinhole(torch.from_numpy(poses), FOCAL, WIDTH, HEIGHT)


def surface(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Views, places and inverse depths of points on the room's three walls."""
    generator = torch.Generator().manual_seed(1)
    hosts = torch.arange(VIEWS).repeat_interleave(60)
    x, y = (torch.randint(20, side - 20, (len(hosts),), generator=generator) for side in (WIDTH, HEIGHT))
    d, o = cameras.directions(hosts, x, y), cameras.centers[hosts]
    t = torch.where(d < 0, (-1.5 - o) / d, torch.inf).amin(-1)
    return hosts, torch.stack([x, y], -1) + 0.5, 1 / t


def disturbed(cameras: Cameras, turn: float, seed: int) -> Cameras:
    """Cameras turned about the corner of the room, which their pictures hardly show, and by a tenth of that about themselves."""
    generator = torch.Generator().manual_seed(seed)
    about, by = (axis_angle_to_matrix(share * turn * torch.randn(VIEWS, 3, generator=generator)) for share in (1.0, 0.1))
    corner = torch.full((3, 1), -1.5)
    centres = about @ (cameras.c2w[:, :, 3:] - corner) + corner
    return replace(cameras, c2w=torch.cat([by @ about @ cameras.c2w[:, :, :3], centres], -1))


@pytest.mark.parametrize("seed", range(3))
def test_cameras_are_found_again(room: tuple[Tensor, Cameras], seed: int) -> None:
    """From places about 2 degrees to the side, and depths that are 5 % off; with the focal length, which begins 4 % too long.

    The noise of these pictures moves cameras from the truth by 0.1 degrees; the tolerance is that of COLMAP's poses in test_photos.
    """
    pictures, truth = room
    hosts, pixels, rho = surface(truth)
    rho = rho * (1 + 0.05 * torch.randn(len(rho), generator=torch.Generator().manual_seed(seed)))
    start = disturbed(truth, 0.03, seed)
    before = camera_errors(start, truth)
    found, _, likeness = adjust_photometrically(pictures, start, hosts, pixels, rho)
    after = camera_errors(found, truth)
    assert after["rotation_degrees"] < 0.3 and after["rotation_degrees"] < 0.03 * before["rotation_degrees"]
    assert after["translation_percent"] < 1 and after["translation_percent"] < 0.03 * before["translation_percent"]
    assert likeness > 0.8
    longer = replace(start, fx=1.04 * start.fx, fy=1.04 * start.fy)
    found, _, _ = adjust_photometrically(pictures, longer, hosts, pixels, rho, learn_focal=True)
    assert camera_errors(found, truth)["focal_percent"] < 1


def test_hidden_pixels_do_not_count(room: tuple[Tensor, Cameras]) -> None:
    pictures, truth = room
    hosts, pixels, rho = surface(truth)
    shown = pictures.clone()
    shown[:, :, :140] = torch.nan
    seen = pixels[:, 0] > 145
    start = disturbed(truth, 0.03, 0)
    found, _, likeness = adjust_photometrically(shown, start, hosts[seen], pixels[seen], rho[seen])
    assert camera_errors(found, truth)["rotation_degrees"] < 0.1 * camera_errors(start, truth)["rotation_degrees"] and likeness > 0.8


def test_pictures_of_different_places_are_unlike(room: tuple[Tensor, Cameras]) -> None:
    pictures, truth = room
    strangers = torch.stack([picture.rot90(2 * (i % 2)).roll(61 * i, 1) for i, picture in enumerate(pictures)])
    hosts, pixels, rho = surface(truth)
    assert adjust_photometrically(strangers, truth, hosts, pixels, rho)[2] < 0.25


def test_a_method_without_surfaces_keeps_its_cameras() -> None:
    scene = load("procedural:forward-facing", Config(size=24, views=6, test_views=0, val_views=0, samples=1))
    camera = CameraConfig(learn=True, disturb=0.01, adjust_at=[0.5])
    method = Instant(InstantConfig(log2_entries=10, levels=2, camera=camera), scene).eval()
    assert method.cameras is not None
    before = method.cameras(1.0).c2w
    assert adjust(method, scene, 0, True) == 0
    assert torch.equal(method.cameras(1.0).c2w, before)


def test_a_run_that_adjusts_its_cameras_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first adjustment the field starts again, once."""
    monkeypatch.setattr(adjusting, "OPAQUE", -1.0)
    words = ["--scene.size=24", "--scene.views=8", "--scene.samples=1", "--steps=24", "--model.log2-entries=10", "--log.print-every=0"]
    words += ["--recipe=instant-unknown", "--model.camera.adjust-at", "0.3", "0.6", "--threads=1", "--model.camera.focal=exp"]
    plan = plan_of(request("instant", "procedural:forward-facing", words))
    scene = plan.load_scene()

    def trained(name: str, stops: list[int]) -> Trainer:
        for stop in stops:
            stopping = Callback(stop, lambda trainer: setattr(trainer, "interrupted", 2))
            Trainer(lambda: plan.make_method(scene), scene, plan.config, tmp_path / name, [stopping], quiet=True).train()
        trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, tmp_path / name, quiet=True)
        trainer.train()
        return trainer

    whole, parts = trained("whole", []), trained("parts", [5, 11])
    for trainer in (whole, parts):
        assert trainer.state.step == 24 and trainer.state.adjusted == 2 and trainer.state.field_start == 8
    a, b = whole.method.state_dict(), parts.method.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_pictures_that_stay_unlike_are_called_hopeless() -> None:
    with pytest.warns(UserWarning, match="agree to 10% only"):
        PoseHistory().check_likeness(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PoseHistory().check_likeness(0.4)


@pytest.mark.slow
def test_a_search_from_nothing_finds_the_cameras(tmp_path: Path) -> None:
    """The whole of it, in some three minutes of one thread: within half a degree and one percent."""
    words = ["--recipe=instant-unknown", "--model.camera.focal=given", "--steps=4000", "--threads=1"]
    plan = plan_of(request("instant", "procedural:forward-facing", words))
    scene = plan.load_scene()
    trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, tmp_path, quiet=True)
    trainer.train()
    errors = learned_camera_errors(trainer.method, trainer.method.place(scene))["cameras"]
    print(errors)
    assert errors["rotation_degrees"] < 0.5 and errors["translation_percent"] < 1


@pytest.mark.parametrize("shares", [[0.0], [0.5, 0.2], [1.5]])
def test_shares_of_the_budget_are_checked(shares: list[float]) -> None:
    scene = load("procedural", Config(size=8, views=6, samples=1))
    with pytest.raises(ConfigError, match="adjust_at"):
        Instant(InstantConfig(camera=CameraConfig(learn=True, adjust_at=shares)), scene)
