"""Damaged and malicious checkpoints, run folders, recipes and old weights: they are used or refused in one sentence, in bounded time
and memory, and nothing in them is executed. The sibling of test_fuzz_readers, whose damage and limits it shares.

As a script, ``test_fuzz_runs.py FIRST COUNT FOLDER SUBJECT...``, it is the half that may die.
"""

import contextlib
import io
import json
import pickle
import random
import re
import struct
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load, save
from test_checkpoints import TINY, saved
from test_fuzz_readers import ODD, Subject, check_sentence, damaged_bytes, damaged_json, damaged_text, fuzz, linux, survive_as_asked

from nerfit.cli import main
from nerfit.commands.old_weights import read_weights
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of
from nerfit.config import arguments, parse
from nerfit.errors import ConfigError, NerfitError, RunError
from nerfit.recipes.loading import load_recipe
from nerfit.runs import Plan, default_config, open_run
from nerfit.training.checkpoints import _checksum, checkpoints, load_checkpoint
from nerfit.training.trainer import Trainer

QUICK, THOROUGH = 40, 1000


# --- Checkpoints ----------------------------------------------------------------------------------------------------


def write_checkpoints(folder: Path) -> None:
    saved(folder, 1)
    saved(folder, 2)


def damage_newest(rng: random.Random, folder: Path) -> None:
    damage_safetensors(rng, checkpoints(folder)[0])


