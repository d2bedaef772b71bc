"""What the commands do, each as one function from options to an answer that is plain data."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch
import tyro

from nerfit import config as configs
from nerfit.cameras.paths import make_path
from nerfit.config import M, Recipe, RunConfig, S
from nerfit.errors import ConfigError, NerfitError, RunError, SceneError
from nerfit.evaluation.evaluate import evaluate as judge
from nerfit.evaluation.poses import judge_cameras
from nerfit.legacy_weights import read_weights
from nerfit.methods.base import Method, render_view
from nerfit.outputs.bench import machine
from nerfit.outputs.histograms import draw_histograms
from nerfit.outputs.inspect import inspect_part, matrix_peak
from nerfit.outputs.pictures import checked_quantities, render_path
from nerfit.outputs.results import Results
from nerfit.plugins import AUTO, find
from nerfit.runs import Plan, default_config, initialise_from, last_folder, new_folder, open_run, refuse_existing, with_budget
from nerfit.scenes import detect_format, photos, scene_format, video
from nerfit.scenes.images import write_png
from nerfit.scenes.scene import Scene, SceneConfig
from nerfit.scenes.work import tick
from nerfit.training.checkpoints import LoopState, restore, save_checkpoint
from nerfit.training.devices import automatic_chunk, peak_memory, pick_device, set_threads
from nerfit.training.optim import make_optimizer
from nerfit.training.trainer import Callback, Trainer, update_metrics

if TYPE_CHECKING:
    from nerfit.viewer.server import Viewer

EVALUATE_WITHIN = 600.0
"""Seconds that judging after a training may take; beyond that the user is told the command instead."""


@dataclass(kw_only=True)
class TrainCommand(RunConfig[M, S], Generic[M, S]):
    """The configuration, and what train does beside it."""

    out: Path | None = None
    """Run folder; none = runs/<scene>-<method>[-n]."""
    recipe: str | None = None
    """Shipped recipe, YAML file, or a key = value config of the original programs."""
    resume: bool = False
    """Go on with the run in --out (or the newest of this scene and method)."""
    init: Path | None = None
    """Start from the weights of another run."""
    evaluate: bool = True
    """Judge the test views at the end, where that takes minutes at most."""
    lpips_weights: Path | None = None
    """Folder with alex.safetensors and vgg.safetensors."""
    viewer: bool = False
    """Watch the training in the browser; afterwards the viewer stays open until Ctrl-C."""
    host: str = "127.0.0.1"
    """Address that the viewer serves on; 0.0.0.0 = reachable from other machines."""
    port: int = 7007
    """The viewer's port; the next free one is taken where it is in use."""
    json: bool = False
    """Print the answer as JSON, for programs."""
    debug: bool = False
    """Show the traceback of an error."""

    def config(self) -> RunConfig[M, S]:
        """The configuration alone."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(RunConfig)})


@dataclass(kw_only=True)
class PosesOptions(video.VideoConfig):
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
    json: bool = False
    """Print the answer as JSON, for programs."""
    debug: bool = False
    """Show the traceback of an error, and what COLMAP says."""


def _parse_train(default: RunConfig[Any, Any], argv: list[str]) -> TrainCommand[Any, Any]:
    kind = TrainCommand[type(default.model), type(default.scene)]
    filled = TrainCommand(**{f.name: getattr(default, f.name) for f in dataclasses.fields(default)})
    text = "Train METHOD on SCENE. Example: nerfit train nerf data/lego --recipe nerf-small --seconds 900"
    return configs.parse(kind, argv, filled, "nerfit train METHOD SCENE", text)


def say(text: str) -> None:
    """A line for the person watching; answers go to stdout."""
    print(text, file=sys.stderr)


def prepare(method: str | None, source: str | None, argv: list[str], folder: bool = True) -> tuple[Plan, TrainCommand[Any, Any], Path]:
    """The plan of a training from its command line, its other options, and its run folder (made unless resumed).

    Raises ConfigError, SceneError or RunError before anything is written.
    """
    recipe_name = configs.typed_value(argv, "--recipe")
    if method == AUTO:
        method, recipe_name = _choose(source, argv, recipe_name)
    if "--resume" in argv and "--help" not in argv:
        return _prepare_resume(method, source, argv)
    recipe_name = recipe_name or (find("nerfit.methods", method).default_recipe if method else None)
    recipe = configs.load_recipe(recipe_name) if recipe_name else Recipe("none", {})
    method, source = method or recipe.method, source or recipe.source
    wants_help = "-h" in argv or "--help" in argv
    if not wants_help and (method is None or source is None):
        raise ConfigError(
            "a METHOD and a SCENE are needed, side by side: nerfit train METHOD SCENE, for instance nerfit train nerf data/lego."
        )
    method = method or "nerf"
    if recipe.method not in (None, method):
        raise ConfigError(f"recipe {recipe.name} is for the method {recipe.method}, not for {method}.")
    form = _format(source, argv, recipe, wants_help)
    _check_scene(method, form)
    default = default_config(method, form) if form else RunConfig(model=find("nerfit.methods", method).Config(), scene=SceneConfig())
    from_recipe = configs.arguments(recipe.values)
    if recipe.values:
        try:
            alone = configs.parse(RunConfig[type(default.model), type(default.scene)], from_recipe, default)
        except ConfigError as error:
            raise ConfigError(f"recipe {recipe.name}: {error}") from None
        configs.check(alone, recipe.own)
        default = alone
    command = _parse_train(default, argv)
    typed = configs.typed_keys(argv)
    run = with_budget(command.config(), typed, find("nerfit.methods", method).default_steps)
    configs.check(run, typed)
    _check_viewer(command, typed, form)
    assert source is not None and form is not None
    if run.scene.format not in ("", form):
        raise ConfigError(f"scene.format is {run.scene.format}, but the scene is read as {form}.")
    plan = Plan(method, _absolute(source), form, run)
    for note in recipe.notes:
        say(f"recipe {recipe.name}: {note}")
    if not folder:
        return plan, command, Path()
    out = command.out or (Path(recipe.out) if recipe.out else None)
    if out is not None:
        refuse_existing(out)
    return plan, command, out if out is not None else Path("runs") / f"{_name(source)}-{method}"


def _choose(source: str | None, argv: list[str], recipe: str | None) -> tuple[str | None, str | None]:
    """The method and recipe that suit a scene: image for a single picture, else instant, unless the recipe names another."""
    if recipe is not None and (method := configs.load_recipe(recipe).method):
        return method, recipe
    wants_help = "-h" in argv or "--help" in argv
    if source is None or wants_help:
        return ("instant" if wants_help else None), recipe
    form = configs.typed_value(argv, "--scene.format") or detect_format(source)
    method = "image" if form == "image" else "instant"
    recipe = recipe or ("image" if form == "image" else find("nerfit.methods", method).default_recipe)
    say(f"auto: method {method} with recipe {recipe}")
    return method, recipe


def _absolute(source: str) -> str:
    """A path from anywhere; what names no file, such as "procedural", stays."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _name(source: str) -> str:
    """What a scene's run folders are called."""
    return Path(source).resolve().stem if Path(source).exists() else re.sub(r"[^\w.]+", "-", source)


