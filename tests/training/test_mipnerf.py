"""Mip-NeRF and mip-NeRF 360: sizes, what they render, who learns from which loss, and both trained for real."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of, prepare
from nerfit.commands.train_run import train
from nerfit.errors import ConfigError
from nerfit.evaluation.evaluate import EvalConfig, evaluate
from nerfit.methods.batch import Batch
from nerfit.methods.mipnerf import MipNerf, MipNerfConfig
from nerfit.methods.mipnerf360 import MipNerf360, MipNerf360Config
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.methods.views import render_view
from nerfit.outputs.pictures.histograms import HEIGHT, WIDTH, _bars, draw_histograms
from nerfit.rendering.volume import Rendering
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import LoopConfig, Trainer
from trainings import mean_test_psnr

SMALL = MipNerfConfig(depth=3, width=48, skips=[], frequencies=6, view_frequencies=2, samples=20, rays=256, batching="all")
SMALL360 = MipNerf360Config(
    depth=3, width=48, skips=[], bottleneck=32, view_width=24, proposal_depth=2, proposal_width=24, basis="axes", frequencies=6,
    view_frequencies=2, proposal_samples=[24], samples=12, rays=256, charbonnier=0.0, distortion=1e-3,
)  # fmt: skip
OPTIM = OptimConfig(lr=5e-3, schedule="log-linear", lr_final=5e-4, warmup_steps=50)
SMALL_NERF = NerfConfig(depth=2, width=24, skips=[], samples=8, fine_samples=8, batching="all")
KINDS: dict[str, tuple[Any, Any]] = {"mipnerf": (MipNerf, SMALL), "mipnerf360": (MipNerf360, SMALL360), "nerf": (Nerf, SMALL_NERF)}
BOTH = pytest.mark.parametrize("kind", ["mipnerf", "mipnerf360"])
Start = Callable[..., Trainer]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return replace(load("procedural", Config(size=32, views=12, test_views=2, samples=1)), background="random")


@pytest.fixture(scope="module")
def forward() -> Scene:
    return load("procedural:forward-facing", Config(size=32, samples=1))


@pytest.fixture
def start(tmp_path: Path, scene: Scene) -> Start:
    """A trainer in a folder of its own name."""

    def make(kind: str, name: str = "run", scene: Scene = scene, **choices: Any) -> Trainer:
        method, config = KINDS[kind]
        (tmp_path / name).mkdir(exist_ok=True)
        quiet = LogConfig(image_every=0, save_every=0)
        settings = LoopConfig(**({"optim": OPTIM, "log": quiet, "device": "cpu", "threads": 1} | choices))
        return Trainer(lambda: method(config, scene), scene, settings, tmp_path / name, quiet=True)

    return make


def of(kind: str, scene: Scene, **changes: Any) -> Any:
    torch.manual_seed(0)
    method, config = KINDS[kind]
    return method(replace(config, **changes), scene)


def parameters(method: torch.nn.Module) -> int:
    return sum(p.numel() for p in method.parameters())


def test_networks_have_the_papers_sizes(scene: Scene) -> None:
    """612,740 parameters for mip-NeRF; 9.0 million for mip-NeRF 360, of which 0.33 propose; its 256-wide model 0.8 million."""
    assert parameters(MipNerf(MipNerfConfig(), scene)) == 612_740
    large = MipNerf360(MipNerf360Config(), scene)
    assert parameters(large) == 9_007_493 and parameters(large.proposal) == 326_913
    plan = plan_of(request("mipnerf360", "procedural", ["--recipe", "mipnerf360"]))
    assert plan.config.model == MipNerf360Config()
    blender = replace(MipNerf360Config(), width=256, basis="axes", frequencies=16)
    assert 0.8e6 < parameters(MipNerf360(blender, scene)) < 0.85e6


# --- Trained --------------------------------------------------------------------------------------------------------


@BOTH
def test_an_object_is_learned(kind: str, start: Start) -> None:
    """The mean training picture scores 16.4 dB, the best of all training pictures for each view 15.4."""
    run = start(kind, steps=300)
    run.train()
    assert mean_test_psnr(run) > 16.9
    assert run.method.has_density


def test_unbounded_space_is_learned(start: Start, scene: Scene) -> None:
    """The object once more, among contracted space whose end is opaque; rays that leave have a depth all the same."""
    run = start("mipnerf360", scene=replace(scene, bounds="unbounded", near=0.5, far=1e5, background="white"), steps=350)
    assert isinstance(run.method, MipNerf360) and run.method.contracted
    run.train()
    assert mean_test_psnr(run) > 16.8
    seen = render_view(run.method, run.scene, run.scene.cameras, 0, 4096)
    assert seen.opacity is not None and seen.depth is not None
    assert_close(seen.opacity, torch.ones(32, 32))
    assert torch.isfinite(seen.depth).all() and float(seen.depth.min()) > 0.5 and float(seen.depth.median()) < 100


@BOTH
def test_a_resumed_run_equals_one_that_was_not_stopped(kind: str, start: Start) -> None:
    optim = replace(OPTIM, decay_steps=30, schedule="exponential")
    whole, first = (start(kind, name, optim=optim, steps=20) for name in ("whole", "parts"))
    whole.train()
    while first.state.step < 12:  # the same schedule of proposals, cut short
        first.step()
        first.state.step += 1
    first._save()
    rest = start(kind, "parts", optim=optim, steps=20)
    assert rest.state.step == 12
    rest.train()
    other = rest.method.state_dict()
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, other[name]), name


@BOTH
def test_chunks_are_what_they_are_in_one_piece_and_judging_is_not_random(kind: str, scene: Scene) -> None:
    method = of(kind, scene)
    whole, pieces, again = (render_view(method, scene, scene.cameras, 0, chunk) for chunk in (4096, 100, 4096))
    for name in ("rgb", "depth", "opacity", "disparity"):
        assert_close(getattr(pieces, name), getattr(whole, name), 1e-4)
        assert torch.equal(getattr(again, name), getattr(whole, name))


# --- Rendered -------------------------------------------------------------------------------------------------------


@BOTH
def test_an_even_fog_lets_the_background_through_as_it_should(kind: str, scene: Scene, forward: Scene) -> None:
    """Density softplus(-2) and colour ½ everywhere from near to far, in NDC too: opacity knows the length, not the samples."""
    for place in (scene, forward):
        method = of(kind, place, density_bias=-2.0)
        for p in method.parameters():
            p.data.zero_()
        batch = method.view_batch(place, place.cameras, 0, torch.arange(64))
        rays = batch.rays
        with torch.no_grad():
            seen = method.render(batch)
        length = (rays.far - rays.near) * rays.directions.norm(dim=-1)
        through = torch.exp(-length * torch.nn.functional.softplus(torch.tensor(-2.0)))
        tolerance = 1e-3 if kind == "mipnerf" else 5e-3  # the outermost intervals may end a little inside
        assert_close(seen.opacity, 1 - through, tolerance)
        assert_close(seen.rgb, (0.5 * (1 - through))[:, None] + through[:, None] * batch.background, tolerance)
        assert (seen.depth / seen.opacity > rays.near).all() and (seen.depth / seen.opacity < rays.far).all()


def wide(batch: Batch, factor: float) -> Batch:
    assert batch.rays is not None
    return replace(batch, rays=replace(batch.rays, pixel_radius=factor * batch.rays.pixel_radius))


@BOTH
def test_wide_pixels_see_less_detail(kind: str, scene: Scene) -> None:
    """The untrained field's waves, along a row of pixels: a pixel as wide as the picture sees none of the fine ones."""
    method = of(kind, scene, frequencies=9, jitter=False)
    batch = method.view_batch(scene, scene.cameras, 0, torch.arange(512, 544))
    with torch.no_grad():
        roughness = [float(method.render(wide(batch, factor)).rgb.diff(n=2, dim=0).abs().mean()) for factor in (0.1, 8.0)]
    assert roughness[1] < 0.5 * roughness[0]


