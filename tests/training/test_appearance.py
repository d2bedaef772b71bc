"""Each picture's appearance: maps whose mean is the identity, exact gradients, gains found for real, and the right half evaluated."""

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.commands import evaluate as evaluation
from nerfit.commands import train_run
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import prepare
from nerfit.config import arguments
from nerfit.errors import ConfigError
from nerfit.evaluation.appearance import fitted_to_left_half
from nerfit.evaluation.evaluate import EvalConfig, evaluate
from nerfit.methods.base import Method
from nerfit.methods.instant import Instant, InstantConfig
from nerfit.methods.instant_proposals import InstantProposals, InstantProposalsConfig
from nerfit.methods.mipnerf import MipNerf, MipNerfConfig
from nerfit.methods.mipnerf360 import MipNerf360, MipNerf360Config
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.metrics.psnr_ssim import psnr, quantise
from nerfit.rendering.appearance import Appearance, AppearanceConfig, photographed
from nerfit.rendering.volume import Rendering, over_background
from nerfit.runs import open_run
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene, composite
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import LoopConfig, Trainer

SIZE = 32


@pytest.fixture(scope="module")
def scene() -> Scene:
    """An object before a white wall, in clean light, dark enough that no gain makes it white."""
    found = load("procedural", Config(size=SIZE, views=24, test_views=3, val_views=0, samples=2))
    assert found.pixels is not None
    found.pixels[:, :3] //= 2
    return found


@pytest.fixture(scope="module")
def gains(scene: Scene) -> Tensor:
    """Gains of each view and channel, of geometric mean 1 over the training views, and 1 elsewhere."""
    train = scene.splits["train"]
    logarithms = 0.35 * torch.randn(len(train), 3, generator=torch.Generator().manual_seed(7))
    found = torch.ones(len(scene.cameras), 3)
    found[train] = (logarithms - logarithms.mean(0)).exp()
    return found


@pytest.fixture(scope="module")
def spoiled(scene: Scene, gains: Tensor) -> Scene:
    """The scene with each training picture under its gains."""
    pixels = scene.stored_pixels.float()
    pixels[:, :3] *= gains.repeat_interleave(SIZE**2, 0)
    assert pixels.max() < 256
    return replace(scene, pixels=pixels.round().to(torch.uint8))


def train(kind: Callable[[Any, Scene], Method], config: Any, scene: Scene, folder: Path, steps: int, optim: OptimConfig) -> Method:
    loop = LoopConfig(optim=optim, log=LogConfig(image_every=0), steps=steps, device="cpu", threads=1)
    trainer = Trainer(lambda: kind(config, scene), scene, loop, folder, quiet=True)
    trainer.train()
    return trainer.method.eval()


def disturbed(kind: Any, scene: Scene) -> Appearance:
    torch.manual_seed(0)
    appearance = Appearance(AppearanceConfig(kind=kind), scene)
    with torch.no_grad():
        appearance.codes.normal_(0, 0.6)
    return appearance


@pytest.mark.parametrize("kind", ["exposure", "affine"])
def test_every_picture_begins_as_it_is_and_their_mean_stays_so(scene: Scene, kind: Any) -> None:
    train = len(scene.splits["train"])
    assert_close(Appearance(AppearanceConfig(kind=kind), scene).maps(), torch.eye(3, 4).expand(train, 3, 4))
    maps = disturbed(kind, scene).maps()
    assert (maps - torch.eye(3, 4)).abs().amax((1, 2)).min() > 0.05
    if kind == "exposure":
        gains = maps[:, :, :3].diagonal(dim1=1, dim2=2)
        assert_close(gains.log().mean(0).exp(), torch.ones(3))
        assert_close(maps, torch.cat([torch.diag_embed(gains), torch.zeros(train, 3, 1)], -1))
    else:
        assert_close(maps.mean(0), torch.eye(3, 4))


