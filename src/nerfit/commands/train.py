"""What the commands do, each as one function from options to an answer that is plain data."""

import contextlib
import dataclasses
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import tyro

from nerfit.commands.import_weights import read_weights
from nerfit.commands.inspect import inspect_part
from nerfit.commands.options import Common, DemoOptions, EvalOptions, RenderOptions
from nerfit.commands.preparing import TrainCommand, prepare
from nerfit.commands.render import render, scene_path
from nerfit.errors import ConfigError, NerfitError, RunError, SceneError
from nerfit.evaluation.evaluate import evaluate as judge
from nerfit.evaluation.poses import judge_cameras
from nerfit.methods.base import Method, render_view
from nerfit.outputs.pictures.histograms import draw_histograms
from nerfit.outputs.pictures.pose_plots import draw_poses, log_paths
from nerfit.outputs.pictures.render_path import PathFrames, render_path
from nerfit.plugins import AUTO
from nerfit.progress import say
from nerfit.runs import Plan, in_use, initialise_from, new_folder, numbered_folders, open_run, refuse_existing
from nerfit.scenes import load_scene
from nerfit.scenes.formats import photos, video
from nerfit.scenes.images import write_png
from nerfit.scenes.scene import Scene
from nerfit.training import distributed
from nerfit.training.checkpoints import LoopState, restore, save_checkpoint
from nerfit.training.devices import automatic_chunk, set_threads
from nerfit.training.optim import make_optimizer
from nerfit.training.trainer import Callback, Trainer, update_metrics

if TYPE_CHECKING:
    from nerfit.viewer.server import Viewer

EVALUATE_WITHIN = 600.0
"""Seconds that judging after a training may take; beyond that the user is told the command instead."""


@dataclass(kw_only=True)
class PosesOptions(video.VideoConfig, Common):
    """nerfit poses PHOTOS_OR_VIDEO: camera poses of a folder of photographs or a video; nerfit train makes them by itself too.

    Examples:
      nerfit poses photos/garden
      nerfit poses garden.mp4 --fps 3 --out garden
    """

    source: tyro.conf.Positional[str] = ""
    """Folder of photographs, or a video file."""
    out: Path | None = None
    """Folder for the scene (transforms.json, points and pictures); none = leave it in nerfit's cache."""
    threads: int | None = None
    """CPU threads."""
    debug: bool = False
    """Show the traceback of an error, and what COLMAP says."""


def choose_method(source: str | None, argv: list[str]) -> tuple[str, Scene]:
    """What `auto` stands for, and the scene, which has to be loaded to tell.

    Whoever names a recipe or the model's keys means the method that they are for.
    """
    plan, _, _ = prepare(AUTO, source, [word for word in argv if word != "--resume"], folder=False)
    set_threads(plan.config.threads)
    scene, method = _load(plan), plan.method
    free = not any(word.startswith(("--recipe", "--model.")) for word in argv)
    if free and method == "instant" and scene.bounds == "unbounded" and not scene.ndc:
        method = "instant-unbounded"
        say(f"auto: the scene is unbounded, so method {method}")
    return method, scene


