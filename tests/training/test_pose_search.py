"""NeRF-- in full: sine layers, refinement, cameras of another run, searches that are kept, drawn, evaluated and repeated."""

import itertools
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import assert_close
from nerfit.camera_search.history import MOST, PoseHistory
from nerfit.cameras import Cameras
from nerfit.cameras.learned import CameraConfig
from nerfit.cameras.poses import transform_poses
from nerfit.commands import render, train_run
from nerfit.commands.render_options import Options as RenderOptions
from nerfit.commands.seeds import compare, compare_text, train_seeds
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of, prepare
from nerfit.config import arguments
from nerfit.errors import ConfigError, RunError
from nerfit.fields.mlp import Layers
from nerfit.fields.siren import SirenMLP
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.outputs.pictures.frusta import draw_search
from nerfit.outputs.pictures.pose_plots import aligned_records, draw_paths
from nerfit.runs import open_run
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training.checkpoints import load_checkpoint
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import Callback, LoopConfig, Trainer

SMALL = NerfConfig(depth=2, width=16, skips=[], samples=8, fine_samples=0, rays=64, batching="image")
SEARCH = CameraConfig(learn=True, start="identity", focal="square", relocalise_every=0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return load("procedural:forward-facing", Config(size=16, views=9, samples=1))


@pytest.fixture
def start(scene: Scene, tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of a small Nerf that learns cameras, in a folder below tmp_path."""

    def make(name: str = "run", camera: CameraConfig = SEARCH, stop: int | None = None, **choices: Any) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        config = replace(SMALL, camera=camera)
        loop = LoopConfig(**({"steps": 40, "optim": OptimConfig(lr=5e-3), "log": LogConfig(image_every=0)} | choices))

        def end(trainer: Trainer) -> None:
            trainer.interrupted = 15

        callbacks = [] if stop is None else [Callback(stop, end)]
        return Trainer(lambda: Nerf(config, scene), scene, loop, tmp_path / name, callbacks, quiet=True)

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in trainer.method.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- Sine layers ----------------------------------------------------------------------------------------------------


def test_sine_layers_follow_their_twin() -> None:
    torch.manual_seed(0)
    net = SirenMLP(3, 3, Layers(3, 8, []), first_w0=30.0, hidden_w0=1.5)
    position, direction = torch.rand(5, 2, 3) - 0.5, torch.randn(5, 3)
    density, rgb = net(position, direction)

    def layer(module: Any, x: np.ndarray) -> np.ndarray:
        return module.weight.detach().double().numpy() @ x + module.bias.detach().double().numpy()

    for ray, sample in np.ndindex(5, 2):
        h = position[ray, sample].double().numpy()
        for i, module in enumerate(net.trunk):
            h = np.sin((30.0 if i == 0 else 1.5) * layer(module, h))
        view = np.sin(1.5 * layer(net.view, np.concatenate([layer(net.bottleneck, h), direction[ray].double().numpy()])))
        assert_close(density[ray, sample], layer(net.density, h)[0], 1e-4)
        assert_close(rgb[ray, sample], layer(net.rgb, view), 1e-4)


@pytest.mark.parametrize("hidden_w0", [1.0, 30.0])
def test_sine_layers_keep_the_spread_of_what_they_carry(hidden_w0: float) -> None:
    """Behind each layer an arcsine law of variance a half, before each a spread of about one (Sitzmann et al., theorem 1.8)."""
    torch.manual_seed(1)
    net = SirenMLP(3, 0, Layers(6, 256, []), first_w0=30.0, hidden_w0=hidden_w0)
    h = 2 * torch.rand(2000, 3) - 1
    for i, layer in enumerate(net.trunk):
        h = net.activation(layer(h), first=i == 0)
        assert float(h.detach().var()) == pytest.approx(0.5, abs=0.12), i


def test_a_field_of_sine_layers_learns_a_room(tmp_path: Path) -> None:
    """With the true cameras."""
    scene = load("procedural:forward-facing", Config(size=16, views=5, samples=1))
    train = torch.cat([scene.image(view).reshape(-1, 3) for view in scene.splits["train"]])
    config = replace(SMALL, network="siren", depth=3, width=32, frequencies=0, view_frequencies=0, density_factor=10.0, first_w0=15.0)
    loop = LoopConfig(steps=250, optim=OptimConfig(lr=5e-3), log=LogConfig(image_every=0))
    trainer = Trainer(lambda: Nerf(replace(config, samples=12, rays=128, batching="all"), scene), scene, loop, tmp_path, quiet=True)
    trainer.train()
    mean_colour = -10 * math.log10(float(train.var(0).mean()))
    assert trainer.state.psnr is not None and trainer.state.psnr > mean_colour + 2


# --- Keys -----------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "learn": False, "start": "given", "disturb": 0.1, "rotation": "6d", "pivot": 1.0, "focal": "exp", "fov": 70.0, "separate": True,
    "lr": 2e-3, "lr_final": 1e-3, "warmup": 0.5, "focal_lr": 3e-3, "learn_from": 0.5, "learn_until": 0.5, "refine_after": 0.5,
    "coarse_from": 0.2, "coarse_until": 0.7,
}  # fmt: skip
"""Another value of each key of the cameras, but for those that other tests change."""


def test_every_key_of_the_cameras_acts(start: Callable[..., Trainer]) -> None:
    base, names = replace(SEARCH, coarse_from=0.1, coarse_until=0.6), itertools.count()

    def outcome(camera: CameraConfig) -> dict[str, Tensor]:
        trainer = start(str(next(names)), camera, steps=6)
        trainer.train()
        return weights(trainer)

    plain = outcome(base)
    assert not base.unused() and same(plain, outcome(replace(base)))
    assert OTHER.keys() == {f.name for f in fields(CameraConfig)} - {"relocalise_every", "adjust_at"}  # those have tests of their own
    for key, value in OTHER.items():
        assert not same(plain, outcome(replace(base, **{key: value}))), key


def test_raw_coordinates_have_no_octaves_to_open() -> None:
    config = replace(SMALL, network="siren", frequencies=0, view_frequencies=0, camera=SEARCH)
    assert {"camera.coarse_from", "camera.coarse_until", "init"} <= config.unused().keys()
    assert not {"camera.coarse_from", "first_w0"} & replace(config, view_frequencies=2).unused().keys()
    assert {"first_w0", "hidden_w0"} <= SMALL.unused().keys()


def test_epochs_are_steps_per_training_view(start: Callable[..., Trainer], scene: Scene) -> None:
    trainer = start(steps=None, epochs=3)
    trainer.train()
    assert trainer.state.step == 3 * len(scene.splits["train"]) == 21
    plan = plan_of(request("nerf", "procedural:forward-facing", ["--recipe", "nerfmm-siren"]))
    assert (plan.config.epochs, plan.config.steps, plan.config.model.density_factor) == (10_000, None, 20.0)
    plan = plan_of(request("nerf", "procedural:forward-facing", ["--recipe", "nerfmm", "--steps", "7"]))
    assert (plan.config.epochs, plan.config.steps) == (None, 7)


# --- Refinement and the cameras of another run ----------------------------------------------------------------------


def test_a_refined_run_begins_a_new_field_with_the_cameras_found(start: Callable[..., Trainer]) -> None:
    camera = replace(SEARCH, refine_after=0.5, lr=1e-2)
    fresh = weights(start("fresh", camera))
    trainer = start("refined", camera, stop=20)
    trainer.train()
    before, trainer.interrupted = weights(trainer), None
    assert trainer.state.field_start == 0 and trainer.schedule_progress == pytest.approx(1.0)
    trainer.step()
    after = weights(trainer)
    assert trainer.state.field_start == 20 and trainer.schedule_progress == 0.0
    assert float(before["cameras.shift"].norm()) > 0.01
    moved = {key: float((after[key] - before[key]).abs().max()) for key in after if after[key].is_floating_point()}
    assert 0 < moved["cameras.shift"] < 0.05 and not moved["cameras.first"]
    # one step of Adam at the first rate from the first weights
    assert float((after["coarse.network.trunk.1.weight"] - fresh["coarse.network.trunk.1.weight"]).abs().max()) <= 5.01e-3
    assert float((before["coarse.network.trunk.1.weight"] - fresh["coarse.network.trunk.1.weight"]).abs().max()) > 2e-2
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3) and trainer.optimizer.param_groups[1]["lr"] == pytest.approx(1e-2)


@pytest.mark.parametrize("stop", [15, 25])
def test_a_refined_run_resumes_exactly(start: Callable[..., Trainer], stop: int) -> None:
    camera = replace(SEARCH, refine_after=0.5)
    whole = start("whole", camera)
    whole.train()
    start("parts", camera, stop=stop).train()
    parts = start("parts", camera)
    assert parts.state.step == stop and parts.search.history is not None and parts.search.history.steps[-1] == stop
    parts.train()
    assert same(weights(whole), weights(parts))
    a, b = whole.search.history, parts.search.history
    assert a is not None and b is not None and (a.steps, a.psnr, a.focal) == (b.steps, b.psnr, b.focal)
    assert all(torch.equal(x, y) for x, y in zip(a.c2w, b.c2w, strict=True))
    assert whole.state.psnr == parts.state.psnr and whole.state.field_start == 20


MODEL = {"depth": 2, "width": 16, "samples": 8, "fine_samples": 0, "rays": 64, "skips": [0]}
CAMERA = {"learn": True, "start": "identity", "focal": "square", "relocalise_every": 0}


def prepared(tmp_path: Path, name: str, *argv: str, camera: dict[str, Any] = CAMERA, steps: int = 30) -> Any:
    values = {
        "scene": {"size": 16, "views": 9, "samples": 1},
        "steps": steps,
        "model": MODEL | {"camera": camera},
        "log": {"image_every": 10, "print_every": 5},
    }
    words = [*arguments(values), "--json", "--out", str(tmp_path / name), *argv]
    return prepare(request("nerf", "procedural:forward-facing", words))


def test_the_cameras_of_another_run_are_where_a_run_begins(tmp_path: Path) -> None:
    first = Path(train_run.train(*prepared(tmp_path, "first", "--no-evaluate"))["run"])
    second = prepared(
        tmp_path, "second", "--init", str(first), "--init-only", "cameras", "--no-evaluate", camera=CAMERA | {"rotation": "6d"}
    )
    train_run.train(*second)
    found = load_checkpoint(tmp_path / "second" / "checkpoints")
    learned = Scene.load(first).cameras
    assert found is not None and torch.equal(found[1]["model.cameras.first"], learned.c2w)
    search = PoseHistory.load(tmp_path / "second", 30)
    assert abs(search.focal[0] - float(learned.fx[0] / 16)) < 0.02

    def refused(words: list[str], reported: str, camera: dict[str, Any] = CAMERA) -> None:
        with pytest.raises(ConfigError, match=reported):
            train_run.train(*prepared(tmp_path, "third", *words, camera=camera))

    init = ["--init", str(first), "--init-only", "cameras"]
    refused(["--init-only", "cameras"], "add --init RUN")
    refused(init, "add --model.camera.learn", {"learn": False})
    refused(init, "add --model.camera.focal square", {"learn": True, "relocalise_every": 0})
    refused([*init, "--scene.views", "12"], "not trained on the views")


# --- The search: kept, drawn, watched -------------------------------------------------------------------------------


def test_a_search_is_kept_at_even_steps_and_stays_small(start: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer, search = start(camera=replace(SEARCH, start="given")), PoseHistory()
    assert trainer.method.cameras is not None
    for step in range(1, 20 * MOST):
        search.record(trainer.method.cameras, trainer.scene, step, 0.0, 10.0)
        assert len(search.steps) < MOST
    assert search.steps == list(range(search.every, 20 * MOST, search.every)) and len(search.steps) > MOST // 3
    search.save(tmp_path)
    again = PoseHistory.load(tmp_path, 20 * MOST)
    assert (again.steps, again.psnr, again.progress, again.every) == (search.steps, search.psnr, search.progress, search.every)
    assert torch.equal(torch.stack(again.c2w), torch.stack(search.c2w))
    assert PoseHistory.load(tmp_path, 1000).steps == [step for step in search.steps if step <= 1000]
    file = tmp_path / "poses.safetensors"
    scalar = safetensors.torch.load(file.read_bytes()) | {"psnr": torch.tensor(1.0)}
    for damaged in (b"x" * 9, safetensors.torch.save(scalar, {"every": "5"})):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged"):
            assert not PoseHistory.load(tmp_path, 1000).steps


def some_search(scene: Scene, similarity: Tensor, looks: int = 3) -> tuple[PoseHistory, Cameras]:
    """Cameras that go from one point to the given poses moved by a similarity."""
    given = scene.cameras[scene.splits["train"]]
    world = transform_poses(given.c2w, similarity).float()
    search = PoseHistory()
    for look in range(looks):
        share = look / (looks - 1)
        c2w = torch.cat([world[:, :, :3], share * world[:, :, 3:]], -1)
        search.steps, search.c2w, search.focal = [*search.steps, look], [*search.c2w, c2w], [*search.focal, 1.0]
    return search, given


@given(scale=st.floats(0.1, 10), angle=st.floats(-3, 3))
def test_found_cameras_are_drawn_where_the_given_ones_are(scale: float, angle: float) -> None:
    scene = load("procedural:forward-facing", Config(size=4, views=9, samples=1))
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[:2, :2] = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    similarity[2, 2] = scale
    search, given = some_search(scene, similarity)
    first, _, last = aligned_records(search, given, range(3))
    assert_close(last.c2w, given.c2w, 1e-4)
    assert float((first.centers - first.centers[0]).norm()) < 1e-4
    assert float(last.fx[0]) == pytest.approx(4.0)


def test_pictures_of_a_search(scene: Scene) -> None:
    search, given = some_search(scene, torch.eye(4, dtype=torch.float64))
    found = aligned_records(search, given, range(3))
    paths = torch.stack([cameras.centers for cameras in found])
    far, near = (draw_paths(p, given.centers, 200) for p in (paths[:1], paths))
    assert far.shape == near.shape == (200, 400, 3)
    grey = (np.ptp(near.astype(int), axis=-1) < 12) & (near.max(-1) < 190)
    assert grey.sum() > 100 and (near != far).any()
    frames = list(draw_search(found, given, 200))
    assert len(frames) == 3 and {f.shape for f in frames} == {(200, 200, 3)}
    assert (frames[0] != frames[-1]).any(-1).mean() > 0.01
    same_place = list(draw_search([found[0], found[0]], given, 200))
    assert (same_place[0] == same_place[1]).all()


def test_a_run_with_learned_cameras_is_drawn_and_filmed(tmp_path: Path) -> None:
    folder = Path(train_run.train(*prepared(tmp_path, "run", "--no-evaluate"))["run"])
    assert {p.name for p in (folder / "renders" / "cameras").iterdir()} == {"frusta.png", "positions.png", "search.mp4"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert [e.step for e in events.Images("cameras/positions")] == [10, 20, 30]
    for path in ("interpolate", "spiral"):
        drawn = render.run(RenderOptions(run=folder, path=path, frames=3, what="rgb"))
        assert drawn["frames"] == 3 and Path(drawn["videos"][0]).is_file()


# --- Seeds ----------------------------------------------------------------------------------------------------------


def test_seeds_are_compared() -> None:
    runs = [
        {"seed": s, "training_psnr": p, "test": {"psnr": p + 1, "cameras": {"rotation_degrees": 2.0}}} for s, p in ((0, 10.0), (1, 14.0))
    ]
    reported = compare(runs)
    assert reported["mean"] == {"psnr": 13.0, "training_psnr": 12.0, "rotation_degrees": 2.0}
    assert reported["spread"]["psnr"] == pytest.approx(8**0.5) and reported["spread"]["rotation_degrees"] == 0
    assert compare_text(reported) == "2 seeds: test PSNR 13.00 ± 2.83, training PSNR 12.00 ± 2.83, degrees off 2.00 ± 0.00"
    del runs[0]["test"]
    assert compare(runs)["mean"].keys() == {"training_psnr"}


def test_the_best_of_several_seeds_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, options, folder = prepared(tmp_path, "run", "--seeds", "3", "--seed", "4", "--no-evaluate", steps=12)
    train, calls = train_run.train, []

    def stopped(plan: Any, options: Any, folder: Path, *tell: Any, **rest: Any) -> Any:
        calls.append((plan.config.seed, options.resume))
        return train(plan, options, folder, *tell, **rest) | ({"exit_code": 130} if len(calls) == 2 else {})

    monkeypatch.setattr(train_run, "train", stopped)
    reported: list[Any] = []
    assert train_seeds(plan, options, folder, reported.append)["exit_code"] == 130 and len(reported) == 1
    summary = train_seeds(
        *prepare(request(None, None, ["--resume", "--seeds", "3", "--out", str(folder), "--json", "--no-evaluate"])), reported.append
    )
    assert calls == [(4, False), (5, False), (4, True), (5, True), (6, False)] and reported[1] == summary
    each = {int(seed): of["training_psnr"] for seed, of in json.loads((folder / "seeds.json").read_text())["each"].items()}
    assert each.keys() == {4, 5, 6} and each[summary["seed"]] == max(each.values())
    run = open_run(folder, images=False)
    assert run.plan.config.seed == summary["seed"] and run.state.psnr == each[summary["seed"]]
    assert {p.name for p in (folder / "seeds").iterdir()} == {str(seed) for seed in each if seed != summary["seed"]}


@pytest.mark.parametrize(("words", "reported"), [(["--seeds", "0"], "at least 1"), (["--seeds", "2", "--viewer"], "leave out --viewer")])
def test_seeds_without_sense_are_refused(words: list[str], reported: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, RunError), match=reported):
        train_seeds(*prepared(tmp_path, "run", *words))
    assert not (tmp_path / "run").exists()


# --- Hope -----------------------------------------------------------------------------------------------------------


def searched(scene: Scene, psnr: float, away: float, wander: float, progress: float = 0.1) -> PoseHistory:
    """Records of cameras that go ``away`` from the origin straight, with random steps of ``wander``, up to the evaluated record."""
    torch.manual_seed(0)
    ways = torch.nn.functional.normalize(torch.randn(7, 3), dim=-1)
    search = PoseHistory()
    for look in range(41):
        place = away * look / 40 * ways + wander * torch.randn(7, 3)
        search.steps.append(5 * look)
        search.progress.append(progress * look / 40)
        search.psnr.append(psnr)
        search.c2w.append(torch.cat([torch.eye(3).expand(7, 3, 3), place[..., None]], -1))
    return search


@pytest.mark.parametrize(
    ("explained", "away", "wander", "reported"),
    [
        (0.79, 0.03, 0.005, None),  # photographs of a fern, as measured
        (0.49, 0.30, 0.01, "explains 49% of the pictures' variance only, and the cameras diverge"),  # of different places
        (0.90, 0.30, 0.01, None),
        (0.60, 0.30, 0.3, None),  # they wander, but don't diverge
        (0.60, 0.30, 0.01, "diverge"),
        (0.30, 0.03, 0.005, "explains 30% of the pictures' variance only$"),
        (0.79, 0.001, 0.0, "no farther apart than"),
    ],
)
def test_a_hopeless_search_is_distinguished_from_one_with_hope(
    scene: Scene, explained: float, away: float, wander: float, reported: str | None
) -> None:
    train = torch.cat([scene.image(view).reshape(-1, 3) for view in scene.splits["train"]])
    psnr = -10 * math.log10((1 - explained) * float(train.var(0).mean()))
    search = searched(scene, psnr, away, wander)
    why = search.hopeless(scene)
    assert (why is None) == (reported is None) and (why is None or re.search(reported or "", why))
    for name in ("steps", "progress", "psnr", "c2w"):
        getattr(search, name).append(getattr(search, name)[-1])
    assert search.hopeless(scene) is None, "it is said once"


def test_photographs_of_different_places_are_called_hopeless(tmp_path: Path, scene: Scene) -> None:
    """Within a tenth of the budget; photographs of one room are not."""
    strange = replace(scene, pixels=torch.cat([_picture(view) for view in range(9)]))
    said = []
    for place in (scene, strange):
        folder = tmp_path / str(len(said))
        folder.mkdir()
        siren = replace(SMALL, network="siren", width=32, frequencies=0, view_frequencies=0, first_w0=15.0, density_factor=10.0)
        config = replace(siren, camera=replace(SEARCH, lr=3e-3), batching="all")
        loop = LoopConfig(steps=2000, optim=OptimConfig(lr=2e-3), log=LogConfig(image_every=0))

        def end(trainer: Trainer) -> None:
            trainer.interrupted = 15

        trainer = Trainer(lambda: Nerf(config, place), place, loop, folder, [Callback(201, end)], quiet=True)  # noqa: B023
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        said.append([str(w.message) for w in caught if "hopeless" in str(w.message)])
    assert not said[0] and len(said[1]) == 1 and "--seeds 3" in said[1][0]


def _picture(seed: int) -> Tensor:
    """Smooth random colours, 16x16, uint8 [256, 3]."""
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (
        (255 * torch.nn.functional.interpolate(noise, size=(16, 16), mode="bicubic").clamp(0, 1))[0].permute(1, 2, 0).reshape(-1, 3).byte()
    )
