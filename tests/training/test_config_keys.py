"""What every key of a configuration does to a training: it acts, or it is declared without effect, or its value is refused."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from PIL import Image

from config_values import OPTIMISERS, other_value
from nerfit import config as configs
from nerfit.config import flatten, to_dict
from nerfit.errors import NerfitError
from nerfit.methods.image import ImageConfig
from nerfit.methods.mipnerf import MipNerfConfig
from nerfit.methods.mipnerf360 import MipNerf360Config
from nerfit.methods.nerf import NerfConfig
from nerfit.methods.nerf_occupancy import NerfOccupancyConfig
from nerfit.plugins import find
from nerfit.runs import RunConfig
from nerfit.scenes import scene_format
from nerfit.scenes.formats.procedural import Config as ProceduralConfig
from nerfit.scenes.scene import Scene
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import Trainer


def put(config: Any, key: str, value: Any) -> Any:
    head, _, rest = key.partition(".")
    return replace(config, **{head: put(getattr(config, head), rest, value) if rest else value})


QUICK_MIP = MipNerfConfig(depth=2, width=8, skips=[], samples=4, rays=16)
QUICK_360 = MipNerf360Config(
    depth=2, width=8, skips=[], proposal_depth=1, proposal_width=4, proposal_samples=[4], samples=3, contracted=True, rays=16
)
QUICK_NERF = NerfConfig(depth=2, width=8, skips=[], samples=4, fine_samples=4, rays=16)
SMALL_SCENE = ProceduralConfig(size=12, views=3, val_views=1, test_views=1, samples=1)


def trained(config: RunConfig[Any, Any], method: str, source: str, folder: Path) -> dict[str, Any]:
    """Weights after a few steps."""
    folder.mkdir(parents=True, exist_ok=True)
    key = f"{source} {config.scene}"
    if key not in _SCENES:
        _SCENES[key] = scene_format("procedural" if source == "procedural" else "image").load(source, config.scene)
    scene = _SCENES[key]
    trainer = Trainer(lambda: find("nerfit.methods", method)(config.model, scene), scene, config, folder, quiet=True)
    trainer.train()
    return {name: t.clone() for name, t in trainer.method.state_dict().items()}


_SCENES: dict[str, Scene] = {}


def differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() != b.keys() or any(a[k].shape != b[k].shape or not torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    gradient = torch.arange(12 * 10 * 3, dtype=torch.uint8).reshape(10, 12, 3)
    Image.fromarray(gradient.numpy()).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


QUICK_OCCUPANCY = NerfOccupancyConfig(depth=1, width=8, skips=[], rays=16, march_steps=64)
BASES: dict[str, tuple[str, RunConfig[Any, Any]]] = {
    "nerf": ("nerf", RunConfig(model=replace(QUICK_NERF, precrop_steps=2), scene=SMALL_SCENE)),
    "nerf without a fine network": ("nerf", RunConfig(model=replace(QUICK_NERF, fine_samples=0, precrop_steps=0), scene=SMALL_SCENE)),
    "nerf on an occupancy grid": ("nerf-occupancy", RunConfig(model=QUICK_OCCUPANCY, scene=SMALL_SCENE)),
    "nerf of sine layers": ("nerf", RunConfig(model=replace(QUICK_NERF, network="siren"), scene=SMALL_SCENE)),
    "nerf without directions": ("nerf", RunConfig(model=replace(QUICK_NERF, viewdirs=False), scene=SMALL_SCENE)),
    "mipnerf": ("mipnerf", RunConfig(model=QUICK_MIP, scene=SMALL_SCENE)),
    "mipnerf360": ("mipnerf360", RunConfig(model=QUICK_360, scene=SMALL_SCENE)),
    "image": ("image", RunConfig(model=ImageConfig(depth=1, width=8, pixels=16), scene=scene_format("image").Config())),
}
ALTERED: dict[str, Any] = {"skips": [0], "precrop_steps": 1, "raw_noise": 0.5, "fine_width": 6}
"""Values that matter to so small a run, where `other_value` would not."""


@pytest.mark.parametrize("base", BASES)
def test_every_key_of_a_method_acts_or_is_declared_without_effect(base: str, picture: str, tmp_path: Path) -> None:
    method, config = BASES[base]
    config = replace(config, steps=3, optim=OptimConfig(lr=0.01), device="cpu", log=LogConfig(image_every=0))
    source = picture if method == "image" else "procedural"
    plain = trained(config, method, source, tmp_path / "plain")
    unused = config.model.unused() if hasattr(config.model, "unused") else {}
    hints = get_type_hints(type(config.model))
    for f in (f for f in dataclasses.fields(config.model) if not dataclasses.is_dataclass(getattr(config.model, f.name))):
        value = ALTERED.get(f.name, other_value(hints[f.name], getattr(config.model, f.name)))
        if value == getattr(config.model, f.name):
            value = 3
        altered = trained(put(config, f"model.{f.name}", value), method, source, tmp_path / f.name)
        assert differ(plain, altered) == (f.name not in unused), f.name


ALTERED_OPTIM: dict[str, Any] = {"beta2": 0.5,
    "schedule": "constant", "decay_steps": 1, "milestones": [1], "clip_value": 1e-5, "clip_norm": 1e-5, "warmup_steps": 2, "eps": 1e-3,
    "lr_final": 0.003, "average_from": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("base", OPTIMISERS)
def test_every_key_of_the_optimiser_acts_or_is_declared_without_effect(
    monkeypatch: pytest.MonkeyPatch, base: str, picture: str, tmp_path: Path
) -> None:
    optim, (method, config) = OPTIMISERS[base], BASES["image"]
    config = replace(config, steps=4, device="cpu", log=LogConfig(image_every=0), optim=optim)
    plain = trained(config, method, picture, tmp_path / "plain")
    hints = get_type_hints(OptimConfig)
    monkeypatch.setattr("nerfit.training.trainer.AVERAGE_EVERY", 1)
    for f in dataclasses.fields(OptimConfig):
        value = ALTERED_OPTIM.get(f.name, other_value(hints[f.name], getattr(optim, f.name)))
        if value == getattr(optim, f.name):
            value = "cosine"
        acts = differ(plain, trained(put(config, f"optim.{f.name}", value), method, picture, tmp_path / f.name))
        assert acts == (f.name not in optim.unused()), f.name


NUMBERED = ("nerf", "mipnerf", "mipnerf360", "image")
NUMBERS = [
    (base, key)
    for base in NUMBERED
    for key, value in flatten(to_dict(BASES[base][1])).items()
    if (isinstance(value, int | float) and not isinstance(value, bool)) or value is None
]


@pytest.mark.parametrize("number", [0, -1, 1])
@pytest.mark.parametrize("base", NUMBERED)
def test_any_number_trains_or_is_refused_in_one_sentence(base: str, number: int, picture: str, tmp_path: Path) -> None:
    method, config = BASES[base]
    config = replace(config, steps=2, device="cpu", threads=1, optim=OptimConfig(schedule="cosine", warmup_steps=1))
    config = replace(config, log=LogConfig(image_every=2))
    trained_keys, refused = set(), set()
    for _, key in (pair for pair in NUMBERS if pair[0] == base):
        if number == 1 and not key.startswith(("model.", "scene.", "seed", "log.image")):
            continue
        tried = put(config, key, float(number) if isinstance(flatten(to_dict(config))[key], float) else number)
        try:
            configs.check(tried, {key})
            trained(tried, method, picture if base == "image" else "procedural", tmp_path / key)
            trained_keys.add(key)
        except NerfitError as error:
            assert "\n" not in str(error) and str(error).endswith("."), key
            refused.add(key)
    assert "seed" in (refused if number < 0 else trained_keys)
    assert number == 1 or {"steps", "optim.clip_norm"} <= refused
