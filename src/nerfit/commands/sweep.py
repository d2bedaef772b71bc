"""What `nerfit sweep` does: scenes x recipes x seeds, a training each, on Ray, into one table; run again it does what is left."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfit.commands import comparison
from nerfit.commands import train as jobs
from nerfit.commands.cluster import Needs, Stop, locked, on_ray, run_nerfit
from nerfit.commands.options import ClusterOptions, SweepOptions
from nerfit.commands.preparing import prepare, refuse_flags, scene_name
from nerfit.config import flatten, to_dict, typed_value
from nerfit.errors import ConfigError, NerfitError, require_min
from nerfit.plugins import AUTO
from nerfit.progress import say
from nerfit.recipes.loading import load_recipe
from nerfit.runs import Plan, refuse_existing
from nerfit.training.devices import pick_device, set_threads

OWN = {"out", "resume", "evaluate", "viewer", "host", "port", "json"}
"""Of a training's flags those that are not for a job among many."""
_ANY_TIME = {"threads", "device"}
"""Of a run's configuration what may change when it goes on."""
_KEPT = ("--threads", "--device", "--lpips-weights")


@dataclass(frozen=True)
class Job:
    """One training: its place in the table, plan and folder, the flags that make the plan, and those that are given whenever it goes on."""

    scene: str
    recipe: str
    plan: Plan
    folder: Path
    flags: tuple[str, ...]
    kept: tuple[str, ...]
    cwd: Path

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.folder.parent / "logs" / f"{self.folder.name}.txt"

    def finished(self) -> bool:
        """Whether its budget is spent and its test views are judged."""
        try:
            metrics = json.loads((self.folder / "metrics.json").read_text())
            splits, train = json.loads((self.folder / "scene.json").read_text())["splits"], metrics["train"]
        except (OSError, ValueError, KeyError):
            return False
        budget = self.plan.config.in_steps(len(splits["train"]))
        spent = [train[key] >= most for key, most in (("steps", budget.steps), ("seconds", budget.seconds)) if most is not None]
        return any(spent) and ("test" in metrics or not splits.get("test"))

    def row(self, failed: str | None = None) -> dict[str, Any]:
        """What it reached, as `comparison.COLUMNS` names it."""
        about = {"job": self.folder.name, "scene": self.scene, "recipe": self.recipe, "seed": self.plan.config.seed}
        measures: dict[str, Any] = dict.fromkeys(comparison.MEASURES)
        if failed is None:
            metrics = json.loads((self.folder / "metrics.json").read_text())
            known = metrics["train"] | metrics.get("test", {})
            measures = {name: known.get(name) for name in comparison.MEASURES}
        return about | measures | {"failed": failed, "run": str(self.folder)}


def check_same(folder: Path, plan: Plan) -> None:
    """Raise ConfigError where a folder holds a run with another configuration."""
    if not (folder / "config.yaml").is_file():
        return
    old, new = (
        {"method": p.method, "source": p.source, "format": p.format} | flatten(to_dict(p.config)) for p in (Plan.load(folder), plan)
    )
    for key in new:
        if key not in _ANY_TIME and old.get(key) != new[key]:
            raise ConfigError(f"{folder} was begun with {key} {old.get(key)}, not {new[key]}: choose another --out.")


def run_job(job: Job) -> dict[str, Any]:
    """Train, judge, and return the row; a run that was begun goes on. Raises RunError or TaskDied."""
    run = str(job.folder)
    with locked(job.log) as log:
        if not (job.folder / "config.yaml").is_file():
            shutil.rmtree(job.folder, ignore_errors=True)  # of a process that was killed before it began to train
            run_nerfit(("train", job.plan.method, job.plan.source, *job.flags, "--out", run), log, job.cwd)
        elif not job.finished():
            run_nerfit(("train", "--out", run, "--resume", *job.kept), log, job.cwd)
        if not job.finished():  # judging would have taken long
            run_nerfit(("eval", run, *job.kept), log, job.cwd)
    return job.row()


def sweep(options: SweepOptions, flags: list[str], spread: Callable[..., Iterator[tuple[int, Any]]] = on_ray) -> dict[str, Any]:
    """Train every scene with every recipe from every seed, unless it is done; the table as data, with the ``exit_code``.

    All is checked before anything is written: ConfigError, SceneError or RunError in one sentence. ``spread`` runs the jobs, as
    `on_ray` does. A job that fails is a row that says why. Stopped by a signal, or killed, the same command goes on.
    """
    todo, folder = planned(options, flags), options.out
    wanted = needs(options, todo[0].plan)
    if not (folder / "sweep.json").is_file():
        refuse_existing(folder)
    for job in todo:
        check_same(job.folder, job.plan)
    folder.mkdir(parents=True, exist_ok=True)
    stop = Stop()
    rows = perform(todo, wanted, spread, stop, lambda rows: comparison.write(comparison.compare(rows), folder))
    return comparison.compare(rows) | {"folder": str(folder), "exit_code": exit_code(rows, stop)}


