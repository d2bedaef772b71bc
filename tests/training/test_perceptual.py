"""The loss on whole views: its gradient in strips against the direct one, the views it takes, and what it does to a training."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import assert_close
from nerfit.cameras import Cameras
from nerfit.cameras.learned import CameraConfig
from nerfit.cameras.poses import look_at, pose_between
from nerfit.errors import ConfigError, NerfitError
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.instant import Instant, InstantConfig
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.rendering.volume import Rendering
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig, SparseAdam
from nerfit.training.perceptual import Perceptual, PerceptualConfig, backward_in_strips
from nerfit.training.trainer import LoopConfig, Trainer
from networks import save_clip, save_lpips

CPU = torch.device("cpu")
ALEX = PerceptualConfig(net="alex", every=1, size=40, between=0.0)
NERF = NerfConfig(depth=2, width=16, skips=[], samples=8, fine_samples=8, rays=64, batching="all")
INSTANT = InstantConfig(levels=4, log2_entries=12, finest=64, width=32, samples=2048, march_steps=64, occupancy_probes=4096)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lpips("alex", tmp_path_factory.mktemp("perceptual")).parent


@pytest.fixture(scope="module")
def scene() -> Scene:
    return load("procedural", Config(size=36, views=5, val_views=1, test_views=1, samples=1))


class Canvas(Method):
    """Every view's picture is a parameter; a pixel's coordinates are its view and its place."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.pictures = nn.Parameter(torch.full((len(scene.cameras), int(scene.cameras.width[0] * scene.cameras.height[0]), 3), 0.5))
        self.cameras_asked: list[Cameras] = []

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def view_batch(self, scene: Scene, cameras: Cameras, view: int, pixels: Tensor, look: Cameras | None = None) -> Batch:
        self.cameras_asked.append(cameras[view])
        return Batch(coordinates=torch.stack([torch.full_like(pixels, view), pixels], -1))

    def render(self, batch: Batch) -> Rendering:
        assert batch.coordinates is not None
        return Rendering(self.pictures[tuple(batch.coordinates.T)])

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        raise NotImplementedError


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31))
def test_strips_give_the_direct_gradient(pixels: int, chunk: int, seed: int) -> None:
    """Of a loss that is no sum over pixels, through a renderer that is not linear; and no more than a chunk has a graph at once."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    basis = torch.randn(pixels, 3, 7, generator=generator, dtype=torch.float64)
    with_graph: list[int] = []

    def render(piece: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            with_graph.append(len(piece))
        return torch.sigmoid(basis[piece] @ field)

    def loss(picture: Tensor) -> Tensor:
        return picture.std() + (picture[0] * picture[-1]).sum() ** 2

    value = backward_in_strips(render, torch.arange(pixels), chunk, loss, lambda x: 8 * x)
    assert max(with_graph) <= chunk and sum(with_graph) == pixels
    direct = loss(render(torch.arange(pixels)))
    (expected,) = torch.autograd.grad(direct, field)
    assert field.grad is not None and torch.allclose(field.grad, 8 * expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(value, direct) and not value.requires_grad


def gradients(method: Method, perceptual: Perceptual, chunk: int, step: int = 1) -> dict[str, Tensor]:
    method.zero_grad()
    perceptual.backward(method, 0, step, chunk)
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_strips_of_real_methods(scene: Scene, weights: Path, between: float) -> None:
    torch.manual_seed(0)
    learned = Nerf(replace(NERF, camera=CameraConfig(learn=True)), scene)
    perceptual = Perceptual(replace(ALEX, between=between), scene, CPU, weights)
    whole, strips = gradients(learned, perceptual, 10_000), gradients(learned, perceptual, 500)
    assert ("cameras.turn" in whole) == (between == 0), "cameras between others are not learned"
    assert whole.keys() == strips.keys() and len(whole) > 4
    for name, expected in whole.items():
        assert expected.abs().max() > 0 or name == "cameras.turn"
        assert_close(strips[name], expected, 1e-3)
    instant = Instant(INSTANT, scene)
    instant.before_step(0)
    whole, strips = gradients(instant, perceptual, 10_000), gradients(instant, perceptual, 500)
    assert set(whole) == {"field.table", "field.weights"}
    for name, expected in whole.items():
        assert_close(strips[name], expected, 1e-3)


def test_the_loss_is_that_of_the_picture(scene: Scene, weights: Path) -> None:
    """A step's view, looked up by its gradient: the network's difference between what the method shows and the picture's pixels."""
    canvas, perceptual = Canvas(scene), Perceptual(replace(ALEX, weight=0.3), scene, CPU, weights)
    nn.init.uniform_(canvas.pictures)
    views = set()
    for step in range(1, 9):
        canvas.zero_grad()
        value = perceptual.backward(canvas, 0, step, 10_000)
        assert canvas.pictures.grad is not None
        (view,) = canvas.pictures.grad.abs().amax((1, 2)).nonzero()[:, 0].tolist()
        views.add(view)
        shown = canvas.pictures[view].detach().reshape(36, 36, 3).requires_grad_()
        expected = 0.3 * perceptual.metric.difference(shown, scene.image(view, 1.0))
        assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert_close(canvas.pictures.grad[view].reshape(36, 36, 3), torch.autograd.grad(expected, shown)[0], 1e-4)
    assert len(views) > 1 and views <= set(scene.splits["train"])


