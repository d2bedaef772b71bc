"""Trainings as jobs on Ray: each a process of its own and a run folder, finished once and gone on with when it was stopped."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfit.commands import sweep_table
from nerfit.commands.cluster import Needs, Stop, locked, run_nerfit
from nerfit.commands.options import ClusterOptions, TrainingFlags
from nerfit.config import flatten, to_dict
from nerfit.errors import ConfigError, require_min
from nerfit.progress import say
from nerfit.runs import Plan
from nerfit.training.devices import pick_device, set_threads

OWN = {"out", "resume", "evaluate", "viewer", "host", "port", "json"}
"""Flags of a training that a job among many does not take."""
_ANY_TIME = {"threads", "device"}
"""Keys of a configuration that may change when a run goes on."""
_KEPT = ("threads", "device", "lpips_weights")


@dataclass(frozen=True)
class Job:
    """One training: its place in the table, plan and folder, the flags that make the plan, and the flags that it also needs to go on."""

    scene: str
    recipe: str
    plan: Plan
    folder: Path
    flags: tuple[str, ...]
    kept: tuple[str, ...]
    cwd: Path

    @property
    def log(self) -> Path:
        """The output of its processes."""
        return self.folder.parent / "logs" / f"{self.folder.name}.txt"

    def finished(self) -> bool:
        """Whether its budget is spent and its test views are evaluated."""
        try:
            metrics = json.loads((self.folder / "metrics.json").read_text("utf-8"))
            splits, train = json.loads((self.folder / "scene.json").read_text("utf-8"))["splits"], metrics["train"]
        except (OSError, ValueError, KeyError):
            return False
        budget = self.plan.config.in_steps(len(splits["train"]))
        spent = [train[key] >= most for key, most in (("steps", budget.steps), ("seconds", budget.seconds)) if most is not None]
        return any(spent) and ("test" in metrics or not splits.get("test"))

    def row(self, failed: str | None = None) -> dict[str, Any]:
        """Its row of the table, with the columns `sweep_table.COLUMNS`."""
        about = {"job": self.folder.name, "scene": self.scene, "recipe": self.recipe, "seed": self.plan.config.seed}
        measures: dict[str, Any] = dict.fromkeys(sweep_table.MEASURES)
        if failed is None:
            metrics = json.loads((self.folder / "metrics.json").read_text("utf-8"))
            known = metrics["train"] | metrics.get("test", {})
            measures = {name: known.get(name) for name in sweep_table.MEASURES}
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
    """Train, evaluate, and return the row; a run that was begun goes on. Raises RunError or TaskDied."""
    run = str(job.folder)
    with locked(job.log) as log:
        if not (job.folder / "config.yaml").is_file():
            shutil.rmtree(job.folder, ignore_errors=True)  # of a process that was killed before it began to train
            run_nerfit(("train", job.plan.method, job.plan.source, *job.flags, "--out", run), log, job.cwd)
        elif not job.finished():
            run_nerfit(("train", "--out", run, "--resume", *job.kept), log, job.cwd)
        if not job.finished():  # the evaluation would have taken long
            run_nerfit(("eval", run, *job.kept), log, job.cwd)
    return job.row()


def perform(
    todo: list[Job],
    wanted: Needs,
    run_all: Callable[..., Iterator[tuple[int, Any]]],
    stop: Stop,
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Do the jobs that are left, with ``run_all`` as `on_ray` does; the rows of all, which ``keep`` is given whenever they change."""
    left = [job for job in todo if not job.finished()]
    rows = {job.folder: job.row("not done yet." if job in left else None) for job in todo}
    done = len(todo) - len(left)
    say(f"{len(todo)} jobs, {done} of them done")
    keep(list(rows.values()))
    for index, outcome in run_all(run_job, left, wanted, stop):
        row = left[index].row(str(outcome)) if isinstance(outcome, Exception) else outcome
        rows[left[index].folder] = row
        keep(list(rows.values()))
        done += 1
        result = row["failed"] or f"{row['steps']} steps in {row['seconds']:.0f} s" + (f", {row['psnr']:.2f} dB" if row["psnr"] else "")
        say(f"{done}/{len(todo)}  {row['job']}  {result}")
    return list(rows.values())


def exit_code(rows: list[dict[str, Any]], stop: Stop) -> int:
    """0 if every job is done, 128 and the signal's number if one stopped them, else 1."""
    return 128 + stop.interrupted if stop.interrupted is not None else int(any(row["failed"] for row in rows))


def kept_flags(options: TrainingFlags) -> tuple[str, ...]:
    """The flags of a training that are given again when it goes on or is evaluated."""
    return tuple(f"--{key.replace('_', '-')}={options.typed[key][0]}" for key in _KEPT if key in options.typed)


def needs(options: ClusterOptions, plan: Plan) -> Needs:
    """The resources of a plan's trainings: their threads, and a GPU if this machine has one and the plan is not for another device."""
    require_min("--", options, at_once=1, retries=0, gpus=0)
    gpus = options.gpus
    if gpus is None:
        gpus = int(pick_device(plan.config.device).type == "cuda")
    return Needs(set_threads(plan.config.threads), gpus, options.at_once, options.retries, options.address)
