"""Trainings by name and command line, in this process or in several that torchrun started: what the tests of `distributed` compare.

``python -m torch.distributed.run --nproc-per-node 2 tests/together.py RUNS.json OUT.json``; each run is
``{"out": folder, "words": [method, scene, flags…], "stop": step or null, "scores": false}``.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nerfit.commands.train_options import request
from nerfit.commands.train_plan import prepare
from nerfit.evaluation.evaluate import EvalConfig, evaluate
from nerfit.runs import new_folder
from nerfit.training import distributed
from nerfit.training.trainer import Callback, Trainer

ALWAYS = ["--device", "cpu", "--threads", "1", "--log.print-every", "1", "--log.image-every", "0"]


def train(out: str, words: list[str], stop: int | None = None, scores: bool = False) -> dict[str, Any]:
    """Train, or go on with what ``out`` holds; the loss of colours of each step, bytes sent and seconds of this process's CPU per step.

    At step ``stop`` the last process gets a signal, as from Ctrl-C. ``scores`` asks for each test view's PSNR and the pictures' names too.
    """
    folder = Path(out)
    again = (folder / "config.yaml").is_file()
    method, source, *flags = words
    argv = ["--resume", "--out", out, *ALWAYS] if again else [*flags, "--out", out, *ALWAYS]
    plan, _, _ = distributed.broadcast_result(lambda: prepare(request(method, source, argv)))
    scene = plan.load_scene()
    losses: dict[int, float] = {}

    def note(trainer: Trainer) -> None:
        if distributed.is_main():
            losses[trainer.state.step] = trainer.latest["loss/rgb"]
        if trainer.state.step == stop and trainer.share.rank == trainer.share.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    if not again:
        distributed.broadcast_result(lambda: new_folder(folder, numbered=False))
    trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, folder, [Callback(1, note, shared=True)], quiet=True)
    if trainer.main:
        scene.save(folder)
        plan.save(folder)
    before, sent = time.process_time(), distributed.sent
    trainer.train()
    steps = max(len(losses), 1)
    found: dict[str, Any] = {}
    if scores:
        rows = evaluate(trainer.method.eval(), scene, 4096, EvalConfig(lpips=False, pictures=folder / "test"))["views"]
        found = {"psnr": {row["view"]: row["psnr"] for row in rows}, "pictures": sorted(p.name for p in folder.glob("test/*.png"))}
    return found | {
        "losses": losses,
        "sent": (distributed.sent - sent) / steps,
        "seconds": (time.process_time() - before) / steps,
        "state": trainer.state.step,
    }


def main() -> None:
    """Do what a file of runs says."""
    runs = json.loads(Path(sys.argv[1]).read_text())
    with distributed.process_group():
        found = [train(**run) for run in runs]
        if distributed.is_main():
            Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