def test_what_masks_hide_is_not_evaluated(scene: Scene, weights: Path) -> None:
    assert scene.pixels is not None
    hidden = torch.zeros(len(scene.pixels), dtype=torch.bool)
    hidden[::3] = True
    alpha = torch.where(hidden, 0, 255).to(torch.uint8)
    masked = replace(scene, pixels=torch.cat([scene.pixels[:, :3], alpha[:, None]], 1), masked=True)
    canvas = Canvas(masked)
    gradient = gradients(canvas, Perceptual(ALEX, masked, CPU, weights), 10_000)["pictures"].reshape(-1, 3)
    assert not gradient[hidden[: len(gradient)]].any() and gradient.any()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.none() | st.integers(1, 9), st.integers(0, 2**31))
def test_windows_are_pixels_of_the_picture(width: int, height: int, size: int, stride: int | None, seed: int) -> None:
    perceptual = Perceptual.__new__(Perceptual)
    cameras = Cameras.pinhole(torch.eye(4)[None], 1.0, width, height)
    perceptual.config = PerceptualConfig(net="alex", size=size, stride=stride)
    perceptual.scene = Scene("box", "made-up", cameras, 1.0, 2.0, {"train": [0]})
    windows = perceptual._window(0, torch.Generator().manual_seed(seed))
    for places, side in zip(windows, (height, width), strict=True):
        assert 1 <= len(places) <= size and int(places[0]) >= 0 and int(places[-1]) < side
        assert len(set(places.diff().tolist())) <= 1
    step = math.ceil(max(width, height) / size)
    if stride is None and min(width, height) >= step:  # all of the view is seen
        assert all(side - len(places) * step < step for places, side in zip(windows, (height, width), strict=True))
    if stride == 1:
        assert [len(places) for places in windows] == [min(size, height), min(size, width)]


numbers = st.floats(-1, 1)


@given(st.lists(st.tuples(numbers, numbers, st.floats(0.2, 1), st.floats(1, 3)), min_size=1, max_size=4), st.integers(0, 2**31))
def test_cameras_between_others(places: list[tuple[float, ...]], seed: int) -> None:
    """Around a point: they look at it from a distance between the others'. Alone, a camera stays where it is."""
    point, up = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    outwards = torch.tensor([p[:3] for p in places], dtype=torch.float64)
    distances = torch.tensor([p[3] for p in places], dtype=torch.float64)
    positions = point + torch.nn.functional.normalize(outwards, dim=-1) * distances[:, None]
    c2w = torch.stack([look_at(p, point, up) for p in positions])
    shares = torch.rand(len(c2w), generator=torch.Generator().manual_seed(seed)) + 1e-3
    pose = pose_between(c2w, shares / shares.sum(), point)
    away = pose[:, 3] - point
    assert distances.min() - 1e-6 <= away.norm() <= distances.max() + 1e-6
    assert torch.allclose(pose[:, 2], away / away.norm(), atol=1e-9)
    assert torch.allclose(pose[:, :3].T @ pose[:, :3], torch.eye(3, dtype=torch.float64), atol=1e-9)
    middle = pose_between(c2w, shares / shares.sum())
    assert torch.allclose(middle[:, 3], (shares / shares.sum()).double() @ positions, atol=1e-6)
    alone = torch.eye(len(c2w))[0]
    for around in (None, point):
        assert torch.allclose(pose_between(c2w, alone, around), c2w[0], atol=1e-6)


def test_cameras_between_are_new_ones_and_the_picture_is_another(scene: Scene, weights: Path) -> None:
    canvas, perceptual = Canvas(scene), Perceptual(replace(ALEX, between=0.5), scene, CPU, weights)
    known, away = scene.cameras.c2w[scene.splits["train"]], scene.cameras.centers.norm(dim=-1)
    new = 0
    for step in range(1, 41):
        perceptual.backward(canvas, 0, step, 10_000)
        (camera,) = canvas.cameras_asked[-1].c2w
        if not (known - camera).abs().amax((1, 2)).min() < 1e-6:
            new += 1
            assert away.min() - 0.1 < camera[:, 3].norm() < away.max() + 0.1
    assert 10 < new < 30