def damage_safetensors(rng: random.Random, file: Path) -> None:
    """Flipped bytes, another header, sizes beyond everything; or other tensors and another state with a checksum that is right."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    match rng.randrange(6):
        case 0 | 1:
            data = damaged_bytes(rng, data)
        case 2:
            header = damaged_json(rng, data[8 : 8 + size])
            data = struct.pack("<Q", len(header)) + header + data[8 + size :]
        case 3:
            data = struct.pack("<Q", rng.choice((0, 1, size - 1, size + 1, 10**8, 2**40, 2**63, 2**64 - 1))) + data[8:]
        case 4:
            header = json.loads(data[8 : 8 + size])
            name = rng.choice(sorted(header))
            if name != "__metadata__":
                key = rng.choice(("shape", "data_offsets"))
                header[name][key] = rng.choice(([2**40], [2**62, 2**62], [0, 2**63], [-1, 5], [], [10**30], ["1"], [1e9]))
            text = json.dumps(header).encode()
            data = struct.pack("<Q", len(text)) + text + data[8 + size :]
        case _:
            data = forged(rng, data, json.loads(data[8 : 8 + size]).get("__metadata__", {}))
    file.write_bytes(data)


def forged(rng: random.Random, data: bytes, about: dict[str, str]) -> bytes:
    """A file that contradicts nothing in itself, but was written by no training."""
    tensors = load(data)
    for _ in range(rng.choice((0, 1, 3))):
        name = rng.choice(sorted(tensors))
        t = tensors.pop(name)
        other = rng.choice((name, name + ".x", name.replace("0", "7"), "optim.x.y", "model.", "optim.99999999999.exp_avg", "é"))
        kinds = (torch.float16, torch.int64, torch.bool, torch.float64, torch.complex64, torch.uint8)
        made = (t.flatten()[:0], t.flatten(), t[None], t * torch.nan, t.to(rng.choice(kinds)), torch.zeros(()), torch.full((3, 3), 1e38))
        tensors[other] = rng.choice(made).contiguous()
    if "state" in about and rng.random() < 0.7:
        about["state"] = damaged_json(rng, about["state"].encode()).decode()
    elif about and rng.random() < 0.3:
        about[rng.choice(sorted(about))] = str(rng.choice(ODD))[:1000].encode(errors="replace").decode()
    if "state" in about:
        about["crc32"] = str(_checksum(about["state"], tensors))
    return save(tensors, about)


# --- Run folders, recipes, old weights ------------------------------------------------------------------------------

WORDS = ["train", "nerf", "procedural", *TINY, "--model.camera.learn", "--steps=6"]


def write_run(folder: Path) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        assert main([*WORDS, "--out", str(folder / "run")]) == 0


def damage_run(rng: random.Random, folder: Path) -> None:
    files = [path for path in (folder / "run").rglob("*") if path.suffix in DAMAGES]
    file = rng.choice(sorted(files))
    DAMAGES[file.suffix](rng, file)


def use_run(folder: Path) -> None:
    """As `Run.open`, and as --resume begins."""
    run = open_run(folder / "run", images=False)
    repr(run)
    if max(map(int, torch.cat([run.scene.cameras.width, run.scene.cameras.height]))) < 100:
        run.render(run.scene.cameras[0])
    plan = Plan.load(folder / "run")
    Trainer(lambda: plan.make_method(run.scene), run.scene, plan.config, folder / "run", quiet=True)


LETTERS = "abcdefgh"
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(LETTERS))
NASTY = [
    BOMB, "a: &a {b: *a}\n", "? [a]\n: 1\n", "!!python/object/apply:os.system [touch hacked]\n", "optim: !!python/name:os.system\n",
    "steps: !!binary aGk=\n", "steps: 2001-99-99\n", "steps: 2001-01-01\n", f"steps: {'9' * 5000}\n", "steps: 1e400\n", "steps: .nan\n",
    f"steps: {'[' * 5000}\n", f"steps: {'{a: ' * 5000}\n", "x: " * 2000 + "\n", "- 1\n", "", "%TAG ! tag:x,2000:\n---\na: 1\n",
    "steps: 1:60:60:60\n", "optim: {<<: {lr: 1}}\n", "---\na: 1\n---\nb: 2\n", "'--help': 1\n", "parent: [x]\n", "method: {a: b}\n",
    "steps: --help\n", "'a b': 1\n",
]  # fmt: skip


def damage_yaml(rng: random.Random, file: Path) -> None:
    """Its text, its tree, or something nasty before, after or within it."""
    text = file.read_bytes()
    match rng.randrange(4):
        case 0:
            text = damaged_bytes(rng, text)
        case 1:
            text = damaged_text(rng, text)
        case 2:
            tree = damaged_json(rng, json.dumps(yaml.safe_load(text)).encode())
            text = tree if rng.random() < 0.5 else damaged_text(rng, tree)
        case _:
            lines = text.decode().splitlines(keepends=True)
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(NASTY))
            text = "".join(lines).encode() if rng.random() < 0.7 else rng.choice(NASTY).encode()
    file.write_bytes(text)


def damage_json(rng: random.Random, file: Path) -> None:
    file.write_bytes(damaged_json(rng, file.read_bytes()))


DAMAGES = {".json": damage_json, ".yaml": damage_yaml, ".safetensors": damage_safetensors}


def write_recipe(folder: Path) -> None:
    (folder / "r.yaml").write_text("parent: nerf-small\nmethod: nerf\nsteps: 20\nmodel:\n  depth: 2\n  skips: [1]\noptim: {lr: 1.0e-3}\n")


def use_recipe(folder: Path) -> None:
    plan_of(request("nerf", "procedural", ["--recipe", str(folder / "r.yaml")]))


def write_old_config(folder: Path) -> None:
    lines = ("expname = fern", "basedir = ./logs", "datadir = data", "dataset_type = llff", "use_viewdirs = True", "lrate = 5e-4")
    (folder / "c.txt").write_text("\n".join(lines) + "\n")


def damage_old_config(rng: random.Random, folder: Path) -> None:
    file = folder / "c.txt"
    file.write_bytes(rng.choice((damaged_text, damaged_bytes))(rng, file.read_bytes()))


def use_old_config(folder: Path) -> None:
    recipe = load_recipe(str(folder / "c.txt"))
    parse(type(default_config("nerf", "llff")), arguments(recipe.values), default_config("nerf", "llff"))


def old_network() -> dict[str, torch.Tensor]:
    sizes = {"pts_linears.0": (4, 9), "pts_linears.1": (4, 4), "output_linear": (4, 4)}
    return {f"{name}.{part}": torch.ones(s if part == "weight" else s[:1]) for name, s in sizes.items() for part in ("weight", "bias")}


def write_weights(folder: Path) -> None:
    state = {"global_step": 5, "network_fn_state_dict": old_network(), "network_fine_state_dict": None}
    torch.save(state, folder / "new.tar")
    torch.save(state, folder / "old.tar", _use_new_zipfile_serialization=False)
    sizes = {"layer1": (4, 9), "layers_xyz.0": (4, 4), "layers_dir.0": (2, 13), "fc_alpha": (1, 4), "fc_rgb": (3, 2), "fc_feat": (4, 4)}
    flexible = {f"{name}.{part}": torch.ones(s if part == "weight" else s[:1]) for name, s in sizes.items() for part in ("weight", "bias")}
    torch.save({"iter": 5, "model_coarse_state_dict": flexible, "model_fine_state_dict": None}, folder / "checkpoint00005.ckpt")
    arrays = np.empty(6, object)
    arrays[:] = [t.T.numpy() for t in old_network().values()]
    np.save(folder / "model_000005.npy", arrays, allow_pickle=True)


def damage_weights(rng: random.Random, folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))


def use_weights(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        try:
            read_weights(file).flags()
        except NerfitError as error:
            check_sentence(str(error))


def damage_config(rng: random.Random, folder: Path) -> None:
    damage_yaml(rng, folder / "run" / "config.yaml")


def damage_recipe(rng: random.Random, folder: Path) -> None:
    damage_yaml(rng, folder / "r.yaml")


SUBJECTS = {
    "checkpoint": Subject(write_checkpoints, damage_newest, load_checkpoint),
    "run": Subject(write_run, damage_run, use_run),
    "config": Subject(write_run, damage_config, lambda folder: Plan.load(folder / "run")),
    "recipe": Subject(write_recipe, damage_recipe, use_recipe),
    "old config": Subject(write_old_config, damage_old_config, use_old_config),
    "old weights": Subject(write_weights, damage_weights, use_weights),
}


def use(name: str, folder: Path, whole: bool = False) -> None:
    """Use what was written, which may be refused unless it is ``whole``; raises where it is used as it must not be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            SUBJECTS[name].use(folder)
        except NerfitError as error:
            check_sentence(str(error))
            assert not whole, error
    assert not Path("hacked").exists(), "something in it was executed"


