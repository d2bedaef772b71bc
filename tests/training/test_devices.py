"""The choice of a device: what "auto" takes, why it leaves a GPU alone, what a named one costs; and no float64 where a device lacks it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fake_device import FAKE, without_float64
from nerfit.cli import COMMANDS, main
from nerfit.commands.options import TrainingFlags
from nerfit.commands.train_options import TrainOptions, request
from nerfit.commands.train_plan import plan_of
from nerfit.errors import ConfigError
from nerfit.kernels import dispatch
from nerfit.methods.views import render_view
from nerfit.outputs.pictures.render_path import view_normals
from nerfit.training import devices
from nerfit.training.trainer import Trainer

SCENE = ["--scene.size=8", "--scene.views=5", "--scene.test-views=1", "--scene.samples=1"]
GRID = ["--model.levels=2", "--model.log2-entries=8", "--model.finest=16", "--model.width=32", "--model.samples=64"]
MARCH = ["--model.first-march-steps=16", "--model.march-steps=16", "--model.occupancy-probes=256"]
MLP = ["--model.rays=32", "--model.depth=2", "--model.width=16", "--model.skips"]
DENSE = [*MLP, "--model.samples=6"]
TRAININGS = {
    "instant": [*GRID, *MARCH, "--model.distortion=0.01", "--model.camera.learn"],
    "instant-unbounded": [*GRID, "--model.proposal-levels=2", "--model.proposal-log2-entries=8"],
    "nerf": [*DENSE, "--model.fine-samples=6", "--model.appearance.kind=affine"],
    "nerf-occupancy": [*MLP, "--model.march-steps=24"],
    "mipnerf": [*DENSE],
    "mipnerf360": [*DENSE, "--model.proposal-samples", "6", "6"],
}


@pytest.mark.parametrize("method", TRAININGS)
def test_no_float64_reaches_a_device_without_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, and a view with its normals."""
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    plan = plan_of(request(method, "procedural", [*TRAININGS[method], *SCENE, f"--device={FAKE}", "--chunk=64"]))
    scene = plan.load_scene()
    with without_float64() as device:
        trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, tmp_path, quiet=True)
        for _ in range(2):
            trainer.step()
            trainer.state.step += 1
        field = trainer.method.eval()
        view = render_view(field, scene, scene.cameras, scene.splits["test"][0], 64)
        view_normals(field, scene, scene.cameras, scene.splits["test"][0], view, 64)
        assert device.operations > 500


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAININGS)
def test_commands_put_no_float64_on_a_device_without_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, resuming, evaluating, rendering with normals, and exports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NERFIT_KERNELS", "reference")
    with without_float64() as device:
        for words in (
            ["train", method, "procedural", *TRAININGS[method], *SCENE, "--steps=2", "--out=run", "--no-evaluate"],
            ["train", "--out=run", "--resume", "--steps=3", "--no-evaluate"],
            ["eval", "run"],
            ["render", "run", "--frames=1", "--what=rgb,depth,normal"],
            ["export", "points", "run"],
        ):
            before = device.operations
            assert main([*words, "--device", str(FAKE), "--debug"]) == 0
            assert device.operations > before + 50


# --- Fast kernels on a GPU ------------------------------------------------------------------------------------------


