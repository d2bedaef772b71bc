"""One scene on several devices: parts of a batch, what is exchanged, and that it makes no difference."""

import dataclasses
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import together
from conftest import assert_close
from nerfit.cli import main
from nerfit.kernels.factored import add_factored, as_row
from nerfit.kernels.layouts import FactoredGradient, GridLayout, PixelTable
from nerfit.kernels.pixels import draw_pixels, draw_pixels_reference
from nerfit.methods.batch import Batch
from nerfit.methods.instant import InstantConfig
from nerfit.methods.nerf import NerfConfig
from nerfit.methods.pixel_batches import PixelSource, pixel_batch, random_pixels
from nerfit.runs import RunConfig, with_devices
from nerfit.sampling.share import Share
from nerfit.sampling.shuffle import epoch_indices
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training.interrupts import Signal, stop_on_signals
from nerfit.training.optim import OptimConfig

COUNTS, DEVICES, SIZES = st.integers(0, 300), st.integers(1, 9), st.integers(1, 120)


@given(COUNTS, DEVICES)
def test_shares_are_a_partition(count: int, devices: int) -> None:
    shares = [Share(index, devices).indices(count).tolist() for index in range(devices)]
    assert sorted(place for share in shares for place in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 300), DEVICES, SIZES, st.integers(1, 3))
def test_parts_have_the_rays_and_random_numbers_of_the_whole(count: int, devices: int, size: int, draws: int) -> None:
    """Chunk by chunk, as long as no chunk but the last has fewer rays than there are devices."""
    size = max(size, devices)
    whole = Batch(coordinates=torch.arange(count)[:, None], background=torch.rand(count, 3), target=torch.rand(count, 3))

    def drawn(batch: Batch) -> Tensor:
        batch = dataclasses.replace(batch, generator=torch.Generator().manual_seed(count))
        rows = []
        for chunk in batch.chunks(size):
            numbers = [draw(len(chunk), 2) for _ in range(draws) for draw in (chunk.uniform, chunk.normal)]
            assert chunk.coordinates is not None and chunk.target is not None and isinstance(chunk.background, Tensor)
            rows.append(torch.cat([chunk.coordinates, chunk.target, chunk.background, *filter(torch.is_tensor, numbers)], 1))
        return torch.cat(rows) if rows else torch.zeros(0, 7 + 4 * draws)

    parts = [whole.shared(Share(index, devices)) for index in range(devices)]
    assert all(part.whole == count for part in parts)
    together_again = torch.cat([drawn(part) for part in parts])
    assert torch.equal(together_again[together_again[:, 0].argsort()], drawn(whole))


