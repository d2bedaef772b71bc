"""Old configs translate into recipes, and the shipped recipes are what they say."""

import re
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from nerfit.errors import ConfigError
from nerfit.plugins import find
from nerfit.recipes.legacy import FLAGS, FORMATS, is_legacy, translate
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.perceptual import PerceptualConfig

FERN = """
expname = fern_test
basedir = ./logs
datadir = ./data/nerf_llff_data/fern
dataset_type = llff
factor = 8
llffhold = 8
N_rand = 1024
N_samples = 64
N_importance = 64
use_viewdirs = True
raw_noise_std = 1e0
"""
LEGO = """
expname = blender_paper_lego
basedir = ./logs
datadir = ./data/nerf_synthetic/lego
dataset_type = blender
no_batching = True
use_viewdirs = True
white_bkgd = True
lrate_decay = 500
N_samples = 64
N_importance = 128
N_rand = 1024
precrop_iters = 500
precrop_frac = 0.5
half_res = True
"""
PAPER_BLENDER = """
dataset_type = blender
no_batching = True
use_viewdirs = True
white_bkgd = True
lrate_decay = 500
N_samples = 64
N_importance = 128
N_rand = 1024
"""
PAPER_LLFF = """
dataset_type = llff
factor = 4
llffhold = 8
no_batching = False
use_viewdirs = True
lrate_decay = 250
raw_noise_std = 1.0
N_samples = 64
N_importance = 128
N_rand = 4096
"""
BMILD_LEGO = """
dataset_type = blender
half_res = True
no_batching = True
N_samples = 64
N_importance = 64
N_rand = 1024
use_viewdirs = True
white_bkgd = True
"""
BMILD_DEEPVOXELS = """
dataset_type = deepvoxels
shape = greek
no_batching = True
use_viewdirs = True
white_bkgd = True
N_samples = 64
N_importance = 64
N_rand = 1024
"""
PAPER_DEEPVOXELS = """
dataset_type = deepvoxels
no_batching = True
use_viewdirs = True
white_bkgd = True
lrate_decay = 200
N_samples = 64
N_importance = 128
N_rand = 4096
"""
BLENDER_SCENES = ["chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship"]
LLFF_SCENES = ["fern", "flower", "fortress", "horns", "leaves", "orchids", "room", "trex"]

TOP = {"steps": int, "epochs": int, "seconds": float, "seed": int, "threads": int, "device": str, "precision": str, "chunk": int}


