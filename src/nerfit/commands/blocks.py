"""nerfit blocks: a scene cut into blocks, a training for each on Ray, and a run folder that shows them as one."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfit.commands import evaluate
from nerfit.commands.cluster import Stop, on_ray
from nerfit.commands.options import ClusterOptions, OneTraining
from nerfit.commands.sweep_table import compare, table
from nerfit.errors import ConfigError

if TYPE_CHECKING:
    from nerfit.commands.jobs import Job
    from nerfit.runs import Plan
    from nerfit.scenes.scene import Scene


@dataclass(kw_only=True)
class Options(ClusterOptions, OneTraining):
    """nerfit blocks SCENE [METHOD] --blocks 2x1: a scene too large for one field, cut into blocks that are trained apart and seen as one.

    Blocks overlap, and pictures are blended by where the camera stands (Block-NeRF). Each block is a training in a process of its own,
    with all its budget; all flags of nerfit train may follow, and METHOD can't be auto. The run folder is evaluated, rendered and
    exported like any other. If the command is stopped or killed, the same command goes on.

    Examples:
      nerfit blocks data/street instant-unbounded --blocks 4x1 --seconds 600 --threads 2
      nerfit blocks data/campus --blocks 3x2 --blocks.overlap 0.4 --address auto --gpus 1
      nerfit render runs/street-instant-unbounded-4x1 --workers 4
    """

    blocks: str = "2x1"
    """Number of blocks along the longer and the shorter direction in which the cameras spread over the ground."""
    out: Path | None = None
    """Run folder; none = runs/<scene>-<method>-<blocks>."""


def run(options: Options, run_all: Callable[..., Iterator[tuple[int, Any]]] = on_ray) -> dict[str, Any]:
    """Train the blocks that are not done, and evaluate the whole; what each block and the whole reached, with the ``exit_code``.

    All is checked before anything is written: ConfigError, SceneError or RunError. ``run_all`` runs the jobs, as `on_ray` does.
    """
    from nerfit.commands.jobs import check_same, exit_code, kept_flags, needs, perform
    from nerfit.commands.train_plan import scene_name
    from nerfit.scenes.partition import blocks_of
    from nerfit.training.checkpoints import update_metrics

    whole, words = planned(options)
    config = whole.config.blocks
    folder = options.out or Path("runs") / f"{scene_name(options.scene)}-{whole.method}-{options.blocks}"
    check_same(folder, whole)
    wanted = needs(options, whole)
    scene = whole.load_scene()
    _, blocks = blocks_of(scene, config)
    kept = kept_flags(options)
    todo = [_job(whole, words, kept, folder.resolve(), index, len(block.views)) for index, block in enumerate(blocks)]
    if not (folder / "config.yaml").is_file():
        _begin(folder, whole, scene)
    stop = Stop()
    rows = perform(todo, wanted, run_all, stop, lambda _: None)
    answer = {"run": str(folder), "blocks": rows, "exit_code": exit_code(rows, stop)}
    if answer["exit_code"]:
        return answer
    train = {"steps": sum(row["steps"] for row in rows), "seconds": sum(row["seconds"] for row in rows), "blocks": len(rows)}
    update_metrics(folder, "train", train)
    if not scene.splits.get("test"):
        return answer
    if "test" not in _metrics(folder):
        weights = next(map(Path, options.typed.get("lpips_weights", ())), None)
        evaluate.run(evaluate.Options(run=folder, threads=whole.config.threads, device=whole.config.device, lpips_weights=weights))
    return answer | {"test": _metrics(folder)["test"]}


def text(answer: dict[str, Any]) -> str:
    """A line for each block, and what the whole reached."""
    whole = [evaluate.text(answer["test"])] if "test" in answer else []
    return "\n".join([table(compare(answer["blocks"])), f"-> {answer['run']}", *whole])


def planned(options: Options) -> "tuple[Plan, list[str]]":
    """The plan of the whole scene, and the flags that it and its blocks share."""
    from nerfit.commands.jobs import OWN
    from nerfit.commands.train_options import request
    from nerfit.commands.train_plan import plan_of

    options.refuse(OWN | {"blocks.grid", "blocks.index", "seeds"}, "nerfit blocks sets it itself, see --blocks")
    grid = re.fullmatch(r"(\d+)x(\d+)", options.blocks)
    if grid is None or int(grid[1]) * int(grid[2]) < 2:
        raise ConfigError(f"--blocks is two numbers such as 2x1 or 3x2, at least two blocks, not {options.blocks}.")
    words = [*options.flags, "--blocks.grid", grid[1], grid[2]]
    plan = plan_of(request(options.method, options.scene, [*words, "--blocks.index", "0"]))
    camera = getattr(plan.config.model, "camera", None)
    if camera is not None and camera.learn:
        raise ConfigError("each block would learn cameras of its own, which would not fit together: leave out --model.camera.learn.")
    blocks = dataclasses.replace(plan.config.blocks, index=None)
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, blocks=blocks)), words


def _job(whole: "Plan", words: list[str], kept: tuple[str, ...], folder: Path, index: int, views: int) -> "Job":
    from nerfit.commands.jobs import Job
    from nerfit.commands.train_plan import scene_name
    from nerfit.runs import block_folder

    blocks = dataclasses.replace(whole.config.blocks, index=index)
    plan = dataclasses.replace(whole, config=dataclasses.replace(whole.config, blocks=blocks))
    flags = (*words, "--blocks.index", str(index))
    return Job(scene_name(whole.source), f"block {index}, {views} views", plan, block_folder(folder, index), flags, kept, Path.cwd())


def _begin(folder: Path, whole: "Plan", scene: "Scene") -> None:
    """Write the run folder of the whole: its scene, then its configuration, which marks it as complete."""
    from nerfit.runs import refuse_existing

    if not (folder / "scene.json").is_file():
        refuse_existing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scene.save(folder)
    whole.save(folder)


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text("utf-8"))