@given(COUNTS, DEVICES, st.integers(0, 2**62), st.booleans())
def test_drawn_pixels_are_those_of_the_whole(count: int, devices: int, key: int, reference: bool) -> None:
    pixels = torch.randint(0, 2, (35, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) * 255
    table = PixelTable(pixels, torch.tensor([0, 15]), torch.tensor([5, 4]), torch.tensor([3, 5]))
    given_ = (table, torch.tensor([1, 0]), count, key)

    def draw(*share: int) -> Any:
        return draw_pixels_reference(*given_, 2**31, *share) if reference else draw_pixels(*given_, 0.5, *share)

    whole = draw()
    for index in range(devices):
        for part, value in zip(draw(index, devices), whole, strict=True):
            assert torch.equal(part, value[index::devices])
        assert torch.equal(epoch_indices(3, count, 77, key, Share(index, devices)), epoch_indices(3, count, 77, key)[index::devices])


@pytest.fixture(scope="module")
def few() -> Scene:
    return load("procedural", Config(size=16, views=4, test_views=1, val_views=0, samples=1))


@pytest.mark.parametrize("kind", ["image", "all", "random"])
@pytest.mark.parametrize("depths", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_pixels_are_those_of_the_whole(few: Scene, kind: str, depths: bool, masked: bool) -> None:
    scene = dataclasses.replace(few, masked=masked, background="random")

    def batch(share: Share) -> Batch:
        source = PixelSource(scene, 2, torch.Generator().manual_seed(5), torch.device("cpu"), 7, None, depths, share)
        return random_pixels(source, 100, 0.5) if kind == "random" else pixel_batch(source, 100, kind)

    whole = batch(Share())
    assert whole.part is None
    for index in range(3):
        part = batch(Share(index, 3))
        assert part.part is not None and part.whole == len(whole) and part.rays is not None and whole.rays is not None
        assert torch.equal(part.rays.directions, whole.rays.directions[part.part.indices])
        for name in ("target", "background", *(("depth", "depth_weight") if depths else ())):
            assert torch.equal(getattr(part, name), getattr(whole, name)[part.part.indices])


def test_a_row_of_factors_adds_what_its_pieces_add() -> None:
    from nerfit.kernels.cpu.blocks import LANES

    layout, rng = GridLayout(2, 8, 4, 8), np.random.default_rng(0)

    def piece(*counts: int) -> FactoredGradient:
        room = LANES * (max(counts) // LANES + 1)
        positions = rng.random((len(counts), 3 * room), np.float32)
        features = rng.random((len(counts), layout.depth * room), np.float32).reshape(len(counts), -1, layout.depth, LANES)
        for row, count in enumerate(counts):
            for lane in range(count, room):
                features[row, lane // LANES, :, lane % LANES] = 0
        return FactoredGradient(positions, features.reshape(len(counts), -1), list(counts), layout)

    pieces, one, all_of = [piece(130, 1), piece(0), piece(LANES)], torch.zeros(layout.size), torch.zeros(layout.size)
    row = as_row(pieces)
    assert row is not None and row.count == [4 * LANES] and as_row([]) is None
    add_factored(row, one)
    for each in pieces:
        add_factored(each, all_of)
    assert all_of.abs().sum() > 0
    assert_close(one, all_of, 1e-6)


def test_batch_and_rates_grow_with_the_devices_unless_they_are_typed() -> None:
    nerf = RunConfig(model=NerfConfig(), scene=None)
    grown, said = with_devices(nerf, set(), 4, "rays")
    assert (grown.devices, grown.model.rays, grown.optim.lr) == (4, 4096, 1e-3)
    assert said == {"model.rays": (1024, 4096), "optim.lr": (5e-4, 1e-3)}
    typed, said = with_devices(nerf, {"model.rays", "optim.lr"}, 4, "rays")
    assert (typed.model, typed.optim, said) == (nerf.model, nerf.optim, {})
    sgd = dataclasses.replace(nerf, optim=OptimConfig(optimizer="sgd", schedule="cosine"))
    assert with_devices(sgd, set(), 3, "rays")[0].optim == dataclasses.replace(sgd.optim, lr=3 * 5e-4, lr_final=3 * 5e-6)
    model = InstantConfig()
    model.camera.learn = True
    instant, _ = with_devices(RunConfig(model=model, scene=None), set(), 9, "samples")
    rates = instant.model.camera.lr, instant.model.camera.lr_final
    assert instant.model.samples == 9 * 16_384 and rates == pytest.approx((3e-3, 3e-5))
    assert with_devices(nerf, set(), 1, "rays") == (nerf, {})


def test_one_signal_that_comes_twice_from_torchrun_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for by_torchrun in (True, False):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x") if by_torchrun else monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        heard = Signal()
        with stop_on_signals(heard):
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard.interrupted == signal.SIGTERM
            if by_torchrun:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "2", "--modle.rays", "3"], "no option --modle.rays"),
        (["--devices", "2", "--viewer"], "shared by several processes"),
        (["--devices", "two"], "devices"),
    ],
)
def test_a_wrong_command_line_is_reported_before_processes_start(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nerf", "procedural", *words]) == 1
    reported = capsys.readouterr().err
    assert said in reported and reported.count("\n") == 1 and not list(tmp_path.iterdir())


TINY = shlex.split("--scene.size 16 --scene.views 6 --scene.val-views 0 --scene.test-views 3 --scene.samples 1")
INSTANT = shlex.split("--model.levels 4 --model.log2-entries 10 --model.finest 64 --model.width 32 --model.samples 512 --optim.lr 1e-2")
INSTANT = ["instant", "procedural", *TINY, *INSTANT, "--model.march-steps", "100", "--model.first-march-steps", "50"]
NERF = shlex.split(
    "--model.depth 2 --model.width 32 --model.skips --model.rays 67 --model.samples 8 --model.fine-samples 8 --optim.lr 1e-3"
)
NERF = ["nerf", "procedural", *TINY, *NERF, "--model.raw-noise", "0.1", "--chunk", "40"]
CAMERAS = shlex.split("--model.camera.learn --model.camera.disturb 0.05 --model.camera.lr 1e-3")
CAMERAS += shlex.split("--model.appearance.kind affine --model.appearance.lr 1e-2")


def run_on(count: int, runs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `together` finds, on several processes."""
    (folder / "runs.json").write_text(json.dumps(runs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run([*launcher, together.__file__, "runs.json", "out.json"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def assert_same_losses(found: dict[str, Any], reference: dict[str, Any], tolerance: float = 1e-4) -> None:
    losses, expected = ({int(step): loss for step, loss in run["losses"].items()} for run in (found, reference))
    assert losses and all(math.isclose(loss, expected[step], rel_tol=tolerance) for step, loss in losses.items()), (losses, expected)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Chunks of odd sizes, noise, learned cameras and appearance; and one goes on where two were stopped, with the same losses.

    They agree to stop in the middle of the step after the signal.
    """
    words = {"instant": [*INSTANT, "--steps", "12"], "nerf": [*NERF, "--steps", "6"], "cameras": [*INSTANT, *CAMERAS, "--steps", "6"]}
    runs = [
        {"out": name, "words": each, "stop": 4 if name == "nerf" else None, "scores": name == "instant"} for name, each in words.items()
    ]
    for found, run in zip(run_on(2, runs, tmp_path), runs, strict=True):
        name, each = run["out"], run["words"]
        alone = together.train(str(tmp_path / f"{name}-alone"), each, scores=run["scores"])
        assert_same_losses(found, alone)
        if run["scores"]:
            assert found["psnr"] == pytest.approx(alone["psnr"], rel=1e-3) and list(found["psnr"]) == list(alone["psnr"])
            assert found["pictures"] == ["000.png", "001.png", "002.png"]
        assert len(found["losses"]) == (5 if name == "nerf" else alone["state"]) and found["sent"] > 0
        if name == "nerf":
            assert_same_losses(together.train(str(tmp_path / name), each), alone)
    assert yaml.safe_load((tmp_path / "nerf" / "config.yaml").read_text())["devices"] == 2
