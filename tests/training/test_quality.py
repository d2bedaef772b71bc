"""The recipes of `nerf` trained for real, to a PSNR on held-out views that a broken one can't reach: three minutes each and more.

A smaller network is trained in every run of the tests (`test_fields.py`), as is every other method beside this file.
"""

from pathlib import Path
from typing import Any

import pytest

from nerfit.commands import train_run
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import prepare
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.scenes.formats import procedural
from nerfit.scenes.scene import Scene
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import LoopConfig, Trainer


def train(tmp_path: Path, *words: str) -> dict[str, Any]:
    """What `nerfit train` reaches, for instance ["test"]["psnr"]."""
    plan, options, folder = prepare(request(words[0], words[1], [*words[2:], "--out", str(tmp_path / "run"), "--json"]))
    return train_run.train(plan, options, folder)


SMALL = [
    "--recipe",
    "nerf-small",
    "--scene.size",
    "40",
    "--scene.samples",
    "2",
    "--model.rays",
    "384",
    "--model.fine-width",
    "64",
    "--precision",
    "float32",
]


@pytest.mark.slow
def test_nerf_learns_an_object(tmp_path: Path) -> None:
    """On these held-out views the mean training picture scores 17.9 dB, the best of all training pictures for each 19.7."""
    reached = train(tmp_path, "nerf", "procedural", *SMALL, "--steps", "600", "--model.precrop-steps", "60")
    assert reached["test"]["psnr"] > 20.5


@pytest.mark.slow
def test_nerf_learns_a_forward_facing_scene(tmp_path: Path) -> None:
    """In NDC; the mean training picture scores 15.6 dB, the best of all training pictures for each view 17.1."""
    reached = train(tmp_path, "nerf", "procedural:forward-facing", *SMALL, "--steps", "500", "--model.precrop-steps", "0")
    assert reached["test"]["psnr"] > 18.5


def _relu_run(scene: Scene, seed: int, folder: Path, steps: int) -> Trainer:
    """The original recipe (ReLU, Glorot, one image per step, centre crop first) on a network small enough to repeat."""
    model = NerfConfig(depth=4, width=64, skips=[], frequencies=6, view_frequencies=2, samples=24, fine_samples=24, rays=256)
    model.density_activation, model.precrop_steps = "relu", steps // 4
    log = LogConfig(image_every=0, save_every=0)
    loop = LoopConfig(optim=OptimConfig(lr=1e-3), log=log, steps=steps, seed=seed, device="cpu")
    trainer = Trainer(lambda: Nerf(model, scene), scene, loop, folder, quiet=True)
    trainer.train()
    return trainer


@pytest.mark.slow
def test_ten_seeds_of_the_relu_recipe_all_end_alive(tmp_path: Path) -> None:
    """None ends as one flat colour, whatever it began as."""
    from nerfit.evaluation.evaluate import evaluate

    scene = procedural.load("procedural", procedural.Config(size=40, views=30, test_views=3, samples=2))
    reached = {}
    for seed in range(10):
        trainer = _relu_run(scene, seed, tmp_path / str(seed), 400)
        reached[seed] = (evaluate(trainer.method, scene, 4096)["psnr"], trainer.state.restarts)
    print(reached)
    assert min(psnr for psnr, _ in reached.values()) > 15, reached


@pytest.mark.slow
def test_lego_in_fifteen_minutes(tmp_path: Path, data_folder: Path) -> None:
    """The small recipe on real pictures, two cores: at least 24 dB on the 20 test views."""
    reached = train(tmp_path, "nerf", str(data_folder / "lego_100px"), "--recipe", "nerf-small", "--seconds", "900")
    assert reached["test"]["psnr"] >= 24


@pytest.mark.slow
def test_fern_in_fifteen_minutes(tmp_path: Path, data_folder: Path) -> None:
    """The small recipe on photographs at factor 16, views 0, 8 and 16 held out: above 20 dB."""
    fern = str(data_folder / "nerf_llff_data" / "fern")
    reached = train(tmp_path, "nerf", fern, "--recipe", "llff-small", "--seconds", "900")
    assert reached["test"]["psnr"] > 20


@pytest.mark.slow
def test_one_full_size_picture(tmp_path: Path, data_folder: Path) -> None:
    """The teaching recipe's 10,000 steps on an 800x800 view over white: at least 30 dB."""
    picture = str(data_folder / "nerf_synthetic" / "lego" / "train" / "r_0.png")
    assert train(tmp_path, "image", picture, "--recipe", "image")["test"]["psnr"] >= 30