def _prepare_resume(method: str | None, source: str | None, argv: list[str]) -> tuple[Plan, TrainCommand[Any, Any], Path]:
    out = configs.typed_value(argv, "--out")
    if out is None and (method is None or source is None):
        raise ConfigError("--resume needs --out RUN, or the METHOD and SCENE whose newest run is meant.")
    folder = Path(out) if out is not None else last_folder(_name(source or ""), method or "")
    for flag in ("--recipe", "--init"):
        if configs.typed_value(argv, flag) is not None:
            raise ConfigError(f"{folder} goes on with its own configuration and weights: leave out {flag}.")
    saved = Plan.load(folder)
    if method is not None and method != saved.method:
        raise ConfigError(f"{folder} is a run of {saved.method}, not of {method}.")
    command = _parse_train(saved.config, argv)
    typed = configs.typed_keys(argv)
    config = with_budget(command.config(), typed, find("nerfit.methods", saved.method).default_steps)
    configs.check(config, typed)
    _check_viewer(command, typed, saved.format)
    began = saved.config.optim.optimizer
    if config.optim.optimizer != began:
        raise ConfigError(f"{folder} goes on with the optimiser it began with, {began}: a new run may start from its weights with --init.")
    return dataclasses.replace(saved, config=config, source=_absolute(source or saved.source)), command, folder