def write(folder: Path, text: str, name: str = "old.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def translated(folder: Path, text: str) -> dict[str, Any]:
    return translate(write(folder, text))[0]


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        translate(write(folder, text))
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and "old.txt" in message
    return message


VARIANTS = yaml.safe_load((files("nerfit") / "recipes" / "variants.yaml").read_text())


def shipped(name: str) -> dict[str, Any]:
    """A shipped recipe with its parents underneath."""
    file = files("nerfit") / "recipes" / f"{name}.yaml"
    data = yaml.safe_load(file.read_text()) if file.is_file() else dict(VARIANTS[name])
    parent = shipped(data.pop("parent")) if "parent" in data else {}
    for key, value in data.items():
        parent[key] = parent.get(key, {}) | value if isinstance(value, dict) else value
    return parent


def names() -> list[str]:
    found = {path.name.removesuffix(".yaml") for path in (files("nerfit") / "recipes").iterdir() if path.name.endswith(".yaml")}
    return sorted(found - {"variants"} | VARIANTS.keys())


def essence(recipe: dict[str, Any]) -> dict[str, Any]:
    """What two recipes of the same training share: their effective model, optimiser, steps and scene, not the rest."""
    model = asdict(find("nerfit.methods", recipe["method"]).Config(**recipe["model"]))
    model |= {"fine_depth": model["fine_depth"] or model["depth"], "fine_width": model["fine_width"] or model["width"]}
    scene = {key: value for key, value in recipe["scene"].items() if key not in ("testskip", "shape")}
    return {"model": model, "scene": scene, "optim": {"decay_rate": 0.1} | recipe["optim"], "steps": recipe["steps"]}


@pytest.mark.parametrize(
    ("text", "name", "steps"),
    [
        (FERN, "fern", 200_000),
        (FERN, "bmild-fern", 200_000),
        (LEGO, "lego", 200_000),
        (BMILD_LEGO, "bmild-lego", 200_000),
        (PAPER_BLENDER, "lego-paper", 500_000),
        (PAPER_LLFF, "fern-paper", 200_000),
        (BMILD_DEEPVOXELS, "deepvoxels", 200_000),
        (PAPER_DEEPVOXELS, "deepvoxels-paper", 200_000),
    ],
)
def test_old_config_is_the_shipped_recipe(tmp_path: Path, text: str, name: str, steps: int) -> None:
    recipe = translated(tmp_path, f"{text}\nN_iters = {steps}\n")
    assert essence(recipe) == essence(shipped(name))
    assert recipe["method"] == "nerf" and recipe["format"] == shipped(name)["format"]


def test_fern_in_full(tmp_path: Path) -> None:
    recipe, notes = translate(write(tmp_path, FERN))
    assert recipe["source"] == "./data/nerf_llff_data/fern" and recipe["out"] == "logs/fern_test"
    expected = """
    scene: {factor: 8, holdout: 8, recentre: true, bd_factor: 0.75, spherify: false, ndc: true, background: black, pixel_offset: 0.0}
    model: {depth: 8, width: 256, fine_depth: 8, fine_width: 256, skips: [4], viewdirs: true, frequencies: 10, view_frequencies: 4,
      samples: 64, fine_samples: 64, jitter: true, lindisp: false, raw_noise: 1.0, density_activation: relu, density_bias: 0.0,
      init: glorot, batching: all, rays: 1024, precrop_steps: 0}
    optim: {optimizer: adam, lr: 5.0e-4, eps: 1.0e-8, schedule: exponential, decay_rate: 0.1, decay_steps: 250000}
    log: {print_every: 100, image_every: 500, save_every: 10000, test_every: 50000, video_every: 50000}
    """
    for section, values in yaml.safe_load(expected).items():
        assert recipe[section] == values
    assert len(notes) == 1 and "--steps" in notes[0]


def test_defaults_are_the_old_ones(tmp_path: Path) -> None:
    recipe = translated(tmp_path, "dataset_type = blender")
    assert recipe["scene"] == {"factor": 1, "testskip": 8, "background": "black", "pixel_offset": 0.0}
    assert recipe["model"]["rays"] == 4096 and recipe["model"]["batching"] == "all"
    assert recipe["model"]["fine_samples"] == 0 and recipe["model"]["viewdirs"] is False
    assert not {"source", "out", "chunk", "seed"} & recipe.keys()
    assert translated(tmp_path, "# nothing")["format"] == "llff"


CHANGES: dict[str, tuple[str, str, Any]] = {
    "expname": ("expname = x", "out", "logs/x"),
    "basedir": ("expname = x\nbasedir = /big/disk", "out", "/big/disk/x"),
    "datadir": ("datadir = /data/fern", "source", "/data/fern"),
    "netdepth": ("netdepth = 5", "model.depth", 5),
    "netwidth": ("netwidth = 64", "model.width", 64),
    "netdepth_fine": ("N_importance = 9\nnetdepth_fine = 6", "model.fine_depth", 6),
    "netwidth_fine": ("N_importance = 9\nnetwidth_fine = 32", "model.fine_width", 32),
    "N_rand": ("N_rand = 512", "model.rays", 512),
    "N_iters": ("N_iters = 7", "steps", 7),
    "lrate": ("lrate = 1e-3", "optim.lr", 1e-3),
    "lrate_decay": ("lrate_decay = 500", "optim.decay_steps", 500_000),
    "no_batching": ("no_batching = True", "model.batching", "image"),
    "random_seed": ("random_seed = 3", "seed", 3),
    "precrop_iters": ("no_batching = True\nprecrop_iters = 500", "model.precrop_steps", 500),
    "precrop_frac": ("no_batching = True\nprecrop_iters = 1\nprecrop_frac = 0.3", "model.precrop_fraction", 0.3),
    "N_samples": ("N_samples = 16", "model.samples", 16),
    "N_importance": ("N_importance = 16", "model.fine_samples", 16),
    "perturb": ("perturb = 0.", "model.jitter", False),
    "use_viewdirs": ("use_viewdirs = True", "model.viewdirs", True),
    "i_embed": ("i_embed = -1", "model.frequencies", 0),
    "multires": ("multires = 6", "model.frequencies", 6),
    "multires_views": ("use_viewdirs = True\nmultires_views = 2", "model.view_frequencies", 2),
    "raw_noise_std": ("raw_noise_std = 1e0", "model.raw_noise", 1.0),
    "dataset_type": ("dataset_type = blender", "format", "blender"),
    "testskip": ("dataset_type = blender\ntestskip = 0", "scene.testskip", 1),
    "shape": ("dataset_type = deepvoxels\nshape = cube", "scene.shape", "cube"),
    "white_bkgd": ("white_bkgd = True", "scene.background", "white"),
    "half_res": ("dataset_type = blender\nhalf_res = True", "scene.factor", 2),
    "factor": ("factor = 4", "scene.factor", 4),
    "no_ndc": ("no_ndc = True", "scene.ndc", False),
    "lindisp": ("no_ndc = True\nlindisp = True", "model.lindisp", True),
    "spherify": ("no_ndc = True\nspherify = True", "scene.spherify", True),
    "llffhold": ("llffhold = 0", "scene.holdout", 0),
    "i_print": ("i_print = 1", "log.print_every", 1),
    "i_img": ("i_img = 2", "log.image_every", 2),
    "i_weights": ("i_weights = 3", "log.save_every", 3),
    "i_testset": ("i_testset = 4", "log.test_every", 4),
    "i_video": ("i_video = 5", "log.video_every", 5),
}
REFUSED = {
    "no_reload": ("no_reload = True", "--resume"),
    "ft_path": ("ft_path = logs/model_200000.npy", "--init RUN"),
    "render_only": ("render_only = True", "nerfit render RUN"),
    "render_test": ("render_test = True", "--path test"),
    "render_factor": ("render_factor = 4", "--factor"),
}
NOTED = {
    "config": "config = a.txt",
    "chunk": "chunk = 32768",
    "netchunk": "netchunk = 65536",
    "netchunk_per_gpu": "netchunk_per_gpu = 1024",
}


def lookup(recipe: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        recipe = recipe.get(part, {})
    return recipe


def test_every_flag_is_tested() -> None:
    assert CHANGES.keys() | REFUSED.keys() | NOTED.keys() == FLAGS.keys()


@pytest.mark.parametrize("flag", CHANGES)
def test_flag_lands_where_it_belongs(tmp_path: Path, flag: str) -> None:
    text, dotted, value = CHANGES[flag]
    without = "\n".join(line for line in text.splitlines() if not line.startswith(f"{flag} ="))
    assert lookup(translated(tmp_path, text), dotted) == value != lookup(translated(tmp_path, without), dotted)


@pytest.mark.parametrize("flag", REFUSED)
def test_refused_flag_says_what_to_use(tmp_path: Path, flag: str) -> None:
    text, advice = REFUSED[flag]
    message = refusal(tmp_path, f"dataset_type = llff\n{text}")
    assert flag in message and advice in message and "line 2" in message
    assert translated(tmp_path, f"{flag} = {FLAGS[flag].default}") == translated(tmp_path, "")


@pytest.mark.parametrize("flag", NOTED)
def test_needless_flag_is_noted(tmp_path: Path, flag: str) -> None:
    recipe, notes = translate(write(tmp_path, NOTED[flag]))
    assert recipe == translated(tmp_path, "") and any(note.startswith(f"'{flag}'") for note in notes)


def test_wrong_lines_are_named(tmp_path: Path) -> None:
    assert "line 3" in (message := refusal(tmp_path, "\nN_rand = 1\nN_sample = 1")) and "'N_samples'" in message
    assert "whole number" in refusal(tmp_path, "N_rand = many")
    assert "whole number" in refusal(tmp_path, "N_rand = [1, 2]")
    assert "whole number" in refusal(tmp_path, "N_rand =")
    assert "True or False" in refusal(tmp_path, "no_batching = maybe")
    assert "key = value" in refusal(tmp_path, "= 3")
    with pytest.raises(ConfigError, match="can't be read"):
        translate(tmp_path / "missing.txt")


def test_syntax_of_configargparse(tmp_path: Path) -> None:
    text = """
        # a comment
        ; another
        [section]
        ---
        expname = "my scene"  # why not
        datadir: 'C:\\data#1\\fern' ; here
        no_batching
        use_viewdirs   # bare, with a comment
        --N_rand 512
        N_samples=32
        lindisp = no
        half_res = false
        factor = 4
        factor = 2
        ft_path = None
    """
    recipe = translated(tmp_path, text)
    assert recipe["out"] == "logs/my scene" and recipe["source"] == "C:\\data#1\\fern"
    assert recipe["model"]["batching"] == "image" and recipe["model"]["viewdirs"] and not recipe["model"]["lindisp"]
    assert recipe["model"]["rays"] == 512 and recipe["model"]["samples"] == 32 and recipe["scene"]["factor"] == 2


def test_args_of_an_old_run_say_the_same_as_its_config(tmp_path: Path) -> None:
    given = {line.split(" = ")[0]: line.split(" = ")[1] for line in LEGO.splitlines() if line}
    everything = {key: flag.default for key, flag in FLAGS.items() if not key.startswith("N_iters")} | given
    args = "".join(f"{key} = {value}\n" for key, value in sorted(everything.items()))
    assert translate(write(tmp_path, args)) == translate(write(tmp_path, LEGO))


def test_interplay(tmp_path: Path) -> None:
    recipe, notes = translate(write(tmp_path, "lindisp = True"))
    assert recipe["model"]["lindisp"] is False and any("lindisp" in note for note in notes)
    recipe, notes = translate(write(tmp_path, "dataset_type = blender\nlindisp = True\nfactor = 4\nwhite_bkgd = True"))
    assert recipe["model"]["lindisp"] is True and recipe["scene"]["factor"] == 1 and any("'factor'" in note for note in notes)
    recipe, notes = translate(write(tmp_path, "spherify = True\nlindisp = True"))
    assert recipe["scene"]["spherify"] and recipe["scene"]["ndc"] is False and recipe["model"]["lindisp"]
    assert any("no_ndc" in note for note in notes) and not any("lindisp" in note for note in notes)
    recipe, notes = translate(write(tmp_path, "precrop_iters = 500"))
    assert recipe["model"]["precrop_steps"] == 0 and any("no_batching" in note for note in notes)
    recipe, notes = translate(write(tmp_path, "i_embed = 1"))
    assert recipe["model"]["frequencies"] == 10 and any("i_embed" in note for note in notes)
    recipe = translated(tmp_path, "i_embed = -1\nuse_viewdirs = True")
    assert recipe["model"]["frequencies"] == recipe["model"]["view_frequencies"] == 0
    recipe = translated(tmp_path, "lrate_decay = 0")
    assert recipe["optim"]["schedule"] == "constant" and not {"decay_steps", "decay_rate"} & recipe["optim"].keys()
    assert any("alpha" in note for note in translate(write(tmp_path, "dataset_type = blender"))[1])


def test_linemod_is_read_as_it_was_but_for_its_intrinsics(tmp_path: Path) -> None:
    """Its K counts from pixel centres, so the old rays went through those; they halve with the pictures."""
    recipe = translated(tmp_path, "dataset_type = LINEMOD\nhalf_res = True\ntestskip = 4\nwhite_bkgd = True\nfactor = 8")
    assert recipe["format"] == "linemod"
    assert recipe["scene"] == {"factor": 2, "testskip": 4, "background": "white", "pixel_offset": 0.5}
    assert "none of llff, blender" in refusal(tmp_path, "dataset_type = replica")


@pytest.mark.parametrize(
    "text", [FERN, LEGO, BMILD_DEEPVOXELS, "", "no_batching = True\nprecrop_iters = 9", "use_viewdirs = True\nN_importance = 0"]
)
def test_translation_holds_no_key_without_effect(tmp_path: Path, text: str) -> None:
    model = translated(tmp_path, text)["model"]
    assert not find("nerfit.methods", "nerf").Config(**model).unused().keys() & model.keys()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 512), st.floats(1e-6, 1.0), st.booleans())
