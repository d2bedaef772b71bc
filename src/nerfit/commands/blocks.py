"""What `nerfit blocks` does: a scene cut into blocks, a training for each on Ray, and a run folder that shows them as one."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nerfit.commands import train as jobs
from nerfit.commands.cluster import Stop, on_ray
from nerfit.commands.comparison import compare, table
from nerfit.commands.options import BlocksOptions, EvalOptions
from nerfit.commands.preparing import prepare, refuse_flags, scene_name
from nerfit.commands.sweep import OWN, Job, check_same, exit_code, kept_flags, needs, perform
from nerfit.config import typed_value
from nerfit.errors import ConfigError
from nerfit.runs import Plan, block_folder, refuse_existing
from nerfit.scenes.partition import blocks_of
from nerfit.scenes.scene import Scene
from nerfit.training.trainer import update_metrics


def divide(options: BlocksOptions, flags: list[str], spread: Callable[..., Iterator[tuple[int, Any]]] = on_ray) -> dict[str, Any]:
    """Train the blocks that are not done, and judge the whole; what each block and the whole reached, with the ``exit_code``.

    All is checked before anything is written: ConfigError, SceneError or RunError. ``spread`` runs the jobs, as `on_ray` does.
    """
    whole, words = _planned(options, flags)
    config = whole.config.blocks
    folder = options.out or Path("runs") / f"{scene_name(options.scene)}-{whole.method}-{options.blocks}"
    check_same(folder, whole)
    wanted = needs(options, whole)
    scene = whole.load_scene()
    _, blocks = blocks_of(scene, config)
    todo = [_job(whole, [*words, "--blocks.index", str(k)], folder.resolve(), k, len(block.views)) for k, block in enumerate(blocks)]
    if not (folder / "config.yaml").is_file():
        _begin(folder, whole, scene)
    stop = Stop()
    rows = perform(todo, wanted, spread, stop, lambda _: None)
    answer = {"run": str(folder), "blocks": rows, "exit_code": exit_code(rows, stop)}
    if answer["exit_code"]:
        return answer
    train = {"steps": sum(row["steps"] for row in rows), "seconds": sum(row["seconds"] for row in rows), "blocks": len(rows)}
    update_metrics(folder, "train", train)
    if not scene.splits.get("test"):
        return answer
    if "test" not in _metrics(folder):
        lpips = typed_value(flags, "--lpips-weights")
        judging = EvalOptions(run=folder, threads=whole.config.threads, device=whole.config.device)
        judging.lpips_weights = None if lpips is None else Path(lpips)
        jobs.evaluate(judging)
    return answer | {"test": _metrics(folder)["test"]}


def divide_text(answer: dict[str, Any]) -> str:
    """A line for each block, and what the whole reached."""
    whole = [jobs.metrics_text(answer["test"])] if "test" in answer else []
    return "\n".join([table(compare(answer["blocks"])), f"-> {answer['run']}", *whole])


def _planned(options: BlocksOptions, flags: list[str]) -> tuple[Plan, list[str]]:
    """The plan of the whole scene, and the flags that it and its blocks share."""
    refuse_flags(flags, OWN | {"blocks.grid", "blocks.index", "seeds"}, "nerfit blocks sets it itself, see --blocks")
    grid = re.fullmatch(r"(\d+)x(\d+)", options.blocks)
    if grid is None or int(grid[1]) * int(grid[2]) < 2:
        raise ConfigError(f"--blocks is two numbers such as 2x1 or 3x2, at least two blocks, not {options.blocks}.")
    words = [*flags, "--blocks.grid", grid[1], grid[2]]
    plan, _, _ = prepare(options.method, options.scene, [*words, "--blocks.index", "0"], folder=False)
    camera = getattr(plan.config.model, "camera", None)
    if camera is not None and camera.learn:
        raise ConfigError("each block would learn cameras of its own, which would not fit together: leave out --model.camera.learn.")
    blocks = dataclasses.replace(plan.config.blocks, index=None)
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, blocks=blocks)), words


def _job(whole: Plan, flags: list[str], folder: Path, index: int, views: int) -> Job:
    blocks = dataclasses.replace(whole.config.blocks, index=index)
    plan = dataclasses.replace(whole, config=dataclasses.replace(whole.config, blocks=blocks))
    run = block_folder(folder, index)
    return Job(scene_name(whole.source), f"block {index}, {views} views", plan, run, tuple(flags), kept_flags(flags), Path.cwd())


def _begin(folder: Path, whole: Plan, scene: Scene) -> None:
    """The run folder of the whole: its scene, then its configuration, by which it is known to be complete."""
    if not (folder / "scene.json").is_file():
        refuse_existing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scene.save(folder)
    whole.save(folder)


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())