def raising(error: Exception) -> Callable[[Any], Any]:
    def kernel(directions: Any) -> Any:
        raise error

    return kernel


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda directions: torch.full((1, 16), 0.28209479177387814), None),
        (lambda directions: torch.zeros(1, 16), "Triton's first kernel gave 0 for 0.282095"),
        (raising(RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")), "install gcc"),
        (raising(subprocess.CalledProcessError(1, "gcc")), "python3-dev"),
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.\nGPU 0")), "its memory is full"),
        (raising(RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")), "its memory is full"),
        (raising(RuntimeError("0 active drivers ([]). There should only be one.")), "(0 active drivers ([]). There should only be one)"),
        (raising(KeyError()), "Triton's first kernel failed (KeyError)"),
    ],
)
def test_the_smallest_kernel_is_tried_once(kernel: Any, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    module = SimpleNamespace(spherical_harmonics=lambda directions: calls.append(1) or kernel(directions))
    monkeypatch.setitem(sys.modules, "nerfit.kernels.triton.spherical_harmonics", module)
    dispatch.triton_fails.cache_clear()
    found = [dispatch.triton_fails(torch.device("cpu")) for _ in range(2)]
    dispatch.triton_fails.cache_clear()
    assert found[0] == found[1] and len(calls) == 1
    assert found[0] is None if reason is None else reason in str(found[0])


def test_triton_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nerfit.kernels.triton.spherical_harmonics", None)
    dispatch.triton_fails.cache_clear()
    assert dispatch.triton_fails(torch.device("cpu")) == "Triton is not installed (pip install triton)"
    dispatch.triton_fails.cache_clear()


# --- The choice -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two GPUs that are not there: what Triton says on each, and their free memory in bytes."""
    here: dict[str, Any] = {"cuda": None, "cuda:1": None, "free": 8 << 30}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (here["free"], 12 << 30))
    monkeypatch.setattr(dispatch, "triton_fails", lambda device: here[str(device).replace(":0", "")])
    devices._why_full.cache_clear()
    return here


def test_auto_takes_a_gpu_with_fast_kernels(gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.pick_device("auto") == torch.device("cuda")
    gpus["cuda"] = "its memory is full"
    assert devices.pick_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")  # a process of several has a GPU of its own
    with pytest.warns(UserWarning, match="left alone, for its memory is full"):
        assert devices.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    "free, triton", [(8 << 30, "Triton needs a C compiler and finds none (install gcc, or set CC)"), (300 << 20, None)]
)
def test_a_gpu_that_can_not_be_used_ends_in_a_training_on_the_cpu(
    free: int, triton: str | None, gpus: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gpus |= {"cuda": triton, "cuda:1": triton, "free": free}
    assert main(["train", "nerf", "procedural", *SCENE, *MLP, "--steps=2", "--out=run", "--no-evaluate"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "GPU" in line]
    reason = triton or "only 0.3 of its 12.0 GiB are free"
    assert said == [f"warning: the GPU is left alone, for {reason}: nerfit computes on the CPU (--device cpu hides this line)."]


def test_memory_that_nerfit_itself_has_taken_does_not_count(gpus: dict[str, Any]) -> None:
    assert devices.pick_device("auto").type == "cuda"
    gpus["free"] = 0
    assert devices.pick_device("auto").type == "cuda"


@pytest.mark.parametrize("cuda, reason", [(None, "built without CUDA"), ("13.0", "finds no driver that works")])
def test_a_gpu_that_pytorch_does_not_reach(cuda: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.warns(UserWarning, match=reason):
        assert devices.pick_device("auto") == torch.device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on purpose
    assert devices.pick_device("auto") == torch.device("cpu")


def test_a_named_device_without_fast_kernels_costs_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    with pytest.warns(UserWarning) as said:
        assert devices.pick_device("mps") == torch.device("mps")
    text = "nerfit has no kernels for mps: instant, instant-unbounded and nerf-occupancy take ten to a hundred times as long as on the CPU."
    assert [str(warning.message) for warning in said] == [f"the kernels run as plain PyTorch on mps, for {text}"]


@pytest.mark.parametrize("name", ["cuda", "mps", "meta", "gpu", "cpu:x"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' can't be used here: "):
        devices.pick_device(name)


def test_doctor_lists_every_device(gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "NVIDIA Ada")
    gpus["cuda:1"] = "its memory is full"
    assert main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("device "))
    assert lines.pop("in").split(maxsplit=1) == ["use", "cuda, 8.0 GiB free"]
    assert lines == {"cpu": "usable", "cuda:0": "NVIDIA Ada: usable", "cuda:1": "NVIDIA Ada: left alone, for its memory is full"}


def test_every_command_that_computes_takes_a_device() -> None:
    elsewhere = {"poses", "export cameras", "convert multiscale", "methods", "recipes", "doctor"}
    for name in COMMANDS.keys() - elsewhere:
        options = import_module(f"nerfit.commands.{COMMANDS[name].module}").Options
        assert hasattr(options, "device") or issubclass(options, TrainingFlags | TrainOptions), name
