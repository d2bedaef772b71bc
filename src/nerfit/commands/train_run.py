"""One training, from its plan to the metrics of its run folder."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nerfit.commands import evaluate
from nerfit.commands.render_film import scene_path
from nerfit.commands.train_options import Options
from nerfit.commands.train_plan import load_scene
from nerfit.errors import BLANK, NerfitError, RunError
from nerfit.evaluation.evaluate import EvalConfig, why_blank
from nerfit.evaluation.evaluate import evaluate as evaluate_views
from nerfit.evaluation.poses import learned_camera_errors
from nerfit.methods.base import Method
from nerfit.methods.views import render_view
from nerfit.outputs.pictures.histograms import draw_histograms
from nerfit.outputs.pictures.pose_plots import draw_poses, log_paths
from nerfit.outputs.pictures.render_path import PathFrames, render_path
from nerfit.progress import say
from nerfit.runs import Plan, in_use, initialise_from, new_folder, refuse_existing
from nerfit.scenes.scene import Scene
from nerfit.training import distributed
from nerfit.training.checkpoints import update_metrics
from nerfit.training.devices import set_threads
from nerfit.training.trainer import Callback, Trainer

if TYPE_CHECKING:
    from nerfit.viewer.server import Viewer

LEAST_STEPS = 250
"""A shorter training, which may have no more than begun, is not called blank."""
EVALUATE_WITHIN = 600.0
"""Seconds that the evaluation after a training may take; if it would take longer, nerfit prints the command for it."""


def train(
    plan: Plan,
    options: Options,
    folder: Path,
    show: Callable[[dict[str, Any]], None] = lambda _: None,
    scene: Scene | None = None,
) -> dict[str, Any]:
    """Train a plan in its run folder, then evaluate the test views if that is quick; the summary.

    ``show`` is given the summary once all is done; after that a viewer is served until Ctrl-C. ``scene`` is the plan's, if it is loaded.
    """
    set_threads(plan.config.threads)
    if scene is None or options.resume:
        scene = load_scene(plan, folder if options.resume else None)
    if scene.format != "image":
        say(f"{scene.name}: {scene.describe()}")
    if not options.resume:
        folder = distributed.broadcast_result(lambda: new_folder(folder, numbered=options.out is None))
    with contextlib.ExitStack() as open_ones:
        with contextlib.ExitStack() as working:
            distributed.broadcast_result(lambda: _claim(working, scene, folder, plan.source, options.resume))
            viewer = _viewer(scene, options, folder, open_ones) if options.viewer else None
            trainer, summary = _trained(plan, options, folder, scene, viewer)
        show(summary)
        if viewer is not None and trainer.interrupted is None:
            viewer.watch(trainer.method, 4 * trainer.state.chunk)
            say(f"the viewer stays at {viewer.url} until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt), trainer.method.session():
                viewer.serve()
    return summary


def _claim(working: contextlib.ExitStack, scene: Scene, folder: Path, source: str, resume: bool) -> None:
    """Hold a run folder until the work is done, if it is free or to go on with."""
    working.enter_context(in_use(folder))
    if resume:
        _check_same_scene(scene, folder, source)
    else:
        refuse_existing(folder)  # another training may have come first


def _viewer(scene: Scene, options: Options, folder: Path, open_ones: contextlib.ExitStack) -> "Viewer":
    """A viewer of a training."""
    from nerfit.viewer.server import Viewer

    make_folder = lambda: new_folder(folder / "renders" / "viewer", numbered=True)  # noqa: E731
    viewer = open_ones.enter_context(contextlib.closing(Viewer(scene, options.host, options.port, make_folder)))
    viewer.add_training_controls()
    say(f"viewer: {viewer.url}" + (f" (port {options.port} is in use)" if viewer.port != options.port else ""))
    return viewer


def _look_up(viewer: "Viewer") -> Callable[[Trainer], None]:
    """A callback that serves a viewer after each step."""

    def between_steps(trainer: Trainer) -> None:
        psnr = trainer.latest.get("psnr_fine")
        line = f"step {trainer.state.step}, {trainer.state.seconds:.0f} s" + ("" if psnr is None else f", PSNR {psnr:.2f} dB")
        viewer.between_steps(trainer.method, 4 * trainer.state.chunk, line, lambda: trainer.interrupted is not None)

    return between_steps


def _trained(plan: Plan, options: Options, folder: Path, scene: Scene, viewer: "Viewer | None") -> tuple[Trainer, dict[str, Any]]:
    due = plan.config.log
    callbacks = [Callback(due.test_every, _draw_test, shared=True), Callback(due.video_every, _draw_path, shared=True)]
    callbacks += [Callback(due.image_every, _log_histograms), Callback(due.image_every, log_paths)]
    if viewer is not None:
        callbacks.append(Callback(1, _look_up(viewer)))
    made: list[Method] = []

    def make_method() -> Method:
        method = plan.make_method(scene)
        if options.init is not None and (options.init_only or not made):
            initialise_from(options.init, method, scene, options.init_only)
        made.append(method)
        return method

    try:
        trainer = Trainer(make_method, scene, plan.config, folder, callbacks, options.json, options.lpips_weights)
    except NerfitError:
        if not options.resume and distributed.is_main():
            folder.rmdir()
        raise
    if trainer.main:
        plan.save(folder)
        distributed.sign(folder)
        if not (options.resume and (folder / "cameras.json").exists()):
            scene.save(folder)
    if trainer.progress >= 1:
        say(f"{folder} has had its {trainer.state.step} steps already; give --steps or --seconds a larger number to go on.")
    trainer.train()
    placed = trainer.method.place(trainer.scene)  # a restart may have changed its background
    if placed is not trainer.scene and trainer.main:
        placed.save(folder, given=scene.cameras)
        if trainer.interrupted is None:
            draw_poses(trainer, folder / "renders" / "cameras")
    summary: dict[str, Any] = {
        "run": str(folder),
        "method": plan.method,
        "source": plan.source,
        "steps": trainer.state.step,
        "seconds": trainer.state.seconds,
        "exit_code": 0 if trainer.interrupted is None else 128 + trainer.interrupted,
    }
    if options.evaluate and trainer.interrupted is None and scene.splits.get("test"):
        trainer.method.eval()
        summary |= _evaluate_if_quick(trainer, placed, folder, options.lpips_weights)
        if "test" in summary and trainer.state.step >= LEAST_STEPS and (blank := why_blank(summary["test"], trainer.state.psnr)):
            summary |= {"blank": blank, "exit_code": BLANK}
    return trainer, summary


def train_text(summary: dict[str, Any]) -> str:
    """The summary of one training for a reader."""
    lines = [f"{summary['steps']} steps in {summary['seconds']:.0f} s of training -> {summary['run']}"]
    if summary["exit_code"] > 128:
        lines.append(f"stopped; go on with: nerfit train {summary['method']} {summary['source']} --out {summary['run']} --resume")
    if "test" in summary:
        lines.append(evaluate.text(summary["test"]))
    if "blank" in summary:
        lines.append(f"FAILED: {summary['blank']}")
    return "\n".join(lines)


def _check_same_scene(scene: Scene, folder: Path, source: str) -> None:
    """Refuse to go on with a run on other cameras than it began with; the same scene may have moved."""
    if not (folder / "cameras.json").exists():  # the last that a run writes before its first step
        return
    began = Scene.load(folder, given=True)
    same = (began.format, began.ndc, len(began.cameras)) == (scene.format, scene.ndc, len(scene.cameras))
    if not same or not torch.allclose(began.cameras.c2w, scene.cameras.c2w, atol=1e-5):
        raise RunError(f"{source} is not the scene that {folder} was trained on: its cameras differ.")


def _evaluate_if_quick(trainer: Trainer, scene: Scene, folder: Path, lpips_weights: Path | None) -> dict[str, Any]:
    views = scene.splits["test"]
    probe = scene.cameras[views[0]].rescale(0.1)
    chunk = 4 * trainer.state.chunk

    def seconds() -> float:
        start = time.perf_counter()
        render_view(trainer.method, scene, probe, 0, chunk)
        return time.perf_counter() - start

    pixels = sum(int(scene.cameras.width[v] * scene.cameras.height[v]) for v in views)
    estimate = distributed.broadcast_result(seconds) * pixels / int(probe.width[0] * probe.height[0]) / trainer.share.world_size
    if estimate > EVALUATE_WITHIN:
        say(f"the evaluation of {len(views)} test views would take about {estimate / 60:.0f} minutes: nerfit eval {folder}")
        return {}
    metrics = evaluate_views(
        trainer.method, scene, chunk, EvalConfig(lpips_weights=lpips_weights, pictures=folder / "renders" / "eval_test")
    )
    metrics |= learned_camera_errors(trainer.method, scene, None)
    if trainer.main:
        update_metrics(folder, "test", metrics)
    return {"test": metrics}


def _draw_test(trainer: Trainer) -> None:
    scene = trainer.method.place(trainer.scene)
    cameras = scene.cameras[scene.splits.get("test") or scene.splits["train"][:1]]
    folder = trainer.folder / "renders" / f"test_{trainer.state.step:08d}"
    render_path(PathFrames(trainer.method, scene, cameras, ["rgb"], 4 * trainer.state.chunk), folder)


def _draw_path(trainer: Trainer) -> None:
    scene = trainer.method.place(trainer.scene)
    cameras, look = scene_path(scene, scene.default_path, None)
    folder = trainer.folder / "renders" / f"{scene.default_path}_{trainer.state.step:08d}"
    render_path(PathFrames(trainer.method, scene, cameras, ["rgb", "disparity"], 4 * trainer.state.chunk, look), folder)


def _log_histograms(trainer: Trainer) -> None:
    """Log how proposals and field place their weight along some rays."""
    scene = trainer.scene
    picture = draw_histograms(trainer.method, scene, (scene.splits.get("test") or scene.splits["train"])[0])
    if picture is not None and trainer.log is not None:
        trainer.log.images(trainer.state.step, {"rays/histograms": picture})
