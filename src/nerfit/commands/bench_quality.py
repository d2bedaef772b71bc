"""nerfit bench time-to-quality: the test PSNR after trainings of several lengths."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfit.commands.options import OneTraining
from nerfit.errors import ConfigError, RunError, require_min
from nerfit.progress import say

if TYPE_CHECKING:
    from nerfit.runs import Plan


@dataclass
class Options(OneTraining):
    """nerfit bench time-to-quality SCENE [METHOD]: test PSNR after trainings of several lengths.

    Each training is a process of its own with its schedule set to its seconds; all flags of nerfit train may follow. Writes
    results.json, results.csv and results.svg; a second start with the same --out goes on where the first was stopped.

    Examples:
      nerfit bench time-to-quality procedural --at 5 10 20
      nerfit bench time-to-quality data/lego instant --at 60 300 --seeds 3 --out runs/lego-times --threads 2
    """

    at: tuple[float, ...] = (15, 30, 60, 120, 300, 600, 1200)
    """Seconds of training."""
    seeds: int = 1
    """Trainings for each of them, with seeds 0, 1, …"""
    out: Path | None = None
    """Folder of the results and the runs; none = runs/bench-<scene>-<method>."""


def run(options: Options) -> dict[str, Any]:
    """Test PSNR after trainings of several lengths, one process each; trainings that --out holds already are not repeated."""
    from nerfit.commands.bench_quality_results import Results
    from nerfit.commands.machine import machine
    from nerfit.commands.train_options import request
    from nerfit.commands.train_plan import plan_of, scene_name
    from nerfit.runs import refuse_existing
    from nerfit.training.devices import pick_device, set_threads

    flags = list(options.flags)
    own = {"steps", "seconds", "seed", "resume", "evaluate", "lpips_weights"}
    options.refuse(own, "this benchmark sets it itself, see --at and --seeds")
    budgets = sorted(set(options.at))
    if not budgets or not all(math.isfinite(s) and s > 0 for s in budgets):
        raise ConfigError("--at needs one or more numbers of seconds above 0.")
    require_min("--", options, seeds=1)
    plan = plan_of(request(options.method, options.scene, [*flags, "--seconds", f"{budgets[0]:g}"]))
    set_threads(plan.config.threads)
    folder = options.out or Path("runs") / f"bench-{scene_name(options.scene)}-{plan.method}"
    results = Results(plan.method, plan.source, flags, machine(pick_device(plan.config.device)))
    if (folder / "results.json").exists():
        results.resume(folder)
    else:
        refuse_existing(folder)
    results.save(folder)
    with _ended_by_sigterm():
        for budget, seed in itertools.product(budgets, range(options.seeds)):
            if results.holds(budget, seed):
                continue
            row = _timed_training(plan, flags, budget, seed, folder / f"{budget:g}s-seed{seed}")
            results.add(row, folder)
            say(f"{budget:g} s, seed {seed}: {row['psnr']:.2f} dB after {row['steps']} steps, {row['peak_memory_mb']:.0f} MB")
    return dataclasses.asdict(results) | {"folder": str(folder)}


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that the training in hand ends too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _timed_training(plan: "Plan", flags: list[str], budget: float, seed: int, run: Path) -> dict[str, Any]:
    """A row of the table: the machine's matrix product, then a training in a new process, then its test PSNR."""
    from torch import float32

    from nerfit.commands.machine import matrix_peak
    from nerfit.evaluation.evaluate import EvalConfig, evaluate
    from nerfit.runs import open_run
    from nerfit.training.devices import pick_device

    shutil.rmtree(run, ignore_errors=True)  # what an interruption left
    device = pick_device(plan.config.device)
    peak = matrix_peak(device, float32) / 1e9
    own = ["--seconds", repr(budget), "--seed", str(seed), "--out", str(run), "--no-evaluate", "--json"]
    command = [sys.executable, "-m", "nerfit", "train", plan.method, plan.source, *flags, *own]
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode in (128 + 2, 128 + 15):
        raise KeyboardInterrupt
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}."])[-1]
        raise RunError(f"the training of {budget:g} s failed: {last.removeprefix('nerfit: ')}")
    train = json.loads((run / "metrics.json").read_text("utf-8"))["train"]
    trained = open_run(run, images=True, threads=plan.config.threads, device=plan.config.device)
    metrics = evaluate(trained.method, trained.scene, trained.chunk, EvalConfig(lpips=False))
    found = {
        "psnr": metrics["psnr"],
        "matrix_peak_gflops": round(peak, 1),
    }
    kept = {key: train[key] for key in ("steps", "rays", "seconds", "peak_memory_mb", "threads")}
    return {"budget": budget, "seed": seed} | kept | found | {"date": date, "run": str(run)}


def text(answer: dict[str, Any]) -> str:
    """A table of the trainings."""
    columns = {
        "seconds": "{:.1f}",
        "seed": "{}",
        "steps": "{}",
        "psnr": "{:.2f}",
        "peak_memory_mb": "{:.0f}",
        "matrix_peak_gflops": "{:.0f}",
    }
    rows = [list(columns), *([text.format(row[name]) for name, text in columns.items()] for row in answer["rows"])]
    lines = ["  ".join(f"{word:>{len(name)}}" for word, name in zip(row, columns, strict=True)) for row in rows]
    return "\n".join([*lines, f"-> {answer['folder']}/results.svg, results.csv, results.json"])
