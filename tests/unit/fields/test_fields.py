"""Encodings, networks and the methods made of them: explicit float64 twins, every combination of switches, and a picture learnt."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import assert_close
from nerfit.cameras import Cameras
from nerfit.errors import ConfigError
from nerfit.fields.frequency import encoded_size, frequency_encoding
from nerfit.fields.mlp import ImageMLP, Layers, NerfMLP, linear
from nerfit.methods.base import Method
from nerfit.methods.batch import Batch
from nerfit.methods.image import Image, ImageConfig
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.views import render_view
from nerfit.metrics.psnr_ssim import psnr
from nerfit.sampling.shuffle import mix
from nerfit.scenes.scene import Scene

SEEDS = st.integers(0, 2**32 - 1)
SMALL = st.integers(1, 9)
VIEWDIRS = pytest.mark.parametrize("viewdirs", [True, False])


# --- Frequency encoding ---------------------------------------------------------------------------------------------


def encoding_twin(x: list[float], frequencies: int) -> list[float]:
    """x, then all sines and all cosines of each octave."""
    out = list(x)
    for k in range(frequencies):
        out += [math.sin(2**k * v) for v in x]
        out += [math.cos(2**k * v) for v in x]
    return out


@given(seed=SEEDS, rows=SMALL, dim=st.integers(1, 4), frequencies=st.integers(0, 12))
def test_frequency_encoding_follows_its_twin(seed, rows, dim, frequencies):
    x = torch.tensor(np.random.default_rng(seed).uniform(-4, 4, (rows, dim)), dtype=torch.float32)
    out = frequency_encoding(x, frequencies)
    assert_close(out, [encoding_twin(row, frequencies) for row in x.tolist()])
    assert out.shape[1] == encoded_size(dim, frequencies)


def test_nerf_encodes_63_and_27_numbers_over_any_leading_axes():
    assert (encoded_size(3, 10), encoded_size(3, 4)) == (63, 27)
    x = torch.rand(2, 5, 3)
    assert torch.equal(frequency_encoding(x, 4)[1, 3], frequency_encoding(x[1, 3], 4))


# --- Networks -------------------------------------------------------------------------------------------------------


def layer_twin(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    """W x + b for one sample."""
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()


def nerf_twin(net: NerfMLP, position: np.ndarray, direction: np.ndarray | None) -> list[float]:
    """Raw density and colour of one sample: the encoded position joins in front of h, the direction behind the bottleneck."""
    h = position
    for i, layer in enumerate(net.trunk):
        h = np.maximum(layer_twin(layer, h), 0)
        if i in net.skips:
            h = np.concatenate([position, h])
    if direction is None:
        *rgb, density = layer_twin(net.output, h)
    else:
        (density,) = layer_twin(net.density, h)
        view = np.maximum(layer_twin(net.view, np.concatenate([layer_twin(net.bottleneck, h), direction])), 0)
        rgb = layer_twin(net.rgb, view)
    return [float(density), *map(float, rgb)]


def some_net(viewdirs: bool, depth: int = 3, width: int = 8, skips: tuple[int, ...] = (1,), init: str = "torch") -> NerfMLP:
    torch.manual_seed(0)
    return NerfMLP(7, 5 if viewdirs else 0, Layers(depth, width, list(skips)), init)


@VIEWDIRS
@pytest.mark.parametrize(("depth", "width", "skips"), [(8, 32, (4,)), (3, 9, ()), (3, 8, (2,)), (4, 8, (0, 2)), (1, 2, (0,))])
def test_nerfs_network_follows_its_twin(viewdirs, depth, width, skips):
    net = some_net(viewdirs, depth, width, skips)
    position, direction = torch.randn(3, 4, 7), torch.randn(3, 5)
    density, rgb = net(position, direction if viewdirs else None)
    p, d = position.double().numpy(), direction.double().numpy()
    twin = [[nerf_twin(net, p[i, j], d[i] if viewdirs else None) for j in range(4)] for i in range(3)]
    assert_close(density, np.array(twin)[..., 0])
    assert_close(rgb, np.array(twin)[..., 1:])
    assert torch.equal(net.raw_density(position), density)
    assert_close(net.raw_density(position[0, 0]), density[0, 0])


@pytest.mark.parametrize(("directions", "count"), [(27, 595_844), (0, 494_084)])
def test_the_papers_network_has_the_papers_parameters(directions, count):
    net = NerfMLP(63, directions, Layers(8, 256, [4]), "torch")
    assert sum(p.numel() for p in net.parameters()) == count


def test_nerf_has_a_coarse_and_a_fine_network(scene):
    method = Nerf(NerfConfig(), scene)
    assert sum(p.numel() for p in method.parameters()) == 1_191_688
    assert sum(p.numel() for p in Nerf(NerfConfig(fine_samples=0), scene).parameters()) == 595_844
    assert sum(p.numel() for p in Nerf(NerfConfig(viewdirs=False), scene).parameters()) == 2 * 494_084
    assert sum(len(group["params"]) for group in method.parameter_groups()) == len(list(method.parameters()))
    deeper = Nerf(NerfConfig(fine_depth=3, fine_width=32, skips=[1]), scene)
    assert deeper.fine is not None
    assert [(n.network.layers.depth, n.network.layers.width) for n in (deeper.coarse, deeper.fine)] == [(8, 256), (3, 32)]


@given(seed=SEEDS, sizes=st.lists(SMALL, min_size=1, max_size=4), rows=SMALL, out=SMALL)
def test_linear_is_the_layer_of_the_concatenation(seed, sizes, rows, out):
    torch.manual_seed(seed)
    layer, inputs = nn.Linear(sum(sizes), out), [torch.randn(rows, size) for size in sizes]
    twin = [layer_twin(layer, row) for row in torch.cat(inputs, -1).double().numpy()]
    assert_close(linear(layer, *inputs), twin)


def test_linear_broadcasts_what_varies_per_ray():
    layer, each, ray = nn.Linear(5, 6), torch.randn(4, 7, 3, requires_grad=True), torch.randn(4, 1, 2, requires_grad=True)
    assert_close(linear(layer, each, ray), layer(torch.cat([each, ray.expand(4, 7, 2)], -1)))
    grads = torch.autograd.grad(linear(layer, each, ray).square().sum(), (each, ray, layer.weight))
    twins = torch.autograd.grad(layer(torch.cat([each, ray.expand(4, 7, 2)], -1)).square().sum(), (each, ray, layer.weight))
    for grad, twin in zip(grads, twins, strict=True):
        assert_close(grad, twin)


@VIEWDIRS
def test_glorot_weights_fill_their_interval_and_biases_are_zero(viewdirs):
    layers = [m for m in some_net(viewdirs, 4, 64, (1,), "glorot").modules() if isinstance(m, nn.Linear)]
    assert len(layers) == (8 if viewdirs else 5)
    for layer in layers:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert not layer.bias.any()
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert any(m.bias.any() for m in some_net(viewdirs, init="torch").modules() if isinstance(m, nn.Linear))


@given(seed=SEEDS, rows=SMALL, depth=st.integers(1, 4), width=SMALL)
def test_the_image_network_follows_its_twin(seed, rows, depth, width):
    torch.manual_seed(seed)
    net, x = ImageMLP(6, depth, width), torch.randn(rows, 6)
    twin = []
    for h in x.double().numpy():
        for layer in net.layers:
            h = np.maximum(layer_twin(layer, h), 0)
        twin.append(layer_twin(net.rgb, h))
    assert_close(net(x), twin)


# --- NeRF -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Two views that look at the origin from opposite sides, 4 away, with random colours and alpha."""
    c2w = torch.eye(4)[None, :3].repeat(2, 1, 1)
    c2w[1, 0, 0] = c2w[1, 2, 2] = -1
    c2w[:, 2, 3] = torch.tensor([4.0, -4.0])
    pixels = torch.randint(0, 256, (2 * 5 * 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Scene("noise", "test", Cameras.pinhole(c2w, 6.0, 5, 4), 2.0, 6.0, {"train": [0, 1], "test": [0]}, pixels)


def train_step(method: Method, scene: Scene, step: int = 0) -> tuple[Batch, torch.Tensor]:
    """The batch and loss of one step, back-propagated."""
    batch = method.next_batch(scene, step, torch.Generator().manual_seed(mix(0, step)))
    loss = torch.stack(list(method.losses(method.render(batch), batch, step).values())).sum()
    method.zero_grad()
    loss.backward()
    return batch, loss


SWITCHES: dict[str, tuple[Any, Any]] = {
    "frequencies": (0, 2),
    "view_frequencies": (0, 2),
    "density_activation": ("relu", "softplus"),
    "raw_noise": (0.0, 1.0),
    "init": ("glorot", "torch"),
    "batching": ("image", "all"),
}


@VIEWDIRS
@pytest.mark.parametrize("fine", [0, 5])
@pytest.mark.parametrize("lindisp", [False, True])
def test_every_combination_of_switches_renders_and_learns(viewdirs, fine, lindisp, scene):
    for switches in itertools.product(*SWITCHES.values()):
        choices: dict[str, Any] = dict(zip(SWITCHES, switches, strict=True))
        tiny: dict[str, Any] = {"depth": 2, "width": 6, "skips": [0], "samples": 4, "rays": 7, "density_bias": 0.2}
        config = NerfConfig(viewdirs=viewdirs, fine_samples=fine, lindisp=lindisp, **tiny, **choices)
        torch.manual_seed(0)
        method = Nerf(config, scene)
        batch, loss = train_step(method, scene)
        assert (len(batch), loss.shape, bool(loss.isfinite())) == (7, (), True), config
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters()), config
        rendering = method.render(batch)
        assert set(method.losses(rendering, batch, 0)) == ({"rgb", "rgb_coarse"} if fine else {"rgb"})
        assert set(method.scalars(rendering, batch)) == ({"psnr_coarse"} if fine else set())
        shapes = {k: tuple(getattr(rendering, k).shape) for k in ("rgb", "depth", "opacity", "disparity", "weights")}
        assert shapes == {"rgb": (7, 3), "weights": (7, 4 + fine)} | dict.fromkeys(("depth", "opacity", "disparity"), (7,)), config
        assert all(getattr(rendering, k).isfinite().all() for k in shapes), config
        assert method.density(torch.zeros(3, 3)).shape == (3,)
        assert (method.density(torch.randn(9, 3)) >= 0).all()


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@VIEWDIRS
@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_a_coarse_rendering_follows_its_twin_from_ray_to_colour(viewdirs, activation, scene):
    torch.manual_seed(0)
    config = NerfConfig(
        depth=2, width=8, skips=[0], viewdirs=viewdirs, frequencies=2, view_frequencies=1, samples=6, fine_samples=0,
        density_activation=activation, density_bias=0.2, init="torch",
    )  # fmt: skip
    method = Nerf(config, scene)
    batch = method.view_batch(scene, scene.cameras, 1, torch.arange(20))
    rays = batch.rays
    assert rays is not None
    out = method.render(batch)
    for r in range(20):
        o, d = rays.origins[r].tolist(), rays.directions[r].tolist()
        norm = math.hypot(*d)
        toward = np.array(encoding_twin([x / norm for x in d], 1)) if viewdirs else None
        t, through, color, depth, opacity = [2 + 4 * i / 5 for i in range(6)], 1.0, np.zeros(3), 0.0, 0.0
        last = 0.0 if activation == "softplus" else 1e10
        for i in range(6):
            point = [a + t[i] * b for a, b in zip(o, d, strict=True)]
            sigma, *rgb = nerf_twin(method.coarse.network, np.array(encoding_twin(point, 2)), toward)
            sigma = max(sigma + 0.2, 0) if activation == "relu" else softplus(sigma + 0.2 - 1)
            alpha = 1 - math.exp(-sigma * norm * (t[i + 1] - t[i] if i < 5 else last))
            color += through * alpha / (1 + np.exp(-np.array(rgb)))
            depth, opacity, through = depth + through * alpha * t[i], opacity + through * alpha, through * (1 - alpha)
        assert out.depth is not None
        assert_close(out.rgb[r], color + 1 - opacity)
        assert_close(out.depth[r], depth)


def test_the_losses_are_mean_squared_errors(scene):
    torch.manual_seed(0)
    method = Nerf(NerfConfig(depth=1, width=4, skips=[], samples=4, fine_samples=3, rays=9), scene)
    batch, _ = train_step(method, scene)
    assert batch.target is not None
    rendering = method.render(batch)
    for name, rgb in (("rgb", rendering.rgb), ("rgb_coarse", rendering.extras["rgb_coarse"])):
        error = [(a - b) ** 2 for a, b in zip(rgb.flatten().tolist(), batch.target.flatten().tolist(), strict=True)]
        assert float(method.losses(rendering, batch, 0)[name].detach()) == pytest.approx(sum(error) / len(error), rel=1e-5)
    coarse = method.scalars(rendering, batch)["psnr_coarse"]
    assert coarse == pytest.approx(-10 * math.log10(float(method.losses(rendering, batch, 0)["rgb_coarse"].detach())), abs=1e-3)


def test_a_small_nerf_learns(scene):
    torch.manual_seed(0)
    method = Nerf(NerfConfig(depth=2, width=32, skips=[], samples=8, fine_samples=8, frequencies=4, rays=20), scene)
    optimiser = torch.optim.Adam(method.parameters(), 5e-3)
    losses = []
    for step in range(80):
        losses.append(float(train_step(method, scene, step)[1].detach()))
        optimiser.step()
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


@VIEWDIRS
@pytest.mark.parametrize("fine", [0, 5])
def test_samples_per_ray_counts_network_evaluations(viewdirs, fine, scene):
    method = Nerf(NerfConfig(depth=1, width=4, skips=[], viewdirs=viewdirs, samples=4, fine_samples=fine), scene)
    counted = []
    for net in (method.coarse, method.fine):
        if net is not None:
            net.register_forward_hook(lambda _net, inputs, _out: counted.append(inputs[0].shape[1]))
    method.render(method.view_batch(scene, scene.cameras, 0, torch.arange(3)))
    assert method.samples_per_ray() == sum(counted) == (4 + 9 if fine else 4)


UNUSABLE = [
    ({"lindisp": True, "ndc": True}, "lindisp"),
    ({"lindisp": True, "near": 0.0}, "lindisp"),
    ({"samples": 2}, "samples"),
    ({"samples": 0, "fine_samples": 0}, "samples"),
    ({"fine_samples": -1}, "fine_samples"),
    ({"depth": 0}, "depth"),
    ({"width": 0}, "width"),
    ({"width": 1}, "width"),
    ({"fine_depth": 0}, "fine_depth"),
    ({"fine_width": 1}, "fine_width"),
    ({"rays": 0}, "rays"),
    ({"frequencies": -1}, "frequencies"),
    ({"view_frequencies": -1}, "view_frequencies"),
    ({"precrop_steps": 9, "precrop_fraction": 0.0}, "precrop_fraction"),
    ({"precrop_steps": 9, "precrop_fraction": 1.5}, "precrop_fraction"),
]


@pytest.mark.parametrize(("choices", "key"), UNUSABLE)
def test_settings_that_cannot_work_are_refused_by_name(choices, key, scene):
    choices = dict(choices)
    near, ndc = choices.pop("near", 2.0), choices.pop("ndc", False)
    where = Scene("s", "test", scene.cameras, near, 6.0, scene.splits, scene.pixels, ndc=ndc)
    with pytest.raises(ConfigError, match=rf"model\.{key}\b"):
        Nerf(NerfConfig(**choices), where)


def test_three_samples_are_enough_for_importance_samples(scene):
    method = Nerf(NerfConfig(depth=1, width=4, skips=[], samples=3, fine_samples=2), scene)
    assert train_step(method, scene)[1].isfinite()


def test_unused_keys_are_named():
    always = {"first_w0", "hidden_w0", "area_weights"}
    nothing = NerfConfig(fine_samples=0, viewdirs=False)
    assert set(nothing.unused()) == always | {"fine_depth", "fine_width", "view_frequencies", "precrop_fraction"}
    assert set(NerfConfig(precrop_steps=1).unused()) == always
    assert set(NerfConfig(precrop_steps=1, network="siren", batching="all").unused()) == {"init"}


# --- Image fitting --------------------------------------------------------------------------------------------------


def picture_scene(width: int = 17, height: int = 12, channels: int = 3, background: Any = "white") -> Scene:
    """A smooth, coloured picture; with 4 channels its lower half is half transparent."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    rgb = [np.sin(7 * x + 3 * y), np.cos(5 * y), np.sin(9 * x * y)]
    levels = np.stack(rgb, -1) * 100 + 128
    if channels == 4:
        levels = np.concatenate([levels, np.where(y > 0.3, 128.0, 255.0)[..., None]], -1)
    pixels = torch.from_numpy(levels.astype(np.uint8).reshape(-1, channels))
    camera = Cameras.pinhole(torch.eye(4)[None], float(width), width, height)
    return Scene("picture", "image", camera, 0.0, 1.0, {"train": [0], "val": [0], "test": [0]}, pixels, background=background)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5), (4, 1), (5, 3), (4, 6)])
def test_uv_runs_from_the_first_to_the_last_pixel_centre(width, height):
    scene = picture_scene(width, height)
    batch = Image(ImageConfig(width=4), scene).view_batch(scene, scene.cameras, 0, torch.arange(width * height))
    twin = [[i / (width - 1) if width > 1 else 0, j / (height - 1) if height > 1 else 0] for j in range(height) for i in range(width)]
    assert batch.coordinates is not None
    assert batch.rays is None
    assert_close(batch.coordinates + 1, np.array(twin) + 1)


@pytest.mark.parametrize(("channels", "background", "level"), [(3, "white", 1), (4, "white", 1), (4, "black", 0)])
def test_image_batches_are_pixels_with_their_colours(channels, background, level):
    scene = picture_scene(channels=channels, background=background)
    method = Image(ImageConfig(width=4, pixels=50), scene)
    picture = scene.image(0, level)
    drawn = []
    for step in range(2):
        batch = method.next_batch(scene, step, torch.Generator().manual_seed(step))
        assert batch.coordinates is not None
        assert batch.target is not None
        x, y = (batch.coordinates * torch.tensor([16, 11])).round().long().T
        assert_close(batch.target, picture[y, x])
        drawn.append(set(zip(x.tolist(), y.tolist(), strict=True)))
        assert len(drawn[-1]) == 50
    assert drawn[0] != drawn[1]
    assert len(method.next_batch(picture_scene(3, 3), 0, torch.Generator())) == 9


def test_a_small_picture_is_learnt_beyond_30_db():
    scene = picture_scene(24, 16)
    torch.manual_seed(0)
    method = Image(ImageConfig(depth=2, width=64, frequencies=5), scene)
    optimiser = torch.optim.Adam(method.parameters(), 5e-3)
    before = psnr(render_view(method, scene, scene.cameras, 0, 100).rgb, scene.image(0))
    for step in range(250):
        train_step(method, scene, step)
        optimiser.step()
    view = render_view(method, scene, scene.cameras, 0, 100)
    assert psnr(view.rgb, scene.image(0)) > 30 > 20 > before
    assert (view.depth, view.opacity) == (None, None)
    twice = render_view(method, scene, scene.cameras.rescale(2), 0, 100).rgb
    assert twice.shape == (32, 48, 3)
    assert torch.equal(twice[0, 0], view.rgb[0, 0])


@pytest.mark.parametrize("key", ["depth", "width", "pixels"])
def test_an_image_network_needs_layers_and_pixels(key):
    with pytest.raises(ConfigError, match=rf"model\.{key}\b"):
        Image(ImageConfig(**{key: 0}), picture_scene())


def test_a_picture_has_no_density():
    with pytest.raises(ConfigError, match="no density"):
        Image(ImageConfig(width=4), picture_scene()).density(torch.zeros(1, 3))
