"""Configuration: the order of its layers, what every key does, and how wrong keys and values are reported."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from config_values import OPTIMISERS, other_value
from nerfit.cameras.learned import CameraConfig
from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of, prepare
from nerfit.config import arguments, flatten, parse, to_dict
from nerfit.errors import ConfigError, nearest
from nerfit.methods.mipnerf import MipNerfConfig
from nerfit.methods.mipnerf360 import MipNerf360Config
from nerfit.methods.nerf import NerfConfig
from nerfit.methods.nerf_occupancy import NerfOccupancyConfig
from nerfit.plugins import available, find
from nerfit.recipes.loading import load_recipe, merge, shipped_recipes
from nerfit.runs import Plan, RunConfig, config_type, default_config
from nerfit.scenes import scene_format
from nerfit.training.perceptual import PerceptualConfig

METHODS = ("instant", "instant-unbounded", "nerf", "nerf-occupancy", "mipnerf", "mipnerf360", "image")
FORMATS = tuple(available("nerfit.scenes"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    """Write a recipe of nested data or of plain text below tmp_path; returns its path."""

    def write_recipe(name: str, content: Any) -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write_recipe


def config_of(*argv: str, method: str | None = "nerf", source: str | None = "procedural") -> RunConfig[Any, Any]:
    return plan_of(request(method, source, list(argv))).config


def refusal(*argv: str, method: str | None = "nerf", source: str | None = "procedural") -> str:
    """The one sentence that a command line is refused with."""
    with pytest.raises(ConfigError) as error:
        plan_of(request(method, source, list(argv)))
    message = str(error.value)
    assert "\n" not in message and message.endswith((".", "?")) and not message.endswith(("..", "?."))
    return message


def test_defaults_then_parents_then_recipe_then_command_line(write: Callable[[str, Any], str], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write("grand.yaml", {"method": "nerf", "model": {"width": 11, "depth": 3, "samples": 9}, "optim": {"lr": 0.01}, "steps": 50})
    write("sub/parent.yaml", {"parent": "../grand.yaml", "model": {"width": 12, "samples": 10}, "scene": {"size": 20}})
    child = write("child.yaml", {"parent": "sub/parent.yaml", "model": {"samples": 5}, "seed": 4})
    config = config_of("--recipe", child, "--model.samples", "6", "--optim.eps", "1e-6")
    changed = {k: v for k, v in flatten(to_dict(config)).items() if v != flatten(to_dict(default_config("nerf", "procedural")))[k]}
    assert changed == {
        "model.width": 12, "model.depth": 3, "model.samples": 6, "optim.lr": 0.01, "optim.eps": 1e-6, "steps": 50, "seed": 4,
        "scene.size": 20,
    }  # fmt: skip
    assert config_of("--recipe", child).model.samples == 5


def test_a_parent_may_be_a_shipped_recipe(write: Callable[[str, Any], str]) -> None:
    config = config_of("--recipe", write("mine.yaml", {"parent": "nerf", "model": {"width": 64}}))
    assert (config.model.width, config.model.density_activation, config.scene.pixel_offset) == (64, "relu", 0.0)


NESTED = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from("abc"), NESTED), st.dictionaries(st.sampled_from("abc"), NESTED))
def test_merging_keeps_all_of_above_and_what_it_does_not_touch(below: Any, above: Any) -> None:
    merged, over = merge(below, above), flatten(above)
    assert over.items() <= flatten(merged).items()
    shadowed = {key for key in flatten(below) if any(key == k or key.startswith(k + ".") or k.startswith(key + ".") for k in over)}
    rest = {k: v for k, v in flatten(below).items() if k not in shadowed}
    assert rest.items() <= flatten(merged).items() and flatten(merged).keys() == over.keys() | rest.keys()
    assert merge(merged, above) == merged and merge(below, {}) == below


def changed_everywhere(config: Any) -> Any:
    """A dataclass with every value, also of the dataclasses inside, changed."""
    hints = get_type_hints(type(config))
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return replace(config, **{
        name: changed_everywhere(value) if dataclasses.is_dataclass(value) else other_value(hints[name], value)
        for name, value in values.items()
    })  # fmt: skip


@pytest.mark.parametrize(("method", "form"), [*((method, "procedural") for method in METHODS), *(("nerf", form) for form in FORMATS)])
def test_every_key_can_be_given_on_the_command_line(method: str, form: str, tmp_path: Path) -> None:
    """All values changed, as a command line, parsed; and back to the defaults the same way. Keys of method and scene don't meet."""
    default = default_config(method, form)
    changed = changed_everywhere(default)
    flat, altered = flatten(to_dict(default)), flatten(to_dict(changed))
    assert flat.keys() == altered.keys() and all(flat[key] != altered[key] for key in flat)
    kind = config_type(method, form)
    assert parse(kind, arguments(to_dict(changed)), default) == changed
    assert parse(kind, arguments(to_dict(default)), changed) == default
    Plan(method, "somewhere", form, changed).save(tmp_path)
    assert Plan.load(tmp_path) == Plan(method, "somewhere", form, changed)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    gradient = torch.arange(12 * 10 * 3, dtype=torch.uint8).reshape(10, 12, 3)
    Image.fromarray(gradient.numpy()).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