# --- Losses ---------------------------------------------------------------------------------------------------------


def learners(method: torch.nn.Module, loss: Tensor) -> set[str]:
    """Which of a method's networks have a gradient from a loss."""
    found = torch.autograd.grad(loss, list(method.parameters()), retain_graph=True, allow_unused=True)
    named = zip((name for name, _ in method.named_parameters()), found, strict=True)
    return {name.split(".")[0] for name, gradient in named if gradient is not None and bool(gradient.any())}


def test_each_network_learns_from_its_own_loss(scene: Scene) -> None:
    method = of("mipnerf360", scene)
    batch = method.next_batch(scene, 0, torch.Generator().manual_seed(0))
    losses = method.losses(method.render(batch), batch, 0)
    assert {name: learners(method, loss) for name, loss in losses.items()} == {
        "rgb": {"field"}, "distortion": {"field"}, "interlevel": {"proposal"},
    }  # fmt: skip


def test_both_levels_teach_the_one_network(scene: Scene) -> None:
    method = of("mipnerf", scene)
    batch = method.next_batch(scene, 0, torch.Generator().manual_seed(0))
    rendering = method.render(batch)
    losses = method.losses(rendering, batch, 0)
    assert learners(method, losses["rgb"]) == learners(method, losses["rgb_coarse"]) == {"network"}
    error = (rendering.extras["rgb_coarse"] - batch.target).square().mean()
    assert float(losses["rgb_coarse"].detach()) == pytest.approx(0.1 * float(error.detach()), rel=1e-5)