def train(
    plan: Plan,
    options: TrainCommand[Any, Any],
    folder: Path,
    tell: Callable[[dict[str, Any]], None] = lambda _: None,
    scene: Scene | None = None,
) -> dict[str, Any]:
    """Train a plan in its run folder, then judge the test views if that is quick; returns what was reached.

    With a viewer ``tell`` gets the same when all is done, and the viewer is served until Ctrl-C. ``scene`` is the plan's, if it is loaded.
    """
    set_threads(plan.config.threads)
    scene = scene or _load(plan)
    if scene.format != "image":
        say(f"{scene.name}: {scene.describe()}")
    if not options.resume:
        folder = distributed.broadcast_result(lambda: new_folder(folder, numbered=options.out is None))
    with contextlib.ExitStack() as open_ones:
        with contextlib.ExitStack() as working:
            distributed.broadcast_result(lambda: _claim(working, scene, folder, plan.source, options.resume))
            viewer = _viewer(scene, options, folder, open_ones) if options.viewer else None
            trainer, summary = _trained(plan, options, folder, scene, viewer)
        tell(summary)
        if viewer is not None and trainer.interrupted is None:
            viewer.watch(trainer.method, 4 * trainer.state.chunk)
            say(f"the viewer stays at {viewer.url} until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt), trainer.method.session():
                viewer.serve()
    return summary


def _claim(working: contextlib.ExitStack, scene: Scene, folder: Path, source: str, resume: bool) -> None:
    """Hold a run folder, once it is known to be free or to go on with, until the work is done."""
    working.enter_context(in_use(folder))
    if resume:
        _check_same_scene(scene, folder, source)
    else:
        refuse_existing(folder)  # another training may have come first


def _load(plan: Plan) -> Scene:
    """A plan's scene, with a word about what it is read as."""
    say(f"{plan.source}: {plan.format} scene")
    with distributed.leaders_first():
        return plan.load_scene()


def _viewer(scene: Scene, options: TrainCommand[Any, Any], folder: Path, open_ones: contextlib.ExitStack) -> "Viewer":
    """A viewer of a training."""
    from nerfit.viewer.server import Viewer

    make_folder = lambda: new_folder(folder / "renders" / "viewer", numbered=True)  # noqa: E731
    viewer = open_ones.enter_context(contextlib.closing(Viewer(scene, options.host, options.port, make_folder)))
    viewer.add_training_controls()
    say(f"viewer: {viewer.url}" + (f" (port {options.port} is in use)" if viewer.port != options.port else ""))
    return viewer


def _look_up(viewer: "Viewer") -> Callable[[Trainer], None]:
    """What the trainer does for a viewer after each step."""

    def between_steps(trainer: Trainer) -> None:
        psnr = trainer.latest.get("psnr_fine")
        line = f"step {trainer.state.step}, {trainer.state.seconds:.0f} s" + ("" if psnr is None else f", PSNR {psnr:.2f} dB")
        viewer.between_steps(trainer.method, 4 * trainer.state.chunk, line, lambda: trainer.interrupted is not None)

    return between_steps


def _trained(
    plan: Plan, options: TrainCommand[Any, Any], folder: Path, scene: Scene, viewer: "Viewer | None"
) -> tuple[Trainer, dict[str, Any]]:
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
    placed = trainer.method.place(scene)
    if placed is not scene and trainer.main:
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
        summary |= _judge_if_quick(trainer, placed, folder, options.lpips_weights)
    return trainer, summary


def train_text(summary: dict[str, Any]) -> str:
    """What `train` reached, for a reader."""
    lines = [f"{summary['steps']} steps in {summary['seconds']:.0f} s of training -> {summary['run']}"]
    if summary["exit_code"]:
        lines.append(f"stopped; go on with: nerfit train {summary['method']} {summary['source']} --out {summary['run']} --resume")
    if "test" in summary:
        lines.append(metrics_text(summary["test"]))
    return "\n".join(lines)


def import_weights(checkpoint: Path, source: str, argv: list[str]) -> tuple[TrainCommand[Any, Any], dict[str, Any]]:
    """A run of `nerf` with the weights of an older program; its optimiser begins anew."""
    weights = read_weights(checkpoint)
    plan, options, folder = prepare("nerf", source, [*weights.flags(), *argv])
    scene = _load(plan)
    method = plan.make_method(scene)
    restore({f"model.{name}": t for name, t in weights.state().items()}, method)
    folder = new_folder(folder, numbered=options.out is None)
    scene.save(folder)
    plan.save(folder)
    state = LoopState(weights.step, seed=plan.config.seed, chunk=plan.config.chunk or automatic_chunk(method, method.device))
    save_checkpoint(folder / "checkpoints", state, method, make_optimizer(plan.config.optim, method))
    return options, {"run": str(folder), "steps": weights.step, "networks": 1 if weights.fine is None else 2}


def _check_same_scene(scene: Scene, folder: Path, source: str) -> None:
    """Refuse to go on with a run on other cameras than it began with; the same scene may have moved."""
    if not (folder / "cameras.json").exists():  # the last that a run writes before its first step
        return
    began = Scene.load(folder, given=True)
    same = (began.format, began.ndc, len(began.cameras)) == (scene.format, scene.ndc, len(scene.cameras))
    if not same or not torch.allclose(began.cameras.c2w, scene.cameras.c2w, atol=1e-5):
        raise RunError(f"{source} is not the scene that {folder} was trained on: its cameras differ.")


def _judge_if_quick(trainer: Trainer, scene: Scene, folder: Path, lpips_weights: Path | None) -> dict[str, Any]:
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
        say(f"judging {len(views)} test views would take about {estimate / 60:.0f} minutes: nerfit eval {folder}")
        return {}
    metrics = judge(trainer.method, scene, chunk, "test", lpips_weights, folder / "renders" / "eval_test")
    metrics |= judge_cameras(trainer.method, scene, None)
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
    """Where along some rays proposals and field have their weight, for the log."""
    scene = trainer.scene
    picture = draw_histograms(trainer.method, scene, (scene.splits.get("test") or scene.splits["train"])[0])
    if picture is not None and trainer.log is not None:
        trainer.log.images(trainer.state.step, {"rays/histograms": picture})


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Judge a run's split; its part of metrics.json is replaced, the rest stays."""
    with distributed.leaders_first():
        run = open_run(options.run, images=True, source=options.scene, threads=options.threads, device=options.device)
    pictures = options.run / "renders" / f"eval_{options.split}"
    reference = None if options.reference_poses is None else load_scene(options.reference_poses)
    if options.pose_steps < 0:
        raise ConfigError(f"--pose-steps must not be negative, but is {options.pose_steps}.")
    errors = judge_cameras(run.method, run.scene, reference)
    fits = {"pose_steps": options.pose_steps, "appearance_fit": options.appearance_fit}
    metrics = judge(run.method, run.scene, run.chunk, options.split, options.lpips_weights, pictures, say, **fits)
    metrics |= errors
    if not distributed.is_main():
        return metrics
    update_metrics(options.run, options.split, metrics)
    picture = draw_histograms(run.method, run.scene, run.scene.splits[options.split][0])
    if picture is not None:
        write_png(pictures / "histograms.png", picture)
    return metrics


def metrics_text(metrics: dict[str, Any]) -> str:
    """What `evaluate` found, for a reader."""
    names = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}", "lpips_vgg": "LPIPS(vgg) {:.4f}", "lpips_alex": "LPIPS(alex) {:.4f}"}
    names["depth_error"] = "depth error {:.4f}"

    def means(of: dict[str, Any]) -> str:
        return ", ".join(text.format(of[name]) for name, text in names.items() if name in of)

    rest = "".join(f"\n  {size}: {means(of)}" for size, of in metrics["by_size"].items())
    if "cameras" in metrics:
        off = "{rotation_degrees:.3f} degrees, {translation_percent:.2f} % of their extent, {focal_percent:.2f} % in focal length"
        rest += "\ncameras are off by " + off.format(**metrics["cameras"])
    rest += "".join(f"\nnot judged: {what}" for what in metrics["missing"])
    count, seconds = len(metrics["views"]), metrics["seconds_per_view"]
    return f"{metrics['split']}: {means(metrics)}, {seconds:.2f} s per view ({count} views; {metrics['protocol']}){rest}"