@linux
def test_damaged_runs_and_recipes_are_used_or_refused_in_a_sentence(tmp_path: Path) -> None:
    fuzz(0, QUICK, tmp_path / "fuzz", list(SUBJECTS), __file__)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_damaged_runs_and_recipes(name: str, tmp_path: Path) -> None:
    fuzz(QUICK, THOROUGH, tmp_path / "fuzz", [name], __file__)


# --- What would be executed -----------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("hacked"),)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_evil_file_is_evil(here: Path) -> None:
    pickle.loads(pickle.dumps(Evil()))
    assert Path("hacked").exists()


@pytest.mark.parametrize("name", ["a.tar", "b.tar", "d.ckpt", "model_000001.npy", "c.npy"])
def test_weights_that_would_run_code_are_refused(here: Path, name: str) -> None:
    state = {"global_step": 1, "network_fn_state_dict": Evil(), "network_fine_state_dict": None}
    if not name.endswith(".npy"):
        torch.save(state, name, _use_new_zipfile_serialization=name != "b.tar")
    else:
        np.save(name, np.array([Evil(), np.ones((3, 3))], object), allow_pickle=True)
    with pytest.raises(RunError, match="can't be read as the weights of a NeRF"):
        read_weights(Path(name))
    assert main(["import", name, "--scene", "procedural"]) == 1
    assert not Path("hacked").exists()


def test_a_checkpoint_that_is_a_pickle_is_damaged(here: Path) -> None:
    Path("step_00000001.safetensors").write_bytes(pickle.dumps(Evil()))
    buffer = io.BytesIO()
    torch.save({"model.x": Evil()}, buffer)
    Path("step_00000002.safetensors").write_bytes(buffer.getvalue())
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(RunError, match="all 2 checkpoints"):
        load_checkpoint(here)
    assert not Path("hacked").exists()


@pytest.mark.parametrize("text", [text for text in NASTY if text.strip() and not text.startswith(("%TAG", "optim: {<<"))])
def test_settings_are_plain_data(here: Path, text: str) -> None:
    Path("r.yaml").write_text(text)
    with pytest.raises(ConfigError):
        use_recipe(here)
    assert not Path("hacked").exists()


@pytest.mark.parametrize("value", ["__import__('os').system('touch hacked')", "$(touch hacked)", "`touch hacked`", "lambda: 0"])
def test_values_are_never_evaluated(here: Path, value: str) -> None:
    for words in (["--optim.lr", value], ["--model.skips", value], ["--out", value, "--steps", "x"]):
        with pytest.raises(ConfigError):
            plan_of(request("nerf", "procedural", words))
    assert not Path("hacked").exists()


def test_nothing_in_the_package_loads_pickles_or_code() -> None:
    """`old_weights` has the one unpickler, which knows arrays alone, and the one torch.load, of weights alone."""
    sources = {path.name: path.read_text() for path in Path(main.__code__.co_filename).parent.rglob("*.py")}
    calls = ("pickle.load", "Unpickler", "torch.load(", "yaml.load(", "yaml.unsafe", "allow_pickle=True", "shell=True", "os.system")
    found = {(name, call) for name, text in sources.items() for call in calls if call in text}
    found |= {(name, call) for name, text in sources.items() for call in re.findall(r"(?<![\w.])(?:eval|exec)\(", text)}
    allowed = {("old_weights.py", "Unpickler"), ("old_weights.py", "torch.load("), ("config.py", "yaml.load(")}
    assert found - allowed == set()
    assert 'torch.load(path, map_location="cpu", weights_only=True)' in sources["old_weights.py"]


if __name__ == "__main__":
    survive_as_asked(SUBJECTS, use)