SECTIONS = [
    *OPTIMISERS.values(),
    *(NerfConfig(network="siren", frequencies=0, viewdirs=False, camera=CameraConfig(learn=True)), NerfConfig()),
    *(NerfConfig(fine_samples=0, viewdirs=False), NerfConfig(precrop_steps=5), NerfOccupancyConfig(depth=3)),
    *(MipNerfConfig(depth=2), MipNerf360Config(depth=2)),
    *(PerceptualConfig(), PerceptualConfig(net="vgg")),
    *(scene_format(form).Config() for form in FORMATS if hasattr(scene_format(form).Config, "unused")),
]
"""Sections in states in which some of their keys have no effect."""


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: type(s).__qualname__)
def test_keys_without_effect_exist(section: Any) -> None:
    assert {key.partition(".")[0] for key in section.unused()} <= {f.name for f in dataclasses.fields(section)}
    assert all(why and not why.endswith(".") for why in section.unused().values())


def test_unknown_keys_name_the_nearest(write: Callable[[str, Any], str]) -> None:
    assert refusal("--model.widht", "3").endswith("did you mean '--model.width'?")
    assert refusal("--samples", "3").endswith("did you mean '--model.samples'?")
    assert refusal("--model.no-viewdir").startswith("there is no option --model.no-viewdir here")
    assert refusal("--optim.learning-rate=3").startswith("there is no option --optim.learning-rate here")
    recipe = write("typo.yaml", {"optim": {"shedule": "cosine"}})
    assert refusal("--recipe", recipe) == "recipe typo: there is no option --optim.shedule here, did you mean '--optim.schedule'?"
    assert "--methd" in refusal("--recipe", write("head.yaml", {"methd": "nerf"}))
    assert refusal("--recipe", "lgo") == "there is no recipe 'lgo', did you mean 'lego'? (`nerfit recipes` lists them)."
    assert "no recipe 'gone.yaml'" in refusal("--recipe", write("orphan.yaml", {"parent": "gone.yaml"}))
    assert refusal(method="nrf").startswith("there is no method 'nrf', did you mean 'nerf'?")


@given(st.text("abc.-", max_size=8), st.lists(st.text("abc.-", min_size=1, max_size=8), max_size=4))
def test_a_hint_is_one_of_the_known(word: str, known: list[str]) -> None:
    hint = nearest(word, known)
    assert hint == "" or hint in {f", did you mean '{k}'?" for k in known}
    if word in known and word.strip("-."):
        assert word.rsplit(".", 1)[-1].lstrip("-") in hint


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model.width", "x"], "--model.width"),
        (["--model.width", "3.5"], "--model.width"),
        (["--model.width"], "--model.width"),
        (["--steps", "many"], "--steps"),
        (["--optim.lr", "fast"], "--optim.lr"),
        (["--model.init", "zeros"], "'zeros'"),
        (["--scene.train-views", "1", "2"], "--scene.train-views"),
        (["--scene.alpha", "perhaps"], "perhaps"),
        (["--optim.lr", "nan"], "optim.lr must be a finite number"),
        (["--scene.far", "inf"], "scene.far must be a finite number"),
        (["--steps", "9" * 400], "steps is too large a number"),
        (["extra"], "'extra' is one value or argument too many"),
        (["--recipe"], "--recipe needs a value"),
    ],
)
def test_wrong_values_name_their_key(argv: list[str], expected: str) -> None:
    assert expected in refusal(*argv)