def test_values_survive(tmp_path_factory: pytest.TempPathFactory, rays: int, samples: int, lrate: float, viewdirs: bool) -> None:
    text = f"N_rand = {rays}\nN_samples = {samples}\nlrate = {lrate!r}\nuse_viewdirs = {viewdirs}"
    recipe = translated(tmp_path_factory.getbasetemp(), text)
    assert (recipe["model"]["rays"], recipe["model"]["samples"]) == (rays, samples)
    assert recipe["optim"]["lr"] == lrate and recipe["model"]["viewdirs"] is viewdirs


LINE = st.builds(str.__add__, st.sampled_from([*FLAGS, "--N_rand", "x", ""]), st.text(" =:#;'\"[]-.,e0123456789TrueFalsNno\t", max_size=12))


@settings(max_examples=200, deadline=None)
@given(st.lists(LINE, max_size=4))
def test_any_text_translates_or_is_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp(), "\n".join(lines), "fuzz.txt")
    is_legacy(path)
    try:
        recipe, notes = translate(path)
    except ConfigError as error:
        assert "fuzz.txt" in str(error) and str(error).endswith(".")
    else:
        assert recipe["format"] in FORMATS and notes


def test_old_configs_are_distinguished_from_recipes(tmp_path: Path) -> None:
    for text in (FERN, LEGO, "N_rand=1", "  N_rand = 1\n lrate: 5e-4", "N_rand: 1024\nlrate: 5e-4", "# c: d\nexpname = a: b", "half_res"):
        assert is_legacy(write(tmp_path, text)), text
    for text in ("", "chunk: 4096", "parent: lego\nmodel: {rays: 1}", "description: a = b\nsteps: 3\n", "scene:\n  factor: 2\n", "- 1"):
        assert not is_legacy(write(tmp_path, text)), text
    for path in (files("nerfit") / "recipes").iterdir():
        assert not (path.name.endswith(".yaml") and is_legacy(Path(str(path))))


