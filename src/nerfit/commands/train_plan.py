"""From the parsed command line of a training to its plan: choose what is trained, configure it, place its run folder.

All is checked before anything is written.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from nerfit import config as configs
from nerfit.commands.train_options import Options, TrainOptions
from nerfit.errors import ConfigError, PoseError, RunError, SceneError
from nerfit.plugins import AUTO, find
from nerfit.progress import say
from nerfit.recipes.loading import Recipe, load_recipe
from nerfit.runs import (
    M,
    Plan,
    RunConfig,
    S,
    default_config,
    last_folder,
    refuse_existing,
    with_budget,
    with_devices,
    with_sizes,
)
from nerfit.scenes import detect_format
from nerfit.scenes.formats import unposed
from nerfit.scenes.scene import Scene, SceneConfig
from nerfit.training import distributed
from nerfit.training.devices import set_threads


@dataclass
class Choice:
    """A method with a recipe on a scene that is read as ``format``; scene and format are unknown only where help is asked for."""

    method: str
    recipe: Recipe
    source: str | None
    format: str | None


def prepare(options: Options) -> tuple[Plan, Options, Path]:
    """The plan of a training, its options, and its run folder, which is not made yet.

    Raises ConfigError, SceneError or RunError before anything is written.
    """
    if options.resume:
        plan, folder = _resumed(options)
        return plan, options, folder
    choice = choose(options)
    plan, scaled = configure(choice, options)
    if scaled:
        rule = "linear rule of SGD" if plan.config.optim.optimizer == "sgd" else "square-root rule of Adam"
        what = ", ".join(f"{key} {before:g} -> {after:g}" for key, (before, after) in scaled.items())
        say(f"{plan.config.devices} devices share each batch: {what} ({rule})")
    return plan, *place(plan, choice, options)


def plan_of(options: Options) -> Plan:
    """The plan of a new training alone."""
    return configure(choose(options), options)[0]


# --- Choose ---------------------------------------------------------------------------------------------------------


def choose(options: Options, wants_help: bool = False) -> Choice:
    """The method, the recipe and the scene's format, as typed, else as the recipe says, else as detected."""
    method, name = _suited(options, wants_help) if options.method == AUTO else (options.method, options.recipe)
    name = name or (find("nerfit.methods", method).default_recipe if method else None)
    recipe = load_recipe(name) if name else Recipe("none", {})
    method, source = method or recipe.method, options.source or recipe.source
    if not wants_help and (method is None or source is None):
        raise ConfigError(
            "a METHOD and a SCENE are needed, side by side: nerfit train METHOD SCENE, for instance nerfit train nerf data/lego."
        )
    method = method or "nerf"
    if recipe.method not in (None, method):
        raise ConfigError(f"recipe {recipe.name} is for the method {recipe.method}, not for {method}.")
    form = _format(source, options, recipe, wants_help)
    _check_scene(method, form)
    return Choice(method, recipe, source, form)


def _suited(options: Options, wants_help: bool = False) -> tuple[str | None, str | None]:
    """The method and recipe that suit a scene: image for a single picture, else instant, unless the recipe names another."""
    recipe = options.recipe
    if recipe is not None and (method := load_recipe(recipe).method):
        return method, recipe
    if options.source is None or wants_help:
        return ("instant" if wants_help else None), recipe
    form = _typed_format(options) or detect_format(options.source)
    method = "image" if form == "image" else "instant"
    recipe = recipe or ("image" if form == "image" else find("nerfit.methods", method).default_recipe)
    say(f"auto: method {method} with recipe {recipe}")
    return method, recipe


def _typed_format(options: Options) -> str | None:
    return (options.typed.get("scene.format") or [None])[0]


def _format(source: str | None, options: Options, recipe: Recipe, wants_help: bool) -> str | None:
    """The scene's format: as typed, else as detected; a recipe made for another one is refused."""
    if source is None:
        return recipe.format
    form = _typed_format(options) or recipe.values.get("scene", {}).get("format")
    if not form:
        try:
            form = detect_format(source)
        except SceneError:
            if wants_help:
                return recipe.format
            raise
    if recipe.format not in (None, form):
        raise ConfigError(f"recipe {recipe.name} is for {recipe.format} scenes, but {source} is of format {form}.")
    return form