def poses(options: PosesOptions) -> tuple[dict[str, Any], str]:
    """Estimate the poses of photographs or a video; the report as data, and for a reader."""
    set_threads(options.threads)
    if video.detect(options.source):
        file, report = video.estimate(options.source, options)
    elif photos.detect(options.source):
        if (options.fps, options.most_frames) != (None, video.VideoConfig.most_frames):
            raise ConfigError("--fps and --most-frames are for videos, not for photographs.")
        file, report = photos.estimate(options.source, options)
    else:
        raise SceneError(f"'{options.source}' is neither a folder of photographs nor a video ({', '.join(video.SUFFIXES)}).")
    if options.out is not None:
        file = photos.export(file, report, options.out)
    scene = options.source if options.out is None else options.out
    text = f"{report.text()}\nscene: {file}\ntrain it with: nerfit train auto {shlex.quote(str(scene))}"
    return dataclasses.asdict(report) | {"transforms": str(file)}, text


def demo(options: DemoOptions) -> tuple[int, dict[str, Any], str]:
    """Train and film a made-up scene; the exit code, which is not 0 where it was stopped, and the answer as data and for a reader."""
    start = time.perf_counter()
    extra = [] if options.seconds is None else ["--seconds", str(options.seconds)]
    folder = options.out or next(p for p in numbered_folders(Path("runs/demo")) if not p.exists())
    plan, train_options, folder = prepare("instant", "procedural", ["--recipe", "demo", "--out", str(folder), *extra])
    summary = train(plan, train_options, folder)
    if summary["exit_code"]:
        return int(summary["exit_code"]), {}, ""
    drawn = render(RenderOptions(run=folder, frames=48))
    answer = {"run": str(folder), "psnr": summary["test"]["psnr"], "video": drawn["videos"][0], "seconds": time.perf_counter() - start}
    times = f"{summary['seconds']:.0f} s of training, {answer['seconds']:.0f} s in all"
    return 0, answer, f"test PSNR {answer['psnr']:.2f} dB after {times}\nvideo: {answer['video']}"


def inspect(part: str, plan: Plan, out: Path | None) -> dict[str, Any]:
    """Shapes, ranges, timing and a picture of one part."""
    scene = plan.load_scene()
    picture = out or Path(f"inspect-{part}-{scene.name}.png")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, Path(folder), quiet=True)
        return inspect_part(part, trainer, picture)