def configs(method: str, form: str) -> dict[str, Any]:
    """The dataclass of every section, for a method and a scene format."""
    owners = {"scene": find("nerfit.scenes", form), "model": find("nerfit.methods", method)}
    return {section: owner.Config for section, owner in owners.items()} | {
        "optim": OptimConfig,
        "log": LogConfig,
        "perceptual": PerceptualConfig,
    }


@pytest.mark.parametrize("name", names())
def test_recipe_holds_known_keys_of_the_right_type(name: str) -> None:
    recipe = shipped(name)
    assert recipe["description"] and "\n" not in recipe["description"]
    sections = configs(recipe["method"], recipe.get("format", "blender"))
    for section, config in sections.items():
        values = recipe.get(section, {})
        hints = get_type_hints(config)
        made = config(**{key: hints[key](**value) if isinstance(value, dict) else value for key, value in values.items()})
        assert not getattr(made, "unused", dict)().keys() & values.keys()
        for key, value in vars(made).items():
            parts = get_args(hints[key]) if get_origin(hints[key]) in (UnionType, Union) else [hints[key]]
            words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
            assert value in words or type(value) in {get_origin(part) or part for part in parts}, f"{section}.{key} = {value!r}"
    for key, value in recipe.items():
        assert key in sections or key in ("method", "format", "description") or type(value) is TOP[key]


