"""nerfit sweep: many scenes, recipes and seeds, a training each, in one table; run again it does what is left."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from nerfit.commands import sweep_table
from nerfit.commands.cluster import Stop, on_ray
from nerfit.commands.options import ClusterOptions, TrainingFlags
from nerfit.errors import ConfigError, NerfitError, require_min
from nerfit.plugins import AUTO
from nerfit.recipes.loading import load_recipe

if TYPE_CHECKING:
    from nerfit.commands.jobs import Job
    from nerfit.runs import Plan


@dataclass(kw_only=True)
class Options(ClusterOptions, TrainingFlags):
    """nerfit sweep SCENE [SCENE ...] --methods M [M ...]: train every scene with every method and recipe from every seed; one table.

    Each training is a process of its own and a run folder <scene>-<recipe>-seed<seed>; all flags of nerfit train may follow. The table
    (mean ± standard deviation over seeds, mean over scenes) is sweep.md, sweep.csv and sweep.json. A failure is a row of the table, and
    the exit code is 1. If the command is stopped or killed, start it again: it repeats nothing that is finished.

    Examples:
      nerfit sweep data/lego data/chair --methods instant --seeds 3 --seconds 120 --threads 2
      nerfit sweep data/nerf_synthetic/* --methods instant --recipes mipnerf-small nerf-small --out runs/blender --lpips-weights lpips
      nerfit sweep data/fern data/horns --recipes llff mine.yaml --address auto --gpus 1
    """

    scenes: tyro.conf.Positional[tuple[str, ...]] = ()
    """A folder or file of any scene format, or procedural, as for nerfit train."""
    methods: tuple[str, ...] = ()
    """Methods, each with the recipe that is its default."""
    recipes: tuple[str, ...] = ()
    """More recipes, each for the method that it names."""
    seeds: int = 1
    """Trainings of each, with --seed and the seeds after it."""
    out: Path = Path("runs/sweep")
    """Folder of the runs and the table."""


def run(options: Options, run_all: Callable[..., Iterator[tuple[int, Any]]] = on_ray) -> dict[str, Any]:
    """Train every scene with every recipe from every seed, unless it is done; the table as data, with the ``exit_code``.

    All is checked before anything is written: ConfigError, SceneError or RunError in one sentence. ``run_all`` runs the jobs, as
    `on_ray` does. A job that fails is a row with the reason. If it is stopped by a signal, or killed, the same command goes on.
    """
    from nerfit.commands.jobs import check_same, exit_code, needs, perform
    from nerfit.runs import refuse_existing

    todo, folder = planned(options), options.out
    wanted = needs(options, todo[0].plan)
    if not (folder / "sweep.json").is_file():
        refuse_existing(folder)
    for job in todo:
        check_same(job.folder, job.plan)
    folder.mkdir(parents=True, exist_ok=True)
    stop = Stop()
    rows = perform(todo, wanted, run_all, stop, lambda rows: sweep_table.write(sweep_table.compare(rows), folder))
    return sweep_table.compare(rows) | {"folder": str(folder), "exit_code": exit_code(rows, stop)}


def text(answer: dict[str, Any]) -> str:
    """The table, and where it is."""
    return f"{sweep_table.table(answer)}\n-> {answer['folder']}/sweep.md, sweep.csv, sweep.json"


def planned(options: Options) -> "list[Job]":
    """All jobs, the first seed of everything first; raises ConfigError or SceneError for what can't be trained."""
    from nerfit.commands.jobs import OWN

    options.refuse(OWN | {"recipe"}, "the sweep sets it itself, see nerfit sweep --help")
    require_min("--", options, seeds=1)
    if not options.scenes or not options.methods and not options.recipes:
        raise ConfigError("SCENES and --methods or --recipes are needed: nerfit sweep data/lego data/chair --methods instant nerf.")
    pairs = [(source, *_plan(source, *column, options.flags)) for source, column in itertools.product(options.scenes, _recipes(options))]
    found = [_job(options, *pair, seed) for seed in range(options.seeds) for pair in pairs]
    names = [job.folder.name for job in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two jobs would be called {name}: give scenes and recipes names of their own.")
    return found


def _recipes(options: Options) -> list[tuple[str | None, str | None]]:
    """Method and recipe of each column of jobs: methods as they come, and recipes for the methods that they name."""
    found: list[tuple[str | None, str | None]] = [(method, None) for method in options.methods]
    for recipe in options.recipes:
        method = load_recipe(recipe).method
        if method is None:
            raise ConfigError(f"recipe {recipe} names no method: add `method:` to it.")
        found.append((method, recipe))
    return found


def _plan(source: str, method: str | None, recipe: str | None, flags: Sequence[str]) -> "tuple[str, str | None, Plan]":
    """The name of a method or recipe in the table, its recipe, and its plan on a scene."""
    from nerfit.commands.train_options import request
    from nerfit.commands.train_plan import choose_method, plan_of

    name = Path(recipe).stem if recipe else str(method)
    words = ["--recipe", recipe, *flags] if recipe else list(flags)
    try:
        if method == AUTO:
            method, _ = choose_method(request(method, source, words))
        return name, recipe, plan_of(request(method, source, words))
    except NerfitError as error:
        raise type(error)(f"{name} on {source}: {error}") from error


def _job(options: Options, source: str, name: str, recipe: str | None, plan: "Plan", seed: int) -> "Job":
    from nerfit.commands.jobs import Job, kept_flags
    from nerfit.commands.train_plan import scene_name

    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, seed=plan.config.seed + seed))
    folder = options.out.resolve() / f"{scene_name(source)}-{name}-seed{plan.config.seed}"
    words = (*(("--recipe", recipe) if recipe else ()), *options.flags, "--seed", str(plan.config.seed))
    return Job(scene_name(source), name, plan, folder, words, kept_flags(options), Path.cwd())