@pytest.mark.parametrize("kind", ["exposure", "affine"])
@pytest.mark.parametrize("cut_out", [True, False])
def test_maps_and_their_gradients_are_those_of_a_slow_twin(scene: Scene, kind: Any, cut_out: bool) -> None:
    """Ray by ray: of a cut-out picture A·light + opacity·b before the background, else A·colour + b; coarse colours too."""
    appearance = disturbed(kind, scene).double()
    appearance.cut_out = cut_out
    generator = torch.Generator().manual_seed(1)
    light, background = torch.rand(2, 5, 3, dtype=torch.float64, generator=generator)
    opacity = torch.rand(5, dtype=torch.float64, generator=generator)
    views = torch.tensor(scene.splits["train"])[[3, 0, 9, 3, 23]]

    def shown(light: Tensor, codes: Tensor) -> Tensor:
        other = over_background(light, opacity, opacity, background)
        rendering = replace(other, extras={"rgb_coarse": 0.5 * other.rgb, "opacity_coarse": 0.5 * opacity, "area": opacity})
        own = torch.func.functional_call(appearance, {"codes": codes}, (rendering, views, background))
        assert own.extras["area"] is opacity and own.depth is other.depth
        return torch.cat([own.rgb, own.extras["rgb_coarse"]])

    maps = appearance.maps()
    for ray, row in enumerate([3, 0, 9, 3, 23]):
        for share, place in ((1.0, ray), (0.5, 5 + ray)):
            cover = share * opacity[ray]
            seen = share * (light[ray] + (1 - opacity[ray]) * background[ray])
            behind = (1 - cover) * background[ray] if cut_out else torch.zeros(3)
            expected = maps[row, :, :3] @ (seen - behind) + (cover if cut_out else 1) * maps[row, :, 3] + behind
            assert_close(shown(light, appearance.codes)[place], expected, 1e-12)
    inputs = light.requires_grad_(), appearance.codes.detach().requires_grad_()
    assert torch.autograd.gradcheck(shown, inputs)
    grad = torch.autograd.grad(shown(*inputs).square().sum(), inputs[1])[0]
    assert_close(grad.sum(0) + 1, torch.ones(grad.shape[1:], dtype=torch.float64), 1e-9)  # the mean does not move


def mean_error(found: Tensor, true: Tensor) -> float:
    return float((found - true).abs().mean())