def test_wrong_values_in_recipes_name_recipe_and_key(write: Callable[[str, Any], str]) -> None:
    for content, expected in [
        ({"model": {"width": "wide"}}, "--model.width"),
        ({"model": 5}, "--model"),
        ({"steps": [1, 2]}, "'2' is one value"),
        ({"optim": {"lr": -1.0}}, "optim.lr must be above 0"),
        ({"model": {"viewdirs": False, "view_frequencies": 3}}, "model.view_frequencies has no effect here: viewdirs is off"),
    ]:
        message = refusal("--recipe", write("bad.yaml", content))
        assert expected in message, content


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["--model.view-frequencies", "4", "--model.no-viewdirs"], "model.view_frequencies"),
        (["--model.no-viewdirs", "--model.view-frequencies=4"], "model.view_frequencies"),
        (["--model.fine-samples", "0", "--model.fine-width", "64"], "model.fine_width"),
        (["--model.precrop-fraction", "0.5"], "model.precrop_fraction"),
        (["--model.area-weights", "--model.batching", "image"], "model.area_weights"),
        (["--optim.lr-final", "1e-5"], "optim.lr_final"),
        (["--optim.schedule", "cosine", "--optim.decay-rate", "0.1"], "optim.decay_rate"),
        (["--optim.warmup-factor", "0.01"], "optim.warmup_factor"),
        (["--optim.optimizer", "sgd", "--optim.eps", "1e-7"], "optim.eps"),
    ],
)
def test_a_key_that_would_change_nothing_is_refused_where_it_is_typed(argv: list[str], key: str) -> None:
    assert refusal(*argv).startswith(f"{key} has no effect here: ")


def test_inherited_keys_may_lose_their_effect(write: Callable[[str, Any], str]) -> None:
    recipe = write("flat.yaml", {"parent": "nerf-small", "model": {"viewdirs": False}})
    assert (
        load_recipe(recipe).values["optim"]["lr_final"] and not config_of("--recipe", recipe, "--optim.schedule", "constant").model.viewdirs
    )


@pytest.mark.parametrize("form", ["procedural", "llff"])
def test_switches_that_may_be_undecided(form: str, tmp_path: Path) -> None:
    key = {"procedural": "alpha", "llff": "ndc"}[form]
    (tmp_path / "poses_bounds.npy").touch()
    source = form if form == "procedural" else str(tmp_path)
    for words, expected in [
        ([], None), ([f"--scene.{key}"], True), ([f"--scene.no-{key}"], False), ([f"--scene.{key}", "True"], True),
        ([f"--scene.{key}=False"], False), ([f"--scene.{key}", "None"], None), ([f"--scene.{key}", "--seed", "3"], True),
    ]:  # fmt: skip
        assert getattr(config_of(*words, source=source).scene, key) is expected, words


def test_recipes_are_refused_where_they_do_not_belong() -> None:
    assert refusal("--recipe", "lego") == "recipe lego is for blender scenes, but procedural is of format procedural."
    assert refusal("--recipe", "nerf", method="image") == "recipe nerf is for the method nerf, not for image."


def test_a_single_picture_is_not_for_nerf(picture: str) -> None:
    assert "single picture" in refusal(source=picture)
    assert config_of(source=picture, method="image").scene.format == ""
    assert "image" in refusal(source="procedural", method="image")


def test_the_table_of_variants_is_no_recipe_and_names_none_twice() -> None:
    assert "variants" not in shipped_recipes() and "no recipe 'variants'" in refusal("--recipe", "variants")
    folder = files("nerfit") / "recipes"
    table = yaml.safe_load((folder / "variants.yaml").read_text())
    assert len(table) > 30 and not any((folder / f"{name}.yaml").is_file() for name in table)
    assert all(row.keys() == {"parent", "description"} for row in table.values())