def trainer(scene: Scene, folder: Path, weights: Path | None, perceptual: PerceptualConfig, method: Any = Nerf, **choices: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    optim = OptimConfig(optimizer="sparse-adam" if method is Instant else "adam", lr=5e-3, schedule="constant")
    log = LogConfig(image_every=0, save_every=0)
    loop = LoopConfig(**({"optim": optim, "log": log, "steps": 3, "device": "cpu", "perceptual": perceptual} | choices))
    config: Any = INSTANT if method is Instant else NERF
    return Trainer(lambda: method(config, scene), scene, loop, folder, quiet=True, lpips_weights=weights)


def trained(run: Trainer) -> dict[str, Tensor]:
    run.train()
    return {name: t.clone() for name, t in run.method.state_dict().items()}


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


ALTERED = {"weight": 0.5, "every": 2, "size": 40, "stride": 2, "between": 1.0, "until": 0.5, "net": "none"}


def test_every_key_acts_or_is_declared_without_effect(weights: Path, tmp_path: Path) -> None:
    scene = load("procedural", Config(size=66, views=2, val_views=1, test_views=1, samples=1))
    clip = save_clip(tmp_path / "clip")
    base = replace(ALEX, between=0.5, size=66)
    plain = trained(trainer(scene, tmp_path / "plain", weights, base))
    assert get_type_hints(PerceptualConfig).keys() == ALTERED.keys() | {"clip"}
    for f in dataclasses.fields(PerceptualConfig):
        altered = replace(base, **{f.name: ALTERED.get(f.name, str(clip))})
        assert differ(plain, trained(trainer(scene, tmp_path / f.name, weights, altered))) == (f.name not in base.unused()), f.name
    other = [trained(trainer(scene, tmp_path / f"clip{n}", None, replace(base, net="clip", clip=str(clip), weight=w))) for n, w in
             enumerate((0.1, 0.5))]  # fmt: skip
    assert differ(plain, other[0]) and differ(*other)
    assert PerceptualConfig().unused().keys() == ALTERED.keys() - {"net"} | {"clip"}
    assert not replace(base, net="clip").unused()


@pytest.mark.parametrize("method", [Nerf, Instant])
def test_a_resumed_run_takes_the_same_steps(scene: Scene, weights: Path, tmp_path: Path, method: Any) -> None:
    scene, config = replace(scene, background="random"), replace(ALEX, between=0.5, every=2)
    through = trained(trainer(scene, tmp_path / "through", weights, config, method, steps=8))
    first = trainer(scene, tmp_path / "halves", weights, config, method, steps=8)
    after = first._average_weights

    def stop() -> None:
        after()
        first.interrupted = 2 if first.state.step == 4 else None

    first._average_weights = stop
    trained(first)
    assert not differ(through, trained(trainer(scene, tmp_path / "halves", weights, config, method, steps=8)))


def test_a_canvas_is_painted_by_the_loss_alone(scene: Scene, weights: Path) -> None:
    """From grey, by the network that is minimised; and by squared error, which the loss never sees."""
    canvas, perceptual = Canvas(scene), Perceptual(replace(ALEX, weight=1.0), scene, CPU, weights)
    view, optimizer = scene.splits["train"][0], torch.optim.Adam(canvas.parameters(), lr=0.02)
    truth = scene.image(view, 1.0)

    def errors() -> tuple[float, float]:
        shown = canvas.pictures.detach()[view].reshape(truth.shape)
        return float(perceptual.metric.difference(shown, truth)), float((shown - truth).square().mean())

    before = errors()
    for step in range(1, 101):
        optimizer.zero_grad()
        perceptual.backward(canvas, 0, step, 10_000)
        optimizer.step()
    after = errors()
    assert after[0] < 0.5 * before[0] and after[1] < 0.8 * before[1], (before, after)


def test_the_table_of_a_hash_grid_takes_one_gradient_by_itself_again(scene: Scene, weights: Path, tmp_path: Path) -> None:
    """After a step whose gradients came from a batch and a view, dense sums are gone."""
    run = trainer(scene, tmp_path / "run", weights, replace(ALEX, every=2), Instant, steps=4)
    assert isinstance(run.optimizer, SparseAdam)
    dense = []
    after = run.method.after_step

    def look(step: int) -> None:
        dense.append(run.method.field.table.grad is not None)  # pyright: ignore[reportAttributeAccessIssue]
        after(step)

    run.method.after_step = look
    run.train()
    if getattr(run.method.field.table, "factored_gradients", None) is not None:  # pyright: ignore[reportAttributeAccessIssue]
        assert dense == [False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"net": "vgg"}, "perceptual.net vgg needs a folder with vgg.safetensors: --lpips-weights"),
        ({"net": "clip", "clip": "/no/where"}, "/no/where"),
        ({"size": 20}, "make it larger"),
        ({"every": 0}, "perceptual.every must be at least 1"),
        ({"stride": 0}, "perceptual.stride must be at least 1"),
        ({"weight": 0.0}, "perceptual.weight must be above 0"),
        ({"between": 1.5}, "shares"),
        ({"until": 0.0}, "shares"),
    ],
)
def test_what_can_not_be_is_reported(
    scene: Scene, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    monkeypatch.delenv("NERFIT_LPIPS", raising=False)
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path))
    with pytest.raises(NerfitError) as caught:
        trainer(scene, tmp_path / "run", weights, replace(ALEX, **changes))
    assert expected in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert "size" in changes or "net" in changes or isinstance(caught.value, ConfigError)