METHODS = {
    "nerf": (
        Nerf,
        NerfConfig(depth=3, width=48, skips=[], frequencies=5, view_frequencies=2, samples=24, fine_samples=0, rays=384, batching="all"),
        OptimConfig(lr=4e-3),
        {"exposure": 0.4},
    ),
    "instant": (
        Instant,
        InstantConfig(levels=4, log2_entries=12, finest=64, samples=4096, march_steps=128, first_march_steps=96),
        OptimConfig(optimizer="sparse-adam", lr=1e-2, eps=1e-15),
        {"exposure": 2.0, "affine": 0.5},
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_gains_are_found_and_the_clean_light_with_them(scene: Scene, spoiled: Scene, gains: Tensor, name: str, tmp_path: Path) -> None:
    """Held-out views in the true light, without any fit; and the gains themselves."""
    kind, config, optim, margins = METHODS[name]
    reached, true = {}, gains[scene.splits["train"]]
    for appearance in ("none", *margins):
        chosen = replace(config, appearance=AppearanceConfig(kind=appearance, lr=3e-2 if appearance == "exposure" else 1e-2))
        method = train(kind, chosen, spoiled, tmp_path / appearance, 300, optim)
        reached[appearance] = evaluate(method, scene, 4096, EvalConfig(lpips=False))["psnr"]
        if appearance == "exposure":
            assert method.appearance is not None
            found = method.appearance.maps().detach()[:, :, :3].diagonal(dim1=1, dim2=2)
            assert mean_error(found, true) < 0.5 * mean_error(torch.ones(()), true)
    assert all(reached[appearance] > reached["none"] + margin for appearance, margin in margins.items()), reached


@pytest.mark.parametrize("kind", ["exposure", "affine"])
@pytest.mark.parametrize(
    ("method", "config"),
    [
        (MipNerf, MipNerfConfig(depth=2, width=8, skips=[], samples=4, rays=16)),
        (
            MipNerf360,
            MipNerf360Config(depth=2, width=8, skips=[], proposal_depth=1, proposal_width=4, proposal_samples=[4], samples=3, rays=16),
        ),
        (Nerf, NerfConfig(depth=2, width=8, skips=[], samples=4, fine_samples=4, rays=16)),
        (InstantProposals, InstantProposalsConfig(levels=2, log2_entries=10, proposal_samples=[8], intervals=4, samples=256)),
    ],
)
def test_every_method_learns_maps(spoiled: Scene, method: Any, config: Any, kind: Any, tmp_path: Path) -> None:
    """They move, the field's own parameters are in no group with them, and a run with all colours alike is not changed by them."""
    config = replace(copy.deepcopy(config), appearance=AppearanceConfig(kind=kind))
    learned = train(method, config, spoiled, tmp_path, 3, OptimConfig())
    assert learned.appearance is not None and float(learned.appearance.codes.detach().abs().max()) > 1e-3
    grouped = {id(p) for group in learned.parameter_groups() for p in group["params"]}
    assert grouped == {id(p) for p in learned.parameters()} - {id(p) for p in learned.appearance.parameters()}


def test_keys_act_or_are_reported(spoiled: Scene, tmp_path: Path) -> None:
    config = NerfConfig(depth=2, width=8, skips=[], samples=4, fine_samples=0, rays=64)

    def codes(name: str, **choice: Any) -> Tensor:
        chosen = replace(config, appearance=AppearanceConfig(**choice))
        learned = train(Nerf, chosen, spoiled, tmp_path / name, 3, OptimConfig())
        assert learned.appearance is not None
        return learned.appearance.maps().detach()

    plain = codes("plain", kind="affine")
    for name, choice in {"lr": {"lr": 0.1}, "final": {"lr_final": 1e-6}, "kind": {"kind": "exposure"}}.items():
        assert not torch.equal(plain, codes(name, **({"kind": "affine"} | choice))), name
    assert AppearanceConfig().unused().keys() == {f.name for f in fields(AppearanceConfig)} - {"kind"}
    assert not AppearanceConfig(kind="exposure").unused() and not AppearanceConfig(kind="affine").unused()
    for choice in ({"lr": 0.0}, {"lr_final": -1.0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            Appearance(AppearanceConfig(kind="affine", **choice), spoiled)


@pytest.mark.parametrize("cut_out", [True, False])
def test_the_fit_sees_the_left_half_alone(scene: Scene, cut_out: bool) -> None:
    """A picture in other light is found again by its left half; what its right half shows has no part in it."""
    view = scene.splits["test"][0]
    rgba = scene.image(view, None)
    if not cut_out:
        rgba = torch.cat([composite(rgba, 0.7), torch.ones(SIZE, SIZE, 1)], -1)
        scene = replace(scene, pixels=scene.stored_pixels[:, :3])
    truth, opacity = composite(rgba, 1.0), rgba[..., 3]
    turned = torch.tensor([[0.7, 0.1, 0.0], [0.0, 1.2, 0.1], [0.1, 0.0, 0.9]])
    light, behind = photographed(truth.reshape(-1, 3), opacity.flatten() if cut_out else None, 1.0)
    seen = (light[:, :3] @ turned + 0.05 * light[:, 3:] + behind).reshape(SIZE, SIZE, 3)
    evaluated = replace(scene, pixels=scene.stored_pixels.clone())
    start = int(scene.starts[view])
    stored = rgba if cut_out else truth
    evaluated.stored_pixels[start : start + SIZE**2] = (stored * 255).round().to(torch.uint8).reshape(SIZE**2, -1)
    found = fitted_to_left_half(Rendering(seen, opacity=opacity), evaluated, view, 1.0)
    assert (seen - truth).abs().max() > 0.1 > 5 * float((found - truth).abs().max())
    right = evaluated.stored_pixels[start : start + SIZE**2].reshape(SIZE, SIZE, -1)
    right[:, SIZE // 2 :, :3] = 0
    assert torch.equal(fitted_to_left_half(Rendering(seen, opacity=opacity), evaluated, view, 1.0), found)


def test_a_run_records_how_it_was_evaluated(tmp_path: Path) -> None:
    """Trained, evaluated in the mean appearance, opened and evaluated by halves: the protocol says which."""
    small = {"scene": {"size": 16, "views": 9, "samples": 1}, "steps": 5}
    model = {"depth": 2, "width": 16, "samples": 8, "fine_samples": 0, "rays": 64, "appearance": {"kind": "affine"}}
    words = [*arguments(small | {"model": model}), "--json", "--out", str(tmp_path / "run")]
    trained = train_run.train(*prepare(request("nerf", "procedural:forward-facing", words)))["test"]
    assert trained["protocol"].endswith("in the mean appearance of the training pictures")
    evaluated = evaluation.run(evaluation.Options(run=tmp_path / "run", appearance_fit=True))
    assert evaluated["protocol"].endswith("the right half of each picture, after the affine colour map that fits its left half best")
    run = open_run(tmp_path / "run", images=True)
    for row, view in zip(evaluated["views"], run.scene.splits["test"], strict=True):
        fitted = quantise(fitted_to_left_half(run.render(run.scene.cameras, view), run.scene, view, 1.0))
        assert row["psnr"] == pytest.approx(psnr(fitted[:, 8:], run.scene.image(view)[:, 8:]), abs=1e-4)
