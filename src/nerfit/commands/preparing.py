"""From a command line to the plan of a training: method, recipe, scene format and configuration, checked before anything is written."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal

from nerfit import config as configs
from nerfit.commands.options import Common
from nerfit.errors import ConfigError, RunError, SceneError
from nerfit.plugins import AUTO, find
from nerfit.progress import say
from nerfit.recipes.loading import Recipe, load_recipe
from nerfit.runs import M, Plan, RunConfig, S, default_config, last_folder, refuse_existing, with_budget, with_devices
from nerfit.scenes import detect_format
from nerfit.scenes.scene import SceneConfig
from nerfit.training import distributed


@dataclass(kw_only=True)
class TrainCommand(RunConfig[M, S], Common, Generic[M, S]):
    """The configuration, and what train does beside it."""

    out: Path | None = None
    """Run folder; none = runs/<scene>-<method>[-n]."""
    recipe: str | None = None
    """Shipped recipe, YAML file, or a key = value config of the original programs."""
    resume: bool = False
    """Go on with the run in --out (or the newest of this scene and method)."""
    init: Path | None = None
    """Start from the weights of another run."""
    init_only: Literal["cameras"] | None = None
    """Of that run, which may be of another method, take the learned cameras alone."""
    seeds: int = 1
    """Train so many times, with --seed and those after it, and keep the run that sees its training pixels best."""
    evaluate: bool = True
    """Judge the test views at the end, where that takes minutes at most."""
    lpips_weights: Path | None = None
    """Folder with alex.safetensors and vgg.safetensors."""
    viewer: bool = False
    """Watch the training in the browser; afterwards the viewer stays open until Ctrl-C."""
    host: str = "127.0.0.1"
    """Address that the viewer serves on; 0.0.0.0 = reachable from other machines, with a token."""
    port: int = 7007
    """The viewer's port; the next free one is taken where it is in use."""

    def config(self) -> RunConfig[M, S]:
        """The configuration alone."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(RunConfig)})


def _parse_train(default: RunConfig[Any, Any], argv: list[str]) -> TrainCommand[Any, Any]:
    kind = TrainCommand[type(default.model), type(default.scene)]
    filled = TrainCommand(**{f.name: getattr(default, f.name) for f in dataclasses.fields(default)})
    text = "Train METHOD on SCENE. Example: nerfit train nerf data/lego --recipe nerf-small --seconds 900"
    return configs.parse(kind, argv, filled, "nerfit train METHOD SCENE", text)


def refuse_flags(flags: list[str], keys: set[str], why: str) -> None:
    """Raise ConfigError where a training's flags set one of ``keys``."""
    for key in sorted(keys & configs.typed_keys(flags)):
        raise ConfigError(f"leave out --{key.replace('_', '-')}: {why}.")


def prepare(method: str | None, source: str | None, argv: list[str], folder: bool = True) -> tuple[Plan, TrainCommand[Any, Any], Path]:
    """The plan of a training from its command line, its other options, and its run folder (made unless resumed).

    Raises ConfigError, SceneError or RunError before anything is written.
    """
    recipe_name = configs.typed_value(argv, "--recipe")
    if method == AUTO:
        method, recipe_name = _choose(source, argv, recipe_name)
    if "--resume" in argv and "--help" not in argv:
        return _prepare_resume(method, source, argv)
    recipe_name = recipe_name or (find("nerfit.methods", method).default_recipe if method else None)
    recipe = load_recipe(recipe_name) if recipe_name else Recipe("none", {})
    method, source = method or recipe.method, source or recipe.source
    wants_help = "-h" in argv or "--help" in argv
    if not wants_help and (method is None or source is None):
        raise ConfigError(
            "a METHOD and a SCENE are needed, side by side: nerfit train METHOD SCENE, for instance nerfit train nerf data/lego."
        )
    method = method or "nerf"
    if recipe.method not in (None, method):
        raise ConfigError(f"recipe {recipe.name} is for the method {recipe.method}, not for {method}.")
    form = _format(source, argv, recipe, wants_help)
    _check_scene(method, form)
    default = default_config(method, form) if form else RunConfig(model=find("nerfit.methods", method).Config(), scene=SceneConfig())
    from_recipe = configs.arguments(recipe.values)
    if recipe.values:
        try:
            alone = configs.parse(RunConfig[type(default.model), type(default.scene)], from_recipe, default)
        except ConfigError as error:
            raise ConfigError(f"recipe {recipe.name}: {error}") from None
        configs.check(alone, recipe.own)
        default = alone
    command = _parse_train(default, argv)
    typed = configs.typed_keys(argv)
    run = with_budget(command.config(), typed, find("nerfit.methods", method).default_steps)
    out = command.out or (Path(recipe.out) if recipe.out else None)
    begun = Plan.load(out) if out is not None and distributed.goes_on(out) else None
    devices = _devices(command, typed) if begun is None else begun.config.devices
    run, grown = with_devices(run, typed, devices, find("nerfit.methods", method).batch_key)
    configs.check(run, typed)
    _check_viewer(command, typed, form)
    run.blocks.check_one()
    if command.init_only and command.init is None:
        raise ConfigError("--init-only says what to take of the run that --init names: add --init RUN.")
    assert source is not None and form is not None
    if run.scene.format not in ("", form):
        raise ConfigError(f"scene.format is {run.scene.format}, but the scene is read as {form}.")
    plan = Plan(method, _absolute(source), form, run)
    for note in recipe.notes:
        say(f"recipe {recipe.name}: {note}")
    if not folder:
        return plan, command, Path()
    if grown:
        rule = "linear rule of SGD" if run.optim.optimizer == "sgd" else "square-root rule of Adam"
        what = ", ".join(f"{key} {before:g} -> {after:g}" for key, (before, after) in grown.items())
        say(f"{devices} devices share each batch: {what} ({rule})")
    if begun is not None:
        if (plan.method, plan.format, configs.to_dict(run)) != (begun.method, begun.format, configs.to_dict(begun.config)):
            raise RunError(f"{out} holds a run of another configuration, which can't be gone on with: choose another --out.")
        command.resume = True
    elif out is not None:
        refuse_existing(out)
    return plan, command, out if out is not None else Path("runs") / f"{scene_name(source)}-{method}"


