"""nerfit import: the weights of an older program become a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from nerfit.commands.options import TrainingFlags
from nerfit.errors import ConfigError


@dataclass
class Options(TrainingFlags):
    """nerfit import CHECKPOINT --scene SCENE: the weights of nerf-pytorch or bmild/nerf become a run of the method nerf.

    CHECKPOINT is a .tar of yenchenlin's nerf-pytorch, a .ckpt of krrish94's, or model_<step>.npy of bmild/nerf (model_fine_<step>.npy is
    read from the same folder).
    The sizes of the networks come from the weights, the rest from the recipe. The run renders, evaluates and goes on training; all
    flags of nerfit train may follow.

    Examples:
      nerfit import logs/lego_test/200000.tar --scene data/lego --recipe lego
    """

    checkpoint: tyro.conf.Positional[str] = ""
    """File with the weights."""
    scene: str | None = None
    """A folder or file of any scene format, or procedural, as for nerfit train."""


def run(options: Options) -> dict[str, Any]:
    """Write the run; its optimiser starts from zero."""
    if options.scene is None or not options.checkpoint:
        raise ConfigError("a CHECKPOINT and its scene are needed: nerfit import CHECKPOINT --scene SCENE.")
    from nerfit.commands.old_weights import read_weights
    from nerfit.commands.train_options import request
    from nerfit.commands.train_plan import load_scene, prepare
    from nerfit.runs import new_folder
    from nerfit.training.checkpoints import LoopState, restore, save_checkpoint
    from nerfit.training.devices import automatic_chunk
    from nerfit.training.optim import make_optimizer

    weights = read_weights(Path(options.checkpoint))
    plan, training, folder = prepare(request("nerf", options.scene, [*weights.flags(), *options.flags]))
    scene = load_scene(plan)
    method = plan.make_method(scene)
    restore({f"model.{name}": t for name, t in weights.state().items()}, method)
    folder = new_folder(folder, numbered=training.out is None)
    scene.save(folder)
    plan.save(folder)
    state = LoopState(weights.step, seed=plan.config.seed, chunk=plan.config.chunk or automatic_chunk(method, method.device))
    save_checkpoint(folder / "checkpoints", state, method, make_optimizer(plan.config.optim, method))
    return {"run": str(folder), "steps": weights.step, "networks": 1 if weights.fine is None else 2}


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    return f"{answer['networks']} networks after {answer['steps']} steps -> {answer['run']}"
