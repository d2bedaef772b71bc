"""nerfit demo: a made-up scene, trained and rendered as a video."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfit.commands.options import DeviceOptions


@dataclass
class Options(DeviceOptions):
    """nerfit demo: a made-up scene is trained and rendered as a video in a few minutes."""

    out: Path | None = None
    """Run folder; none = runs/demo[-n]."""
    seconds: float | None = None
    """Training time; none = the recipe's."""


def run(options: Options) -> dict[str, Any]:
    """Train and render; the run, its PSNR (None if evaluation would take too long) and its video, or the summary of a stopped training."""
    from nerfit.commands import render
    from nerfit.commands.render_options import Options as RenderOptions
    from nerfit.commands.train_options import request
    from nerfit.commands.train_plan import prepare
    from nerfit.commands.train_run import train
    from nerfit.runs import numbered_folders

    start = time.perf_counter()
    given = {"--seconds": options.seconds, "--threads": options.threads, "--device": options.device}
    flags = [str(word) for flag, value in given.items() if value is not None for word in (flag, value)]
    folder = options.out or next(p for p in numbered_folders(Path("runs/demo")) if not p.exists())
    plan, train_options, folder = prepare(request("instant", "procedural", ["--recipe", "demo", "--out", str(folder), *flags]))
    summary = train(plan, train_options, folder)
    if summary["exit_code"] > 128:
        return summary
    drawn = render.run(RenderOptions(run=folder, frames=48, threads=options.threads, device=options.device))
    answer = {
        "run": str(folder),
        "psnr": summary.get("test", {}).get("psnr"),
        "video": drawn["videos"][0],
        "exit_code": summary["exit_code"],
    }
    return answer | {"training_seconds": summary["seconds"], "seconds": time.perf_counter() - start}


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    if "video" not in answer:
        return f"stopped; go on with: nerfit train --out {answer['run']} --resume"
    times = f"{answer['training_seconds']:.0f} s of training, {answer['seconds']:.0f} s in all"
    reached = f"test PSNR {answer['psnr']:.2f} dB" if answer["psnr"] is not None else "no test view evaluated"
    return f"{reached} after {times}\nvideo: {answer['video']}"