def test_parents_in_a_circle_end(write: Callable[[str, Any], str]) -> None:
    assert "among its own parents" in refusal("--recipe", write("self.yaml", {"parent": "self.yaml"}))
    write("b.yaml", {"parent": "./c.yaml"})
    write("c.yaml", {"parent": "a.yaml"})
    assert "a.yaml is among its own parents" in refusal("--recipe", write("a.yaml", {"parent": "b.yaml"}))
    assert "no recipe 'a b'" in refusal("--recipe", write("odd.yaml", {"parent": "a\0b"}))
    twins = [write("left.yaml", {"parent": "nerf"}), write("right.yaml", {"parent": "left.yaml"})]
    assert load_recipe(twins[1]).values == load_recipe(twins[0]).values


@pytest.mark.parametrize("text", ["a: [1", "\tb: 1", "model:\n- width\n - x", "", "just words", "- a\n- b", "!!python/object:os.system {}"])
def test_what_is_not_a_recipe_is_reported(write: Callable[[str, Any], str], text: str) -> None:
    assert refusal("--recipe", write("bad.yaml", text)).startswith("recipe ")


def test_bytes_are_not_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(bytes(range(256)))
    assert "bad.yaml" in refusal("--recipe", str(tmp_path / "bad.yaml"))


def test_a_typed_budget_replaces_the_recipes(write: Callable[[str, Any], str]) -> None:
    by_seconds, by_steps = write("seconds.yaml", {"seconds": 30}), write("steps.yaml", {"steps": 70})
    both = write("both.yaml", {"steps": 70, "seconds": 30})

    def budget(*argv: str) -> tuple[int | None, float | None]:
        config = config_of(*argv)
        return config.steps, config.seconds

    assert budget() == (find("nerfit.methods", "nerf").default_steps, None)
    assert budget("--recipe", by_seconds) == (None, 30)
    assert budget("--recipe", by_seconds, "--steps", "5") == (5, None)
    assert budget("--recipe", by_steps, "--seconds", "2.5") == (None, 2.5)
    assert budget("--recipe", both) == (70, 30)
    assert budget("--recipe", both, "--steps=5") == (5, None)
    assert budget("--recipe", by_steps, "--steps", "5", "--seconds", "9") == (5, 9)


@dataclass
class Places:
    """Something of each scene format, enough to be recognised."""

    folder: Path

    def __getitem__(self, form: str) -> str:
        if form == "procedural":
            return form
        place = self.folder / form
        names = {
            "blender": "transforms_train.json",
            "llff": "poses_bounds.npy",
            "deepvoxels": "train/intrinsics.txt",
            "image": "photo.jpg",
        }
        (place / names[form]).parent.mkdir(parents=True, exist_ok=True)
        (place / names[form]).touch()
        return str(place / names[form] if form == "image" else place)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_a_configuration(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.description and recipe.method in METHODS
    forms = [recipe.format] if recipe.format else ["procedural", "blender", "llff"]
    for form in forms:
        plan = plan_of(request(None, Places(tmp_path)[form], ["--recipe", name]))
        assert (plan.method, plan.format) == (recipe.method, form)
        flat = flatten(to_dict(plan.config))
        assert {key: flat[key] for key in flatten(recipe.values)} == flatten(recipe.values)


def test_an_old_config_is_a_recipe_that_names_method_scene_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Places(tmp_path)["llff"]
    text = "expname = fern_test\nbasedir = ./logs\ndatadir = ./llff\ndataset_type = llff\nN_samples = 64\nN_importance = 32\n"
    (tmp_path / "config_fern.txt").write_text(text)
    plan, _, folder = prepare(request(None, None, ["--recipe", "config_fern.txt", "--model.width", "64"]))
    assert (plan.method, plan.format, plan.source, folder) == ("nerf", "llff", source, Path("logs/fern_test"))
    assert (plan.config.model.fine_samples, plan.config.model.width, plan.config.scene.ndc) == (32, 64, True)
    assert prepare(request("nerf", source, ["--recipe", "config_fern.txt", "--out", "elsewhere"]))[2] == Path("elsewhere")
    assert refusal("--recipe", "config_fern.txt").startswith("recipe config_fern.txt is for llff scenes")
