"""nerfit bench memory: the memory that a training takes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfit.commands.options import OneTraining


@dataclass
class Options(OneTraining):
    """nerfit bench memory SCENE [METHOD]: peak memory after loading, building, training and rendering a view.

    All flags of nerfit train may follow.

    Examples:
      nerfit bench memory procedural
      nerfit bench memory data/lego nerf --recipe nerf-small --steps 50
    """

    steps: int = 200
    """Training steps."""


def run(options: Options) -> dict[str, Any]:
    """Peak memory of this process after each stage of a training; the command is a process of its own, so it is that of the stages."""
    from nerfit.commands.machine import machine
    from nerfit.commands.train_options import request
    from nerfit.commands.train_plan import plan_of
    from nerfit.methods.views import render_view
    from nerfit.training.devices import peak_memory, pick_device
    from nerfit.training.trainer import Trainer

    options.refuse({"seconds", "resume"}, "this benchmark counts --steps of a new training")
    plan = plan_of(request(options.method, options.scene, [*options.flags, "--steps", str(options.steps)]))
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
    about = {"method": plan.method, "source": plan.source, "flags": list(options.flags), "steps": trainer.state.step}
    return about | {"peak_memory_mb": {stage: round(mb, 1) for stage, mb in stages.items()}, "machine": machine(device)}


def text(answer: dict[str, Any]) -> str:
    """A line for each stage."""
    lines = [f"{stage:12} {mb:8,.0f} MB" for stage, mb in answer["peak_memory_mb"].items()]
    return "\n".join(["most memory held until after", *lines])