def _check_viewer(command: TrainCommand[Any, Any], typed: set[str], form: str | None) -> None:
    """Refuse a viewer of a single picture, and its address without it."""
    if command.viewer and form == "image":
        raise ConfigError("a single picture can't be walked around in: leave out --viewer.")
    if command.viewer:
        from nerfit.viewer.server import free_port

        free_port(command.host, command.port)  # before anything is written
    for key in sorted({"host", "port"} & typed):
        if not command.viewer:
            raise ConfigError(f"{key} has no effect here: --viewer is off.")


def _check_scene(method: str, form: str | None) -> None:
    """Refuse a method on a scene it can't use."""
    accepted = find("nerfit.methods", method).scene_formats
    if accepted is not None and form not in (None, *accepted):
        raise ConfigError(f"{method} trains on a scene of format {' or '.join(accepted)}, not {form}: give it one picture of the scene.")
    if accepted is None and form == "image":
        raise ConfigError(f"{method} needs pictures with camera poses, not a single picture (nerfit train image fits one).")


def _format(source: str | None, argv: list[str], recipe: Recipe, wants_help: bool) -> str | None:
    """The scene's format: as typed, else as detected; a recipe made for another one is refused."""
    if source is None:
        return recipe.format
    form = configs.typed_value(argv, "--scene.format") or recipe.values.get("scene", {}).get("format")
    if not form:
        try:
            form = detect_format(source)
        except SceneError:
            if wants_help:
                return recipe.format
            raise
        if not wants_help:
            say(f"{source}: {form} scene")
    if recipe.format not in (None, form):
        raise ConfigError(f"recipe {recipe.name} is for {recipe.format} scenes, but {source} is of format {form}.")
    return form