def _devices(command: TrainCommand[Any, Any], typed: set[str]) -> int:
    """How many devices share a new run's batch: as many as torchrun has started processes, else what is typed."""
    started = distributed.share().world_size
    if started > 1 and "devices" in typed and command.devices != started:
        raise ConfigError(f"torchrun has started {started} processes, but --devices says {command.devices}: leave it out.")
    return command.devices if started == 1 and "devices" in typed else started


def _choose(source: str | None, argv: list[str], recipe: str | None) -> tuple[str | None, str | None]:
    """The method and recipe that suit a scene: image for a single picture, else instant, unless the recipe names another."""
    if recipe is not None and (method := load_recipe(recipe).method):
        return method, recipe
    wants_help = "-h" in argv or "--help" in argv
    if source is None or wants_help:
        return ("instant" if wants_help else None), recipe
    form = configs.typed_value(argv, "--scene.format") or detect_format(source)
    method = "image" if form == "image" else "instant"
    recipe = recipe or ("image" if form == "image" else find("nerfit.methods", method).default_recipe)
    say(f"auto: method {method} with recipe {recipe}")
    return method, recipe


def _absolute(source: str) -> str:
    """A path from anywhere; what names no file, such as "procedural", stays."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def scene_name(source: str) -> str:
    """What a scene's run folders are called."""
    return Path(source).resolve().stem if Path(source).exists() else re.sub(r"[^\w.]+", "-", source)


def _prepare_resume(method: str | None, source: str | None, argv: list[str]) -> tuple[Plan, TrainCommand[Any, Any], Path]:
    out = configs.typed_value(argv, "--out")
    if out is None and (method is None or source is None):
        raise ConfigError("--resume needs --out RUN, or the METHOD and SCENE whose newest run is meant.")
    folder = Path(out) if out is not None else last_folder(scene_name(source or ""), method or "")
    for flag in ("--recipe", "--init", "--init-only"):
        if configs.typed_value(argv, flag) is not None:
            raise ConfigError(f"{folder} goes on with its own configuration and weights: leave out {flag}.")
    saved = Plan.load(folder)
    if method is not None and method != saved.method:
        raise ConfigError(f"{folder} is a run of {saved.method}, not of {method}.")
    command = _parse_train(saved.config, argv)
    typed = configs.typed_keys(argv)
    config = with_budget(command.config(), typed, find("nerfit.methods", saved.method).default_steps)
    config = dataclasses.replace(config, devices=saved.config.devices)
    configs.check(config, typed)
    _check_viewer(command, typed, saved.format)
    config.blocks.check_one()
    began = saved.config.optim.optimizer
    if config.optim.optimizer != began:
        raise ConfigError(f"{folder} goes on with the optimiser it began with, {began}: a new run may start from its weights with --init.")
    return dataclasses.replace(saved, config=config, source=_absolute(source or saved.source)), command, folder


def _check_viewer(command: TrainCommand[Any, Any], typed: set[str], form: str | None) -> None:
    """Refuse a viewer of a single picture, and its address without it."""
    if command.viewer and form == "image":
        raise ConfigError("a single picture can't be walked around in: leave out --viewer.")
    if command.viewer and (command.devices if "devices" in typed else distributed.share().world_size) > 1:
        raise ConfigError("a viewer lets the training wait, and it is shared by several processes: leave out --viewer.")
    if command.viewer:
        from nerfit.viewer.ports import free_port

        free_port(command.host, command.port)  # before anything is written
    for key in sorted({"host", "port"} & typed):
        if not command.viewer:
            raise ConfigError(f"{key} has no effect here: --viewer is off.")


def _check_scene(method: str, form: str | None) -> None:
    """Refuse a method on a scene it can't use."""
    accepted = find("nerfit.methods", method).scene_formats
    if accepted is not None and form not in (None, *accepted):
        raise ConfigError(f"{method} trains on a scene of format {' or '.join(accepted)}, not {form}: give it one picture of the scene.")
    if accepted is None and form == "image":
        raise ConfigError(f"{method} needs pictures with camera poses, not a single picture (nerfit train image fits one).")


def _format(source: str | None, argv: list[str], recipe: Recipe, wants_help: bool) -> str | None:
    """The scene's format: as typed, else as detected; a recipe made for another one is refused."""
    if source is None:
        return recipe.format
    form = configs.typed_value(argv, "--scene.format") or recipe.values.get("scene", {}).get("format")
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