def test_every_scene_has_its_recipes() -> None:
    """Hotdog and materials are Blender scenes; nerf-pytorch's configs took them for LLFF."""
    for scenes, form, factors in ((BLENDER_SCENES, "blender", (2, 1)), (LLFF_SCENES, "llff", (8, 4))):
        for scene in scenes:
            for name, factor in zip((scene, f"{scene}-paper"), factors, strict=True):
                recipe = shipped(name)
                assert recipe["format"] == form and recipe["scene"]["factor"] == factor and scene in recipe["description"]
                assert recipe["scene"].get("testskip", 1) == 1 and recipe["scene"]["pixel_offset"] == 0
                assert recipe["optim"].get("warmup_steps") == (5000 if scene == "ficus" else None)
    assert shipped("image")["method"] == "image" and shipped("image")["steps"] == 10_000


def documented() -> dict[str, list[str]]:
    """Rows of the tables of docs/flags.md: old flag -> its other cells."""
    text = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_documentation_lists_every_flag() -> None:
    rows = documented()
    assert rows.keys() == FLAGS.keys()
    for key, flag in FLAGS.items():
        here, there, default_here, _ = rows[key]
        if flag.default is not None:
            assert there == str(flag.default), key
        if isinstance(flag.to, str) and "." in flag.to:
            section, name = flag.to.split(".")
            default = getattr(configs("nerf", flag.only[0] if flag.only else "blender")[section](), name)
            assert default is None or default_here == str(default), key
            assert re.search(rf"--(\w+\.no-)?{re.escape(flag.to.replace('_', '-'))}(?![\w-])", here), key