def train(
    plan: Plan, options: TrainCommand[Any, Any], folder: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Train a plan in its run folder, then judge the test views if that is quick; returns what was reached.

    With a viewer ``tell`` gets the same when all is done, and the viewer is served until Ctrl-C.
    """
    set_threads(plan.config.threads)
    scene = plan.load_scene()
    if scene.format != "image":
        say(f"{scene.name}: {scene.describe()}")
    if options.resume:
        _check_same_scene(scene, folder, plan.source)
    else:
        folder = new_folder(folder, numbered=options.out is None)
    with contextlib.ExitStack() as open_ones:
        viewer = _viewer(scene, options, folder, open_ones) if options.viewer else None
        trainer, summary = _trained(plan, options, folder, scene, viewer)
        tell(summary)
        if viewer is not None and trainer.interrupted is None:
            viewer.watch(trainer.method, 4 * trainer.state.chunk)
            say(f"the viewer stays at {viewer.url} until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt), trainer.method.session():
                viewer.serve()
    return summary


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
    callbacks = [Callback(due.test_every, _draw_test), Callback(due.video_every, _draw_path), Callback(due.image_every, _log_histograms)]
    if viewer is not None:
        callbacks.append(Callback(1, _look_up(viewer)))
    made: list[Method] = []

    def make_method() -> Method:
        method = plan.make_method(scene)
        if options.init is not None and not made:
            initialise_from(options.init, method)
        made.append(method)
        return method

    try:
        trainer = Trainer(make_method, scene, plan.config, folder, callbacks, quiet=options.json)
    except NerfitError:
        if not options.resume:
            folder.rmdir()
        raise
    if not options.resume:
        scene.save(folder)
    plan.save(folder)
    if trainer.progress >= 1:
        say(f"{folder} has had its {trainer.state.step} steps already; give --steps or --seconds a larger number to go on.")
    trainer.train()
    placed = trainer.method.place(scene)
    if placed is not scene:
        placed.save(folder, given=scene.cameras)
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


def import_weights(checkpoint: Path, source: str, argv: list[str]) -> tuple[TrainCommand[Any, Any], dict[str, Any]]:
    """A run of `nerf` with the weights of an older program; its optimiser begins anew."""
    weights = read_weights(checkpoint)
    plan, options, folder = prepare("nerf", source, [*weights.flags(), *argv])
    scene = plan.load_scene()
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
    began = Scene.load(folder, given=True)
    same = (began.format, began.ndc, len(began.cameras)) == (scene.format, scene.ndc, len(scene.cameras))
    if not same or not torch.allclose(began.cameras.c2w, scene.cameras.c2w, atol=1e-5):
        raise RunError(f"{source} is not the scene that {folder} was trained on: its cameras differ.")


def _judge_if_quick(trainer: Trainer, scene: Scene, folder: Path, lpips_weights: Path | None) -> dict[str, Any]:
    views = scene.splits["test"]
    probe = scene.cameras[views[0]].rescale(0.1)
    chunk = 4 * trainer.state.chunk
    start = time.perf_counter()
    render_view(trainer.method, scene, probe, 0, chunk)
    pixels = sum(int(scene.cameras.width[v] * scene.cameras.height[v]) for v in views)
    estimate = (time.perf_counter() - start) * pixels / int(probe.width[0] * probe.height[0])
    if estimate > EVALUATE_WITHIN:
        say(f"judging {len(views)} test views would take about {estimate / 60:.0f} minutes: nerfit eval {folder}")
        return {}
    metrics = judge(trainer.method, scene, chunk, "test", lpips_weights, folder / "renders" / "eval_test")
    metrics |= judge_cameras(trainer.method, scene, None)
    update_metrics(folder, "test", metrics)
    return {"test": metrics}


def _draw_test(trainer: Trainer) -> None:
    scene = trainer.method.place(trainer.scene)
    cameras = scene.cameras[scene.splits.get("test") or scene.splits["train"][:1]]
    folder = trainer.folder / "renders" / f"test_{trainer.state.step:08d}"
    render_path(trainer.method, scene, cameras, 4 * trainer.state.chunk, ["rgb"], folder)


def _draw_path(trainer: Trainer) -> None:
    scene = trainer.method.place(trainer.scene)
    cameras, look = _path(scene, scene.default_path, None)
    folder = trainer.folder / "renders" / f"{scene.default_path}_{trainer.state.step:08d}"
    render_path(trainer.method, scene, cameras, 4 * trainer.state.chunk, ["rgb", "disparity"], folder, look)


def _log_histograms(trainer: Trainer) -> None:
    """Where along some rays proposals and field have their weight, for the log."""
    scene = trainer.scene
    picture = draw_histograms(trainer.method, scene, (scene.splits.get("test") or scene.splits["train"])[0])
    if picture is not None and trainer.log is not None:
        trainer.log.images(trainer.state.step, {"rays/histograms": picture})


def _path(scene: Scene, kind: str, frames: int | None) -> Any:
    default = scene.default_path if scene.default_path != "test" else "spiral"
    return make_path(kind, scene.cameras, frames, scene.depth_range, scene.splits.get("test"), default, scene.name)


def evaluate(options: Any) -> dict[str, Any]:
    """Judge a run's split; its part of metrics.json is replaced, the rest stays."""
    _needs_run(options.run)
    run = open_run(options.run, images=True, source=options.scene, threads=options.threads, device=options.device)
    pictures = options.run / "renders" / f"eval_{options.split}"
    reference = None
    if options.reference_poses is not None:
        form = scene_format(detect_format(options.reference_poses))
        reference = form.load(options.reference_poses, form.Config())
    if options.pose_steps < 0:
        raise ConfigError(f"--pose-steps must not be negative, but is {options.pose_steps}.")
    errors = judge_cameras(run.method, run.scene, reference)
    metrics = judge(run.method, run.scene, run.chunk, options.split, options.lpips_weights, pictures, say, pose_steps=options.pose_steps)
    metrics |= errors
    update_metrics(options.run, options.split, metrics)
    picture = draw_histograms(run.method, run.scene, run.scene.splits[options.split][0])
    if picture is not None:
        write_png(pictures / "histograms.png", picture)
    return metrics


def render(options: Any) -> dict[str, Any]:
    """Draw a camera path of a run into its renders folder; returns the folder and the videos."""
    names = checked_quantities(options.what) if options.what else None
    _needs_run(options.run)
    run = open_run(options.run, images=False, threads=options.threads, device=options.device)
    if options.factor <= 0:
        raise ConfigError("--factor must be above 0.")
    kind = options.path or run.scene.default_path
    cameras, look = _path(run.scene, kind, options.frames)
    cameras = cameras.rescale(1 / options.factor)
    look = None if look is None else look.rescale(1 / options.factor)
    folder = new_folder(options.out or options.run / "renders" / Path(kind).stem, numbered=options.out is None)
    names = names or (["rgb", "disparity"] if run.method.has_density else ["rgb"])
    videos = render_path(
        run.method,
        run.scene,
        cameras,
        run.chunk,
        names,
        folder,
        look,
        options.fps,
        lambda done, of: tick(done, of, "frames"),
        options.side_by_side,
        options.video,
    )
    return {"folder": str(folder), "videos": [str(v) for v in videos], "frames": len(cameras)}


def _needs_run(folder: Path) -> None:
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} is not a run folder (it has no config.yaml).")


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


