"""Weights of the original programs: read, computed with as those programs do, and made into runs that go on."""

import json
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import assert_close
from nerfit.cli import main
from nerfit.commands.old_weights import read_weights
from nerfit.errors import RunError
from nerfit.runs import open_run

Network = dict[str, np.ndarray]
DEPTH, WIDTH, SKIP, OCTAVES, VIEW_OCTAVES = 4, 16, 1, 3, 2


def random_network(seed: int, viewdirs: bool, depth: int = DEPTH) -> Network:
    """A network with nerf-pytorch's names, matrices [out, in]."""
    rng = np.random.default_rng(seed)
    inputs, view = 3 + 6 * OCTAVES, 3 + 6 * VIEW_OCTAVES
    sizes = {f"pts_linears.{i}": (WIDTH, inputs if i == 0 else WIDTH + inputs if i == SKIP + 1 else WIDTH) for i in range(depth)}
    sizes["views_linears.0"] = (WIDTH // 2, view + WIDTH)
    if viewdirs:
        sizes |= {"feature_linear": (WIDTH, WIDTH), "alpha_linear": (1, WIDTH), "rgb_linear": (3, WIDTH // 2)}
    else:
        sizes["output_linear"] = (5, WIDTH)
    out: Network = {}
    for name, (rows, columns) in sizes.items():
        out[f"{name}.weight"] = rng.normal(size=(rows, columns)) * math.sqrt(2 / columns)
        out[f"{name}.bias"] = 0.1 * rng.normal(size=rows)
    return out


def twin(network: Network, point: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Raw red, green, blue and density of one sample, as run_nerf_helpers.py computes them, in float64."""

    def encoded(x: np.ndarray, octaves: int) -> np.ndarray:
        return np.concatenate([x, *[wave(2.0**k * x) for k in range(octaves) for wave in (np.sin, np.cos)]])

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return network[f"{name}.weight"] @ x + network[f"{name}.bias"]

    position, view = encoded(point, OCTAVES), encoded(direction, VIEW_OCTAVES)
    h = position
    for i in range(sum(name.startswith("pts_linears") for name in network) // 2):
        h = np.maximum(layer(f"pts_linears.{i}", h), 0)
        if i == SKIP:
            h = np.concatenate([position, h])
    if "output_linear.weight" in network:
        return layer("output_linear", h)[:4]
    density = layer("alpha_linear", h)
    h = np.maximum(layer("views_linears.0", np.concatenate([layer("feature_linear", h), view])), 0)
    return np.concatenate([layer("rgb_linear", h), density])


def save_tar(path: Path, coarse: Network, fine: Network | None, prefix: str = "") -> Path:
    def state(network: Network) -> "OrderedDict[str, Tensor]":
        return OrderedDict((prefix + name, torch.tensor(a, dtype=torch.float32)) for name, a in network.items())

    saved: dict[str, Any] = {"global_step": 1234, "network_fn_state_dict": state(coarse), "optimizer_state_dict": {"state": {}}}
    torch.save(saved | ({} if fine is None else {"network_fine_state_dict": state(fine)}), path)
    return path


def save_npy(path: Path, network: Network) -> Path:
    """As `np.save(path, model.get_weights())` of a NumPy that made an object array of the list."""
    heads = ["feature_linear", "views_linears.0", "rgb_linear", "alpha_linear"]
    names = [n.removesuffix(".weight") for n in network if n.startswith("pts_linears") and n.endswith("weight")]
    names += heads if "rgb_linear.weight" in network else ["output_linear"]
    rows = slice(None, 4)
    listed = [
        a.astype(np.float32)
        for n in names
        for a in (network[f"{n}.weight"][rows if "output" in n else slice(None)].T, network[f"{n}.bias"])
    ]
    if "output_linear.weight" in network:
        listed[-1] = listed[-1][:4]
    array = np.empty(len(listed), object)
    array[:] = listed
    np.save(path, array, allow_pickle=True)
    return path


@pytest.fixture
def scene(blender_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(blender_folder.parent)
    return blender_folder


@pytest.mark.parametrize("viewdirs", [True, False])
@pytest.mark.parametrize("kind", ["tar", "parallel tar", "npy"])
def test_imported_networks_compute_what_the_originals_did(
    scene: Path, kind: str, viewdirs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse, fine = random_network(0, viewdirs), random_network(1, viewdirs)
    if kind == "npy":
        path = save_npy(Path("model_001234.npy"), coarse)
        save_npy(Path("model_fine_001234.npy"), fine)
    else:
        path = save_tar(Path("001234.tar"), coarse, fine, "module." if kind == "parallel tar" else "")
    flags = ["--model.samples", "8", "--model.fine-samples", "8", "--model.rays", "32"]
    assert main(["import", str(path), "--scene", str(scene), *flags, "--out", "run", "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "run", "steps": 1234, "networks": 2}
    run = open_run(Path("run"), images=False)
    c = run.plan.config
    assert (c.model.depth, c.model.width, c.model.skips, c.model.frequencies, c.model.viewdirs) == (DEPTH, WIDTH, [SKIP], OCTAVES, viewdirs)
    assert (c.scene.pixel_offset, c.model.density_activation, run.state.step) == (0.0, "relu", 1234)
    rng = np.random.default_rng(2)
    points = rng.uniform(-1, 1, (20, 3))
    viewdirs_ = rng.normal(size=(20, 3))
    viewdirs_ /= np.linalg.norm(viewdirs_, axis=1, keepdims=True)
    with torch.no_grad():
        density, rgb = run.method.radiance(torch.from_numpy(points).float(), torch.from_numpy(viewdirs_).float())
    expected = np.stack([twin(fine, p, d) for p, d in zip(points, viewdirs_, strict=True)])
    assert_close(density, np.maximum(expected[:, 3], 0), 1e-4)
    assert_close(rgb, 1 / (1 + np.exp(-expected[:, :3])), 1e-4)
    coarse_field: Any = run.method.coarse
    with torch.no_grad():
        raw = coarse_field.network.raw_density(_encoded(points))
    assert_close(raw, np.stack([twin(coarse, p, d)[3] for p, d in zip(points, viewdirs_, strict=True)]), 1e-4)


def flexible_network(seed: int, viewdirs: bool, include_input: bool, skip: int, layers: int = 7) -> Network:
    """A network with the names of krrish94's FlexibleNeRFModel."""
    rng = np.random.default_rng(seed)
    inputs, view = 3 * include_input + 6 * OCTAVES, 3 * include_input + 6 * VIEW_OCTAVES
    sizes = {"layer1": (WIDTH, inputs)}
    sizes |= {f"layers_xyz.{i}": (WIDTH, WIDTH + (inputs if i == skip else 0)) for i in range(layers)}
    if viewdirs:
        sizes |= {"layers_dir.0": (WIDTH // 2, view + WIDTH), "fc_alpha": (1, WIDTH), "fc_rgb": (3, WIDTH // 2), "fc_feat": (WIDTH, WIDTH)}
    else:
        sizes["fc_out"] = (4, WIDTH)
    out: Network = {}
    for name, (rows, columns) in sizes.items():
        out[f"{name}.weight"] = rng.normal(size=(rows, columns)) * math.sqrt(2 / columns)
        out[f"{name}.bias"] = 0.1 * rng.normal(size=rows)
    return out


def flexible_twin(network: Network, point: np.ndarray, direction: np.ndarray, include_input: bool, skip: int) -> np.ndarray:
    """Raw red, green, blue and density of one sample as krrish94's nerf/models.py computes them (layers_xyz for its misnamed attribute)."""

    def encoded(x: np.ndarray, octaves: int) -> np.ndarray:
        return np.concatenate([*[x] * include_input, *[wave(2.0**k * x) for k in range(octaves) for wave in (np.sin, np.cos)]])

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return network[f"{name}.weight"] @ x + network[f"{name}.bias"]

    xyz, view = encoded(point, OCTAVES), encoded(direction, VIEW_OCTAVES)
    x = layer("layer1", xyz)
    for i in range(sum(name.startswith("layers_xyz") for name in network) // 2):
        x = np.maximum(layer(f"layers_xyz.{i}", np.concatenate([x, xyz]) if i == skip else x), 0)
    if "fc_out.weight" in network:
        return layer("fc_out", x)
    feature = np.maximum(layer("fc_feat", x), 0)
    hidden = np.maximum(layer("layers_dir.0", np.concatenate([feature, view])), 0)
    return np.concatenate([layer("fc_rgb", hidden), layer("fc_alpha", x)])


@pytest.mark.parametrize(("viewdirs", "include_input", "skip"), [(True, True, 4), (True, False, 99), (False, False, 4), (False, True, 99)])
def test_networks_of_the_other_nerf_pytorch(
    scene: Path, viewdirs: bool, include_input: bool, skip: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = flexible_network(1, viewdirs, include_input, skip)
    networks = {"coarse": flexible_network(0, viewdirs, include_input, skip), "fine": fine}
    states = {f"model_{k}_state_dict": {n: torch.tensor(a, dtype=torch.float32) for n, a in net.items()} for k, net in networks.items()}
    torch.save({"iter": 199_999, **states, "loss": torch.ones(1, requires_grad=True) * 2, "psnr": 22.5}, "checkpoint199999.ckpt")
    flags = ["--model.samples", "8", "--model.fine-samples", "8", "--model.rays", "32"]
    assert main(["import", "checkpoint199999.ckpt", "--scene", str(scene), *flags, "--out", "run", "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "run", "steps": 199_999, "networks": 2}
    run = open_run(Path("run"), images=False)
    rng = np.random.default_rng(2)
    points, directions = rng.uniform(-1, 1, (20, 3)), rng.normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    with torch.no_grad():
        density, rgb = run.method.radiance(torch.from_numpy(points).float(), torch.from_numpy(directions).float())
    expected = np.stack([flexible_twin(fine, p, d, include_input, skip) for p, d in zip(points, directions, strict=True)])
    assert_close(density, np.maximum(expected[:, 3], 0), 1e-4)
    assert_close(rgb, 1 / (1 + np.exp(-expected[:, :3])), 1e-4)


def test_other_networks_and_frequencies_of_that_program_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint00000.ckpt"
    state = {n: torch.tensor(a) for n, a in flexible_network(0, True, True, 4).items()}
    torch.save({"iter": 0, "model_coarse_state_dict": {"layer1.weight": state["layer1.weight"]}, "model_fine_state_dict": None}, path)
    with pytest.raises(RunError, match="no FlexibleNeRFModel"):
        read_weights(path)
    torch.save({"iter": 0, "model_coarse_state_dict": state, "model_fine_state_dict": None}, path)
    assert read_weights(path).fine is None
    (tmp_path / "config.yml").write_text("models:\n  coarse:\n    log_sampling_xyz: false\n")
    with pytest.raises(RunError, match="evenly spaced"):
        read_weights(path)


def _encoded(points: np.ndarray) -> Tensor:
    from nerfit.fields.frequency import frequency_encoding

    return frequency_encoding(torch.from_numpy(points).float(), OCTAVES)


def test_an_imported_run_is_evaluated_rendered_and_resumed(scene: Path) -> None:
    save_tar(Path("001234.tar"), random_network(0, True), None)
    flags = ["--model.samples", "8", "--model.rays", "32", "--threads", "1", "--log.image-every", "0"]
    assert main(["import", "001234.tar", "--scene", "ball", *flags, "--out", "run"]) == 0
    assert main(["eval", "run"]) == 0
    assert main(["render", "run", "--path", "test"]) == 0
    assert main(["train", "--out", "run", "--resume", "--steps", "1240", "--no-evaluate"]) == 0
    assert open_run(Path("run"), images=False).state.step == 1240


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


@pytest.mark.parametrize("kind", ["trap.npy", "trap.tar", "plain.npy", "text.tar", "absent.npy", "photo.jpg"])
def test_anything_else_is_refused_and_nothing_is_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(kind)
    if kind == "trap.npy":
        array = np.empty(2, object)
        array[:] = [Trap(), np.zeros(3)]
        np.save(path, array, allow_pickle=True)
    elif kind == "trap.tar":
        path.write_bytes(pickle.dumps({"global_step": Trap()}))
    elif kind == "plain.npy":
        np.save(path, np.zeros((3, 3)))
    elif kind == "text.tar":
        path.write_text("no weights")
    with pytest.raises(RunError) as refusal:
        read_weights(path)
    assert "\n" not in str(refusal.value) and not Path("sprung").exists()