def in_two_sizes(scene: Scene) -> Scene:
    """Every second view at half its size."""
    pictures, cameras = [], scene.cameras
    sizes = cameras.width.clone()
    for view in range(len(cameras)):
        image = (scene.image(view, None) * 255).permute(2, 0, 1)
        if view % 2:
            image = torch.nn.functional.avg_pool2d(image, 2)
            sizes[view] //= 2
        pictures.append(image.permute(1, 2, 0).reshape(-1, image.shape[0]).round().byte())
    share = sizes / cameras.width
    lens = {name: getattr(cameras, name) * share for name in ("fx", "fy", "cx", "cy")}
    return replace(scene, cameras=replace(cameras, width=sizes, height=sizes, **lens), pixels=torch.cat(pictures))


@pytest.mark.parametrize("kind", ["mipnerf", "nerf"])
def test_pixels_of_several_scales_weigh_what_they_cover(kind: str, scene: Scene) -> None:
    """A pixel of half the size counts as four: the loss is the mean over views, whatever their size; nerf's on demand."""
    mixed = in_two_sizes(scene)
    method = of(kind, mixed, rays=12 * 640, **({"area_weights": True} if kind == "nerf" else {}))
    batch = method.next_batch(mixed, 0, torch.Generator().manual_seed(0))  # a whole epoch
    rendering = method.render(batch)
    small = mixed.cameras.width[batch.rays.image_index] == 16
    error = (rendering.rgb - batch.target).square().mean(-1)
    by_view = float((error[small].mean() + error[~small].mean()).detach()) / 2
    assert float(method.losses(rendering, batch, 0)["rgb"].detach()) == pytest.approx(by_view, rel=1e-4)
    plain = of(kind, mixed, batching="image")
    assert float(plain.losses(rendering, batch, 0)["rgb"].detach()) == pytest.approx(float(error.mean().detach()), rel=1e-4)
    assert by_view != pytest.approx(float(error.mean().detach()), rel=1e-2)


def test_held_out_depth_is_evaluated(scene: Scene) -> None:
    """A field half as deep as the truth is off by half the true depth; a scene without depths, or in NDC, is not evaluated."""
    method, views = of("mipnerf", scene), scene.splits["test"]
    assert scene.depths is not None
    truth = [scene.depths.reshape(-1, 32, 32)[view] for view in views]
    half = iter(truth)
    method.render = lambda batch: Rendering(torch.zeros(len(batch), 3), 0.3 * (d := next(half).flatten()) / 2, torch.full_like(d, 0.3))
    found = evaluate(method, scene, 32 * 32, EvalConfig(lpips=False))
    expected = [float(d[d > 0].mean()) / 2 for d in truth]
    assert [row["depth_error"] for row in found["views"]] == pytest.approx(expected, rel=1e-4)
    assert found["depth_error"] == pytest.approx(sum(expected) / len(expected))
    for other in (replace(scene, depths=None), replace(scene, ndc=True)):
        assert "depth_error" not in evaluate(of("mipnerf", other), other, 4096, EvalConfig(lpips=False))