def inspect(part: str, plan: Plan, out: Path | None) -> dict[str, Any]:
    """Shapes, ranges, timing and a picture of one part."""
    scene = plan.load_scene()
    picture = out or Path(f"inspect-{part}-{scene.name}.png")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, Path(folder), quiet=True)
        return inspect_part(part, trainer, picture)


def time_to_quality(options: Any, flags: list[str]) -> dict[str, Any]:
    """Test PSNR after trainings of several lengths, one process each; trainings that --out holds already are not repeated."""
    _refuse(flags, {"steps", "seconds", "seed", "resume", "evaluate", "lpips_weights"}, "sets it itself, see --at and --seeds")
    budgets = sorted(set(options.at))
    if not budgets or not all(math.isfinite(s) and s > 0 for s in budgets):
        raise ConfigError("--at needs one or more numbers of seconds above 0.")
    if options.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, not {options.seeds}.")
    plan, _, _ = prepare(options.method, options.scene, [*flags, "--seconds", f"{budgets[0]:g}"], folder=False)
    set_threads(plan.config.threads)
    folder = options.out or Path("runs") / f"bench-{_name(options.scene)}-{plan.method}"
    results = Results(plan.method, plan.source, flags, machine(pick_device(plan.config.device)))
    if (folder / "results.json").exists():
        results.resume(folder)
    else:
        refuse_existing(folder)
    results.save(folder)
    for budget, seed in itertools.product(budgets, range(options.seeds)):
        if results.holds(budget, seed):
            continue
        row = _timed_training(plan, flags, budget, seed, folder / f"{budget:g}s-seed{seed}")
        results.add(row, folder)
        say(f"{budget:g} s, seed {seed}: {row['psnr']:.2f} dB after {row['steps']} steps, {row['peak_memory_mb']:.0f} MB")
    return dataclasses.asdict(results) | {"folder": str(folder)}


def _refuse(flags: list[str], keys: set[str], why: str) -> None:
    for key in sorted(keys & configs.typed_keys(flags)):
        raise ConfigError(f"leave out --{key.replace('_', '-')}: this benchmark {why}.")


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


def memory(options: Any, flags: list[str]) -> dict[str, Any]:
    """Peak memory of this process after each stage of a training; the command is a process of its own, so it is that of the stages."""
    _refuse(flags, {"seconds", "resume"}, "counts --steps of a new training")
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