def _check_scene(method: str, form: str | None) -> None:
    """Refuse a method on a scene it can't use."""
    accepted = find("nerfit.methods", method).scene_formats
    if accepted is not None and form not in (None, *accepted):
        raise ConfigError(f"{method} trains on a scene of format {' or '.join(accepted)}, not {form}: give it one picture of the scene.")
    if accepted is None and form == "image":
        raise ConfigError(f"{method} needs pictures with camera poses, not a single picture (nerfit train image fits one).")


# --- Configure ------------------------------------------------------------------------------------------------------


def configure(choice: Choice, options: Options) -> tuple[Plan, dict[str, tuple[float, float]]]:
    """The plan: defaults < recipe < flags; also what the number of devices has scaled, from what to what."""
    assert choice.source is not None and choice.format is not None
    method = find("nerfit.methods", choice.method)
    config = _parsed(_recipe_defaults(choice), options)
    config = with_budget(config, set(options.typed), method.default_steps)
    begun = _begun(choice, options)
    devices = _devices(config, options) if begun is None else begun.config.devices
    config, scaled = with_devices(config, set(options.typed), devices, method.batch_key)
    config = with_sizes(config, method, None if options.init_only else options.init)
    _check(config, choice.format, options)
    if options.init_only and options.init is None:
        raise ConfigError("--init-only needs the run that it takes something from: add --init RUN.")
    if config.scene.format not in ("", choice.format):
        raise ConfigError(f"scene.format is {config.scene.format}, but the scene is read as {choice.format}.")
    for note in choice.recipe.notes:
        say(f"recipe {choice.recipe.name}: {note}")
    return Plan(choice.method, _absolute(choice.source), choice.format, config), scaled


def _recipe_defaults(choice: Choice) -> RunConfig[Any, Any]:
    """The defaults of method and format with the recipe's values, which are checked alone."""
    if choice.format:
        default = default_config(choice.method, choice.format)
    else:
        default = RunConfig(model=find("nerfit.methods", choice.method).Config(), scene=SceneConfig())
    if not choice.recipe.values:
        return default
    try:
        config = configs.parse(RunConfig[type(default.model), type(default.scene)], configs.arguments(choice.recipe.values), default)
    except ConfigError as error:
        raise ConfigError(f"recipe {choice.recipe.name}: {error}") from None
    configs.check(config, choice.recipe.own)
    return config


def _parsed(default: RunConfig[Any, Any], options: Options) -> RunConfig[Any, Any]:
    """The configuration that the flags make of a default one."""
    kind = RunConfig[type(default.model), type(default.scene)]
    return configs.parse(kind, options.flags, default, "nerfit train METHOD SCENE", others=TrainOptions())


def _devices(config: RunConfig[Any, Any], options: Options) -> int:
    """How many devices share a new run's batch: as many as torchrun has started processes, else as typed."""
    started = distributed.share().world_size
    if started > 1 and "devices" in options.typed and config.devices != started:
        raise ConfigError(f"torchrun has started {started} processes, but --devices says {config.devices}: leave it out.")
    return config.devices if started == 1 and "devices" in options.typed else started


def _check(config: RunConfig[Any, Any], form: str, options: Options) -> None:
    """Refuse keys without effect, a viewer of a single picture, and a viewer's address without a viewer."""
    configs.check(config, set(options.typed))
    if options.viewer and form == "image":
        raise ConfigError("a single picture can't be walked around in: leave out --viewer.")
    if options.viewer and (config.devices if "devices" in options.typed else distributed.share().world_size) > 1:
        raise ConfigError("a viewer lets the training wait, and it is shared by several processes: leave out --viewer.")
    if options.viewer:
        from nerfit.viewer.ports import free_port

        free_port(options.host, options.port)  # before anything is written
    for key in sorted({"host", "port"} & options.typed.keys()):
        if not options.viewer:
            raise ConfigError(f"{key} has no effect here: --viewer is off.")
    config.blocks.check_one()


# --- Place ----------------------------------------------------------------------------------------------------------


def place(plan: Plan, choice: Choice, options: Options) -> tuple[Options, Path]:
    """The run folder of a new training, and its options: processes that torchrun starts again go on with the run they began."""
    out = _out(choice, options)
    if out is None:
        return options, Path("runs") / f"{scene_name(choice.source or '')}-{plan.method}"
    begun = _begun(choice, options)
    if begun is None:
        refuse_existing(out)
        return options, out
    if (plan.method, plan.format, configs.to_dict(plan.config)) != (begun.method, begun.format, configs.to_dict(begun.config)):
        raise RunError(f"{out} holds a run of another configuration, which can't be gone on with: choose another --out.")
    return dataclasses.replace(options, resume=True), out