def test_views_of_several_sizes_are_evaluated_apart(scene: Scene) -> None:
    mixed = in_two_sizes(scene)
    found = evaluate(of("mipnerf", mixed), mixed, 4096, EvalConfig(lpips=False))
    assert list(found["by_size"]) == ["32x32", "16x16"]
    for size, means in found["by_size"].items():
        (row,) = [row for row in found["views"] if row["size"] == size]
        assert means["psnr"] == row["psnr"]
    assert evaluate(of("mipnerf", scene), scene, 4096, EvalConfig(lpips=False))["by_size"] == {}


# --- Keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key", "value", "expected"),
    [
        ("mipnerf", "samples", 1, "model.samples must be at least 2"),
        ("mipnerf", "padding", 0.0, "model.padding must be above 0"),
        ("mipnerf360", "proposal_samples", [], "model.proposal_samples must name at least one level"),
        ("mipnerf360", "proposal_samples", [64, 1], "model.proposal_samples must name at least one level"),
        ("mipnerf360", "least_dilation", 0.0, "model.least_dilation must be above 0"),
    ],
)
def test_numbers_without_sense_are_refused(kind: str, key: str, value: Any, expected: str, scene: Scene) -> None:
    with pytest.raises(ConfigError, match=expected):
        of(kind, scene, **{key: value})


def test_ndc_knows_no_inverse_depth(forward: Scene) -> None:
    with pytest.raises(ConfigError, match="lindisp has no meaning in NDC"):
        of("mipnerf", forward, lindisp=True)
    with pytest.raises(ConfigError, match="contracted needs a scene without NDC"):
        of("mipnerf360", forward, contracted=True)
    assert not of("mipnerf360", replace(forward, bounds="unbounded")).contracted


@pytest.mark.slow
def test_a_forward_facing_scene_is_learned(start: Start, forward: Scene) -> None:
    """In NDC, where pixels see cylinders; the mean training picture scores 14.4 dB and the best of all 14.6."""
    assert forward.ndc
    run = start("mipnerf", scene=forward, steps=400)
    run.train()
    assert mean_test_psnr(run) > 15.2


@pytest.mark.slow
@BOTH
def test_lego_in_five_minutes(kind: str, tmp_path: Path, data_folder: Path) -> None:
    """The small recipes on real pictures, two cores; a mean picture scores about 11 dB."""
    words = [
        kind,
        str(data_folder / "lego_100px"),
        "--recipe",
        f"{kind}-small",
        "--seconds",
        "300",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    plan, options, folder = prepare(request(words[0], words[1], words[2:]))
    assert train(plan, options, folder)["test"]["psnr"] > 22


# --- Pictures of histograms -----------------------------------------------------------------------------------------


def test_bars_stand_where_a_histogram_has_its_weight() -> None:
    edges, weights = torch.tensor([[0.25, 0.5, 1.0]]), torch.tensor([[0.1, 0.8]])
    heights = _bars(edges, weights).sum(1)[0] / HEIGHT
    quarter = len(heights) // 4
    assert (heights[:quarter] == 0).all()
    assert_close(heights[quarter : 2 * quarter], torch.full((quarter,), 0.5), 0.02)  # the root of a quarter of the density
    assert (heights[2 * quarter :] == 1).all()


def test_proposals_and_field_are_drawn_and_other_methods_are_not(scene: Scene) -> None:
    picture = draw_histograms(of("mipnerf360", scene), scene, 0, rays=3)
    assert picture is not None and picture.shape == (3 * HEIGHT, WIDTH, 3)
    assert len(picture.reshape(-1, 3).unique(dim=0)) == 4  # white, black, a proposal's blue and the field's orange
    assert draw_histograms(of("mipnerf", scene), scene, 0) is None