def perform(
    todo: list[Job],
    wanted: Needs,
    spread: Callable[..., Iterator[tuple[int, Any]]],
    stop: Stop,
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Do the jobs that are left; the rows of all, which ``keep`` is given whenever they change."""
    left = [job for job in todo if not job.finished()]
    rows = {job.folder: job.row("not done yet." if job in left else None) for job in todo}
    done = len(todo) - len(left)
    say(f"{len(todo)} jobs, {done} of them done")
    keep(list(rows.values()))
    for index, outcome in spread(run_job, left, wanted, stop):
        row = left[index].row(str(outcome)) if isinstance(outcome, Exception) else outcome
        rows[left[index].folder] = row
        keep(list(rows.values()))
        done += 1
        said = row["failed"] or f"{row['steps']} steps in {row['seconds']:.0f} s" + (f", {row['psnr']:.2f} dB" if row["psnr"] else "")
        say(f"{done}/{len(todo)}  {row['job']}  {said}")
    return list(rows.values())


def exit_code(rows: list[dict[str, Any]], stop: Stop) -> int:
    """0 if every job is done, 128 and the signal's number if one stopped them, else 1."""
    return 128 + stop.interrupted if stop.interrupted is not None else int(any(row["failed"] for row in rows))


def sweep_text(answer: dict[str, Any]) -> str:
    """The table, and where it is."""
    return f"{comparison.table(answer)}\n-> {answer['folder']}/sweep.md, sweep.csv, sweep.json"


def planned(options: SweepOptions, flags: list[str]) -> list[Job]:
    """All jobs, the first seed of everything first; raises ConfigError or SceneError for whatever can't be trained."""
    refuse_flags(flags, OWN | {"recipe"}, "the sweep sets it itself, see nerfit sweep --help")
    require_min("--", options, seeds=1)
    if not options.scenes or not options.methods and not options.recipes:
        raise ConfigError("SCENES and --methods or --recipes are needed: nerfit sweep data/lego data/chair --methods instant nerf.")
    pairs = [
        (source, *_plan(source, method, recipe, flags)) for source, (method, recipe) in itertools.product(options.scenes, _recipes(options))
    ]
    found = [_job(options, flags, *pair, seed) for seed in range(options.seeds) for pair in pairs]
    names = [job.folder.name for job in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two jobs would be called {name}: give scenes and recipes names of their own.")
    return found


def _recipes(options: SweepOptions) -> list[tuple[str | None, str | None]]:
    """Method and recipe of each column of jobs: methods as they come, and recipes for the methods that they name."""
    found: list[tuple[str | None, str | None]] = [(method, None) for method in options.methods]
    for recipe in options.recipes:
        method = load_recipe(recipe).method
        if method is None:
            raise ConfigError(f"recipe {recipe} names no method: add `method:` to it.")
        found.append((method, recipe))
    return found


def _plan(source: str, method: str | None, recipe: str | None, flags: list[str]) -> tuple[str, str | None, Plan]:
    """What a method or recipe is called in the table, its recipe, and its plan on a scene."""
    name = Path(recipe).stem if recipe else str(method)
    words = ["--recipe", recipe, *flags] if recipe else list(flags)
    try:
        if method == AUTO:
            method, _ = jobs.choose_method(source, words)
        return name, recipe, prepare(method, source, words, folder=False)[0]
    except NerfitError as error:
        raise type(error)(f"{name} on {source}: {error}") from error


def _job(options: SweepOptions, flags: list[str], source: str, name: str, recipe: str | None, plan: Plan, seed: int) -> Job:
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, seed=plan.config.seed + seed))
    folder = options.out.resolve() / f"{scene_name(source)}-{name}-seed{plan.config.seed}"
    words = (*(("--recipe", recipe) if recipe else ()), *flags, "--seed", str(plan.config.seed))
    return Job(scene_name(source), name, plan, folder, words, kept_flags(flags), Path.cwd())


def kept_flags(flags: list[str]) -> tuple[str, ...]:
    """Those of a training's flags that are given again when it goes on or is judged."""
    return tuple(f"{flag}={value}" for flag in _KEPT if (value := typed_value(flags, flag)) is not None)


def needs(options: ClusterOptions, plan: Plan) -> Needs:
    """The resources of a plan's trainings: their threads, and a GPU where this machine has one and the plan is not for another device."""
    require_min("--", options, at_once=1, retries=0, gpus=0)
    gpus = options.gpus
    if gpus is None:
        gpus = int(pick_device(plan.config.device).type == "cuda")
    return Needs(set_threads(plan.config.threads), gpus, options.at_once, options.retries, options.address)
