"""What `nerfit bench` does: each benchmark as one function from options, and flags of a training, to plain data, and its text."""

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
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from nerfit.commands.inspect import matrix_peak
from nerfit.commands.kernel_speed import machine
from nerfit.commands.kernel_speed import speed as kernel_speed
from nerfit.commands.options import MemoryOptions, SpeedOptions, TimeToQualityOptions
from nerfit.commands.preparing import prepare, refuse_flags, scene_name
from nerfit.commands.quality_results import Results
from nerfit.errors import ConfigError, RunError, require_min
from nerfit.evaluation.evaluate import evaluate as judge
from nerfit.kernels.layouts import FieldShape, GridLayout
from nerfit.methods.base import render_view
from nerfit.progress import say
from nerfit.runs import Plan, open_run, refuse_existing
from nerfit.training.devices import peak_memory, pick_device, set_threads
from nerfit.training.trainer import Trainer


def speed(options: SpeedOptions, flags: list[str]) -> dict[str, Any]:
    """How fast this machine's matrix product, the fused field and each kernel are."""
    set_threads(options.threads)
    shape = FieldShape(GridLayout(options.levels, options.log2_entries, 16, 1024), options.width)
    with Console(stderr=True).status("measuring"):
        return kernel_speed(shape, options.samples, options.precision, pick_device(options.device))


def speed_text(answer: dict[str, Any]) -> str:
    """A table of the kernels below what the machine can do."""
    m, f, peaks = answer["machine"], answer["field"], answer["matrix_peak_gflops"]
    table = Table(box=None, pad_edge=False)
    table.add_column("kernel")
    for title in ("ms", "reference ms", "ratio", "difference", "GFLOP/s"):
        table.add_column(title, justify="right")
    for row in answer["kernels"]:
        rays = f" ({row['differing_rays']:.1%} of rays)" if row.get("differing_rays") else ""
        numbers = (
            f"{row['milliseconds']:.2f}",
            f"{row['reference_milliseconds']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['difference']:.0e}{rays}",
        )
        table.add_row(row["kernel"], *numbers, f"{row['gflops']:.0f}" if "gflops" in row else "")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(
        [
            f"{m['cpu']}, cores: {m['cores']}, threads: {m['threads']}, device {m['device']}, PyTorch {m['torch']}, {m['date']}",
            f"matrix peak: {peaks['float32']:,.0f} GFLOP/s in float32, {peaks['bf16']:,.0f} in bf16",
            f"fused field forward + backward in {f['precision']}: {f['samples_per_second'] / 1e6:.2f} million samples/s, "
            f"{f['gflops']:,.0f} GFLOP/s, {f['share_of_float32_peak']:.0%} of the float32 peak",
            "",
            capture.get().rstrip(),
        ]
    )


def time_to_quality(options: TimeToQualityOptions, flags: list[str]) -> dict[str, Any]:
    """Test PSNR after trainings of several lengths, one process each; trainings that --out holds already are not repeated."""
    own = {"steps", "seconds", "seed", "resume", "evaluate", "lpips_weights"}
    refuse_flags(flags, own, "this benchmark sets it itself, see --at and --seeds")
    budgets = sorted(set(options.at))
    if not budgets or not all(math.isfinite(s) and s > 0 for s in budgets):
        raise ConfigError("--at needs one or more numbers of seconds above 0.")
    require_min("--", options, seeds=1)
    plan, _, _ = prepare(options.method, options.scene, [*flags, "--seconds", f"{budgets[0]:g}"], folder=False)
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


def _timed_training(plan: Plan, flags: list[str], budget: float, seed: int, run: Path) -> dict[str, Any]:
    """A row of `time_to_quality`: the machine's matrix product, then a training in a fresh process, then its test PSNR."""
    shutil.rmtree(run, ignore_errors=True)  # what an interruption left
    device = pick_device(plan.config.device)
    peak = matrix_peak(device, torch.float32) / 1e9
    own = ["--seconds", repr(budget), "--seed", str(seed), "--out", str(run), "--no-evaluate", "--json"]
    command = [sys.executable, "-m", "nerfit", "train", plan.method, plan.source, *flags, *own]
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode in (128 + 2, 128 + 15):
        raise KeyboardInterrupt
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}."])[-1]
        raise RunError(f"the training of {budget:g} s failed: {said.removeprefix('nerfit: ')}")
    train = json.loads((run / "metrics.json").read_text())["train"]
    trained = open_run(run, images=True, threads=plan.config.threads, device=plan.config.device)
    found = {"psnr": judge(trained.method, trained.scene, trained.chunk, lpips=False)["psnr"], "matrix_peak_gflops": round(peak, 1)}
    kept = {key: train[key] for key in ("steps", "rays", "seconds", "peak_memory_mb", "threads")}
    return {"budget": budget, "seed": seed} | kept | found | {"date": date, "run": str(run)}


def quality_text(answer: dict[str, Any]) -> str:
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


def memory(options: MemoryOptions, flags: list[str]) -> dict[str, Any]:
    """Peak memory of this process after each stage of a training; the command is a process of its own, so it is that of the stages."""
    refuse_flags(flags, {"seconds", "resume"}, "this benchmark counts --steps of a new training")
    plan, command, _ = prepare(options.method, options.scene, [*flags, "--steps", str(options.steps)], folder=False)
    device = pick_device(plan.config.device)
    stages = {"the program": peak_memory(device)}
    scene = plan.load_scene()
    stages["the scene"] = peak_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, Path(folder), quiet=True)
        stages["the method"] = peak_memory(device)
        trainer.train()
        stages["training"] = peak_memory(device)
    if trainer.interrupted is not None:
        raise KeyboardInterrupt
    trainer.method.eval()
    view = (scene.splits.get("test") or scene.splits["train"])[0]
    render_view(trainer.method, scene, scene.cameras, view, 4 * trainer.state.chunk)
    stages["rendering"] = peak_memory(device)
    about = {"method": plan.method, "source": plan.source, "flags": flags, "steps": trainer.state.step}
    return about | {"peak_memory_mb": {stage: round(mb, 1) for stage, mb in stages.items()}, "machine": machine(device)}


def memory_text(answer: dict[str, Any]) -> str:
    """A line for each stage."""
    lines = [f"{stage:12} {mb:8,.0f} MB" for stage, mb in answer["peak_memory_mb"].items()]
    return "\n".join(["most memory held until after", *lines])


class Benchmark(NamedTuple):
    """What measures, given options and the flags of a training, and the answer for a reader."""

    measure: Callable[[Any, list[str]], dict[str, Any]]
    text: Callable[[dict[str, Any]], str]


MEASURES = {
    SpeedOptions: Benchmark(speed, speed_text),
    TimeToQualityOptions: Benchmark(time_to_quality, quality_text),
    MemoryOptions: Benchmark(memory, memory_text),
}
"""By their options, which `nerfit.commands.options.BENCHMARKS` names."""
