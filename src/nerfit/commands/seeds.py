"""A training repeated with several seeds: reports how results vary, and keeps the best run."""

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nerfit.commands import train_run
from nerfit.errors import ConfigError
from nerfit.files import write_json
from nerfit.progress import say
from nerfit.runs import Plan, new_folder
from nerfit.scenes.scene import Scene
from nerfit.training.distributed import share

_COMPARED = {
    "psnr": lambda run: run.get("test", {}).get("psnr"),
    "training_psnr": lambda run: run["training_psnr"],
    "rotation_degrees": lambda run: run.get("test", {}).get("cameras", {}).get("rotation_degrees"),
    "translation_percent": lambda run: run.get("test", {}).get("cameras", {}).get("translation_percent"),
}
"""Quantities compared between seeds; each may be missing."""


def train_seeds(
    plan: Plan, options: Any, folder: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None, scene: Scene | None = None
) -> dict[str, Any]:
    """Train ``options.seeds`` times (`train_run.train`); the run with the highest PSNR of its latest training pixels becomes the folder's.

    The other runs stay in its folder ``seeds``. The summary is the best run's, with mean and spread (standard deviation) over all runs
    under ``seeds``, which is also written to ``seeds.json``. After an interruption, --resume with the same --seeds goes on; once the best
    run is chosen, it alone goes on. ``scene`` as in `train_run.train`.
    """
    if options.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, not {options.seeds}.")
    if options.seeds == 1:
        return train_run.train(plan, options, folder, tell, scene)
    if share().world_size > 1:
        raise ConfigError("--seeds trains several fields, one after another: leave out --devices, or train them one by one.")
    if options.viewer:
        raise ConfigError("--seeds trains several fields, and a viewer shows one: leave out --viewer.")
    if not options.resume:
        folder = new_folder(folder, numbered=options.out is None)
        plan.save(folder)
    elif (folder / "seeds.json").exists():
        return _chosen(plan, options, folder, tell, scene)
    runs: list[dict[str, Any]] = []
    for seed in range(plan.config.seed, plan.config.seed + options.seeds):
        runs.append(_one(plan, options, folder / "seeds" / str(seed), seed, scene))
        if runs[-1]["exit_code"] > 128:
            summary = runs[-1] | {"run": str(folder)}
            tell(summary)
            return summary
    best = max(runs, key=lambda run: run["training_psnr"])
    summary = best | {"run": str(folder), "seeds": compare(runs) | {"kept": best["seed"]}}
    write_json(folder / "seeds.json", summary["seeds"])
    _move(folder, best["seed"])
    tell(summary)
    return summary


def _move(folder: Path, seed: int) -> None:
    """Move the run of one seed into the folder; files that were moved before a crash stay."""
    run = folder / "seeds" / str(seed)
    if run.exists():
        for path in run.iterdir():
            path.replace(folder / path.name)
        run.rmdir()


def _chosen(plan: Plan, options: Any, folder: Path, tell: Callable[[dict[str, Any]], None], scene: Scene | None) -> dict[str, Any]:
    """Go on with the best run."""
    seeds = json.loads((folder / "seeds.json").read_text("utf-8"))
    _move(folder, seeds["kept"])
    own = dataclasses.replace(plan, config=dataclasses.replace(plan.config, seed=seeds["kept"]))
    also = {"seed": seeds["kept"], "seeds": seeds}
    return train_run.train(own, options, folder, lambda summary: tell(summary | also), scene) | also


def _one(plan: Plan, options: Any, folder: Path, seed: int, scene: Scene | None) -> dict[str, Any]:
    """Train the run of one seed, or resume it."""
    own = dataclasses.replace(plan, config=dataclasses.replace(plan.config, seed=seed))
    begun = (folder / "config.yaml").is_file()
    say(f"seed {seed}")
    summary = train_run.train(own, dataclasses.replace(options, out=folder, resume=begun, seeds=1), folder, scene=scene)
    train = json.loads((folder / "metrics.json").read_text("utf-8"))["train"]
    return summary | {"seed": seed, "training_psnr": train["training_psnr"]}


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of each run by its seed, and their mean and standard deviation over the runs."""
    each = {run["seed"]: {name: value for name, of in _COMPARED.items() if (value := of(run)) is not None} for run in runs}
    shared = [name for name in _COMPARED if all(name in values for values in each.values())]
    columns = {name: [values[name] for values in each.values()] for name in shared}
    return {
        "each": each,
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "spread": {name: statistics.stdev(values) for name, values in columns.items()},
    }


def train_text(summary: dict[str, Any]) -> str:
    """The answer of `train_seeds` as text."""
    if "seeds" not in summary:
        return train_run.train_text(summary)
    kept = f"kept the run of seed {summary['seed']}, the best on training pixels"
    return f"{train_run.train_text(summary)}\n{kept}\n{compare_text(summary['seeds'])}"


def compare_text(seeds: dict[str, Any]) -> str:
    """The comparison in one line."""
    names = {"psnr": "test PSNR", "training_psnr": "training PSNR", "rotation_degrees": "degrees off", "translation_percent": "% off"}
    lines = (f"{names[name]} {mean:.2f} ± {seeds['spread'][name]:.2f}" for name, mean in seeds["mean"].items())
    return f"{len(seeds['each'])} seeds: {', '.join(lines)}"