def _out(choice: Choice, options: Options) -> Path | None:
    return options.out or (Path(choice.recipe.out) if choice.recipe.out else None)


def _begun(choice: Choice, options: Options) -> Plan | None:
    """The plan of the run that this job of torchrun has begun before."""
    out = _out(choice, options)
    return Plan.load(out) if out is not None and distributed.goes_on(out) else None


def _absolute(source: str) -> str:
    """A path from anywhere; a name that is no file, such as "procedural", stays."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def scene_name(source: str) -> str:
    """The name of a scene in the names of its run folders."""
    return Path(source).resolve().stem if Path(source).exists() else re.sub(r"[^\w.]+", "-", source)


# --- Resume, auto, help ---------------------------------------------------------------------------------------------


def _resumed(options: Options) -> tuple[Plan, Path]:
    """The plan of a run that goes on, with the typed changes, and its folder."""
    method, source = _suited(options)[0] if options.method == AUTO else options.method, options.source
    if options.out is None and (method is None or source is None):
        raise ConfigError("--resume needs --out RUN, or the METHOD and SCENE whose newest run is meant.")
    folder = options.out if options.out is not None else last_folder(scene_name(source or ""), method or "")
    for key in ("recipe", "init", "init_only"):
        if getattr(options, key) is not None:
            raise ConfigError(f"{folder} goes on with its own configuration and weights: leave out --{key.replace('_', '-')}.")
    saved = Plan.load(folder)
    if method is not None and method != saved.method:
        raise ConfigError(f"{folder} is a run of {saved.method}, not of {method}.")
    config = with_budget(_parsed(saved.config, options), set(options.typed), find("nerfit.methods", saved.method).default_steps)
    config = dataclasses.replace(config, devices=saved.config.devices)
    _check(config, saved.format, options)
    began = saved.config.optim.optimizer
    if config.optim.optimizer != began:
        raise ConfigError(f"{folder} goes on with the optimiser it began with, {began}: a new run may start from its weights with --init.")
    return dataclasses.replace(saved, config=config, source=_absolute(source or saved.source)), folder


def choose_method(options: Options) -> tuple[str, Scene]:
    """The method that `auto` stands for, and the scene, which has to be loaded first.

    A recipe or a key of the model that is typed means the method that it is for.
    """
    plan = plan_of(options)
    set_threads(plan.config.threads)
    scene, method = load_scene(plan), plan.method
    free = options.recipe is None and not any(key.startswith("model.") for key in options.typed)
    if free and method == "instant" and scene.bounds == "unbounded" and not scene.ndc:
        method = "instant-unbounded"
        say(f"auto: the scene is unbounded, so method {method}")
    return method, scene


def without_poses(options: Options, error: PoseError) -> tuple[Options, Scene]:
    """The training, and its scene, that `auto` stands for where a folder of photographs gets no poses: it learns the cameras.

    They are taken to look one way. Raises ``error`` where something was typed that does not fit.
    """
    typed = {key for key in options.typed if key.startswith(("scene.", "model."))}
    if options.recipe is not None or typed - {f"scene.{f.name}" for f in dataclasses.fields(unposed.Config)} or "scene.format" in typed:
        raise error
    say(str(error))
    say("auto: cameras are learned with the scene instead, as of photographs that look one way (recipe instant-unknown)")
    options = dataclasses.replace(
        options,
        method="instant",
        recipe="instant-unknown",
        flags=[*options.flags, "--scene.format", "unposed"],
        typed=options.typed | {"scene.format": ["unposed"]},
    )
    return options, load_scene(plan_of(options))


def load_scene(plan: Plan, run: Path | None = None) -> Scene:
    """A plan's scene, over the background of a ``run`` that goes on; its format is printed."""
    say(f"{plan.source}: {plan.format} scene")
    with distributed.leaders_first():
        return plan.load_scene(run=run)


@dataclass(kw_only=True)
class _Everything(RunConfig[M, S], TrainOptions, Generic[M, S]):
    """The configuration and the other options of a training, for one page of help."""


def print_help(options: Options) -> None:
    """Print all options of a training, with the defaults of its recipe, and exit."""
    default = _recipe_defaults(choose(options, wants_help=True))
    filled = _Everything(**{f.name: getattr(default, f.name) for f in dataclasses.fields(default)})
    text = "Train METHOD on SCENE. Example: nerfit train nerf data/lego --recipe nerf-small --seconds 900"
    configs.parse(_Everything[type(default.model), type(default.scene)], ["--help"], filled, "nerfit train METHOD SCENE", text)
