"""The command line: each command parses, calls one function and prints."""

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal

import tyro

from nerfit import __version__
from nerfit.errors import ConfigError, NerfitError, nearest, one_line


@dataclass
class Common:
    """Options of every command."""

    json: bool = False
    """Print the answer as JSON, for programs."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class EvalOptions(Common):
    """nerfit eval RUN: metrics of held-out views into metrics.json, pictures and strips into renders/."""

    run: tyro.conf.Positional[Path] = field(default_factory=Path)
    """Run folder."""
    split: str = "test"
    """test, val or train."""
    scene: str | None = None
    """Read the scene from here instead of where it was trained."""
    reference_poses: str | None = None
    """Scene with the true cameras of the training views, by name; none = of learned cameras the given ones."""
    pose_steps: int = 0
    """First move each view's camera by so many photometric steps (NeRF--, BARF: 100 and more)."""
    lpips_weights: Path | None = None
    """Folder with alex.safetensors and vgg.safetensors."""
    threads: int | None = None
    """CPU threads."""
    device: str = "auto"
    """cpu, cuda, …"""


@dataclass
class RenderOptions(Common):
    """nerfit render RUN: pictures and videos along a camera path."""

    run: tyro.conf.Positional[Path] = field(default_factory=Path)
    """Run folder."""
    path: str | None = None
    """circle, sphere, spiral, spiral-flat, interpolate, ellipse, still, test, or a JSON file; none = the scene's own."""
    what: str | None = None
    """Any of rgb,depth,disparity,opacity,normal, separated by commas; none = rgb and, of a field, disparity."""
    factor: float = 1.0
    """Shrink the pictures by this factor (the old render_factor)."""
    frames: int | None = None
    """Frames; none = the path's own number."""
    fps: float = 30.0
    """Frames per second of the videos."""
    side_by_side: bool = False
    """One video with all quantities side by side instead of one of each."""
    video: Literal["mp4", "gif", "webp"] = "mp4"
    """Format of the videos."""
    out: Path | None = None
    """Folder; none = renders/<path> in the run."""
    threads: int | None = None
    """CPU threads."""
    device: str = "auto"
    """cpu, cuda, …"""


@dataclass
class ViewOptions(Common):
    """nerfit view RUN|SCENE: a run's field in the browser, or a scene's cameras and pictures before any training.

    Examples:
      nerfit view runs/lego-instant
      nerfit view data/lego --port 8080
      nerfit view runs/lego-instant --host 0.0.0.0
    """

    source: tyro.conf.Positional[Path] = field(default_factory=Path)
    """Run folder, or what nerfit train takes as SCENE."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 = reachable from other machines."""
    port: int = 7007
    """Port; the next free one is taken where it is in use."""
    scene: str | None = None
    """Read a run's pictures from here instead of where it was trained."""
    threads: int | None = None
    """CPU threads."""
    device: str = "auto"
    """cpu, cuda, …"""


@dataclass
class DemoOptions(Common):
    """nerfit demo: a made-up scene, trained and filmed in a few minutes."""

    out: Path | None = None
    """Run folder; none = runs/demo[-n]."""
    seconds: float | None = None
    """Training time; none = the recipe's."""


@dataclass
class SpeedOptions(Common):
    """nerfit bench speed: this machine's matrix product, the fused field, and each kernel beside its definition in PyTorch.

    Examples:
      nerfit bench speed
      nerfit bench speed --threads 2 --precision float32 --json
    """

    levels: int = 8
    """Levels of the hash grid."""
    log2_entries: int = 18
    """Entries per level at most, as a power of two."""
    width: int = 64
    """Channels of the networks."""
    samples: int = 65_536
    """Positions along made-up rays."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """What matrix products take; auto = bf16 where the hardware is fast at it."""
    threads: int | None = None
    """CPU threads."""
    device: str = "auto"
    """cpu, cuda, …"""


@dataclass
class TimeToQualityOptions(Common):
    """nerfit bench time-to-quality SCENE [METHOD]: test PSNR after trainings of several lengths.

    Each training is a process of its own with its schedule set to its seconds; all flags of nerfit train may follow. Writes
    results.json, results.csv and results.svg; run again with the same --out, it goes on where it was stopped.

    Examples:
      nerfit bench time-to-quality procedural --at 5 10 20
      nerfit bench time-to-quality data/lego instant --at 60 300 --seeds 3 --out runs/lego-times --threads 2
    """

    scene: tyro.conf.Positional[str] = ""
    """What nerfit train takes as SCENE."""
    method: tyro.conf.Positional[str] = "instant"
    """What nerfit train takes as METHOD."""
    at: tuple[float, ...] = (15, 30, 60, 120, 300, 600, 1200)
    """Seconds of training."""
    seeds: int = 1
    """Trainings for each of them, with seeds 0, 1, …"""
    out: Path | None = None
    """Folder of the results and the runs; none = runs/bench-<scene>-<method>."""


@dataclass
class MemoryOptions(Common):
    """nerfit bench memory SCENE [METHOD]: the most memory held so far after loading, building, training and rendering a view.

    All flags of nerfit train may follow.

    Examples:
      nerfit bench memory procedural
      nerfit bench memory data/lego nerf --recipe nerf-small --steps 50
    """

    scene: tyro.conf.Positional[str] = ""
    """What nerfit train takes as SCENE."""
    method: tyro.conf.Positional[str] = "instant"
    """What nerfit train takes as METHOD."""
    steps: int = 200
    """Training steps."""


@dataclass
class MultiscaleOptions(Common):
    """nerfit convert multiscale SCENE OUT: a Blender scene at several sizes, each half the one before, as mip-NeRF trains on.

    Examples:
      nerfit convert multiscale data/lego data/lego-multiscale
    """

    scene: tyro.conf.Positional[str] = ""
    """Folder with transforms_train.json."""
    out: tyro.conf.Positional[Path] = field(default_factory=Path)
    """New folder."""
    scales: int = 4
    """Sizes, the full one among them."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 only on success, errors are one sentence on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    logging.getLogger("nerfit").setLevel(logging.DEBUG if debug else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {one_line(str(message))}", file=sys.stderr)
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_HELP)
            return 0
        if argv[0] in ("-V", "--version"):
            print(f"nerfit {__version__}")
            return 0
        if argv[0] not in COMMANDS:
            raise ConfigError(f"there is no command '{argv[0]}'{nearest(argv[0], COMMANDS)} (`nerfit --help` lists them).")
        return COMMANDS[argv[0]](argv[1:])
    except NerfitError as error:
        if debug:
            raise
        print(f"nerfit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("nerfit: interrupted.", file=sys.stderr)
        return 130
    except (OSError, MemoryError) as error:
        if debug:
            raise
        what = getattr(error, "strerror", None) or type(error).__name__
        print(f"nerfit: {what}: {getattr(error, 'filename', None) or error}.", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return int(stop.code or 0)


def _parse(options: Any, argv: list[str], prog: str) -> Any:
    from nerfit.config import parse

    return parse(options, argv, prog=f"nerfit {prog}", description=cleandoc(options.__doc__))


def train(argv: list[str]) -> int:
    """nerfit train METHOD SCENE: see `jobs.prepare` and `jobs.train`."""
    from nerfit import jobs

    method, source, rest = _positionals(argv)
    plan, options, folder = jobs.prepare(method, source, rest)
    summary = jobs.train(plan, options, folder, lambda summary: _answer(options, summary, _train_text(summary)))
    return int(summary["exit_code"])


def _train_text(summary: dict[str, Any]) -> str:
    lines = [f"{summary['steps']} steps in {summary['seconds']:.0f} s of training -> {summary['run']}"]
    if summary["exit_code"]:
        lines.append(f"stopped; go on with: nerfit train {summary['method']} {summary['source']} --out {summary['run']} --resume")
    if "test" in summary:
        lines.append(_metrics_text(summary["test"]))
    return "\n".join(lines)


def _metrics_text(metrics: dict[str, Any]) -> str:
    names = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}", "lpips_vgg": "LPIPS(vgg) {:.4f}", "lpips_alex": "LPIPS(alex) {:.4f}"}

    def means(of: dict[str, Any]) -> str:
        return ", ".join(text.format(of[name]) for name, text in names.items() if name in of)

    rest = "".join(f"\n  {size}: {means(of)}" for size, of in metrics["by_size"].items())
    if "cameras" in metrics:
        off = "{rotation_degrees:.3f} degrees, {translation_percent:.2f} % of their extent, {focal_percent:.2f} % in focal length"
        rest += "\ncameras are off by " + off.format(**metrics["cameras"])
    rest += "".join(f"\nnot judged: {what}" for what in metrics["missing"])
    count, seconds = len(metrics["views"]), metrics["seconds_per_view"]
    return f"{metrics['split']}: {means(metrics)}, {seconds:.2f} s per view ({count} views; {metrics['protocol']}){rest}"


def _positionals(argv: list[str]) -> tuple[str | None, str | None, list[str]]:
    """METHOD and SCENE, which may stand before or after the flags; a flag's value may be the name of a method too."""
    methods = _method_names()
    named = [i for i, word in enumerate(argv) if word in methods]
    before_scene = [i for i in named if i + 1 < len(argv) and not argv[i + 1].startswith("-")]
    alone = [i for i in named if i and not argv[i - 1].startswith("-")]
    start = (before_scene or alone or [0])[-1]
    taken: list[str] = []
    while start < len(argv) and len(taken) < 2 and not argv[start].startswith("-"):
        taken.append(argv.pop(start))
    return (*taken, None, None)[0], (*taken, None, None)[1], argv


def _method_names() -> list[str]:
    """What can stand for METHOD."""
    from nerfit.plugins import AUTO, available

    return [AUTO, *available("nerfit.methods")]


def evaluate(argv: list[str]) -> int:
    """nerfit eval RUN."""
    from nerfit import jobs

    options = _parse(EvalOptions, argv, "eval")
    metrics = jobs.evaluate(options)
    _answer(options, metrics, _metrics_text(metrics))
    return 0


def render(argv: list[str]) -> int:
    """nerfit render RUN."""
    from nerfit import jobs

    options = _parse(RenderOptions, argv, "render")
    answer = jobs.render(options)
    _answer(options, answer, "\n".join(answer["videos"] or [answer["folder"]]))
    return 0


def export(argv: list[str]) -> int:
    """nerfit export mesh|points|web|cameras RUN."""
    from nerfit.exporting import EXPORTS
    from nerfit.scenes.work import tick

    if argv[:1] in (["-h"], ["--help"]):
        print(_EXPORT_HELP)
        return 0
    word = argv[0] if argv else ""
    if word not in EXPORTS:
        raise ConfigError(f"export what? One of {', '.join(EXPORTS)}{nearest(word, EXPORTS)}.")
    options = _parse(EXPORTS[word].options, argv[1:], f"export {word}")
    answer = EXPORTS[word].write(options, lambda done, of: tick(done, of, "views"))
    details = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in answer.items() if name != "written")
    _answer(options, answer, "\n".join(filter(None, [answer["written"], details])))
    return 0


def poses(argv: list[str]) -> int:
    """nerfit poses PHOTOS_OR_VIDEO."""
    from nerfit import jobs

    options = _parse(jobs.PosesOptions, argv, "poses")
    answer, text = jobs.poses(options)
    _answer(options, answer, text)
    return 0


def import_(argv: list[str]) -> int:
    """nerfit import CHECKPOINT --scene SCENE."""
    from nerfit import jobs
    from nerfit.config import typed_value

    if not argv or {"-h", "--help"} & set(argv):
        print(_IMPORT_HELP)
        return 0 if argv else 1
    source = typed_value(argv, "--scene")
    if source is None or argv[0].startswith("-"):
        raise ConfigError("a CHECKPOINT and its scene are needed: nerfit import CHECKPOINT --scene SCENE.")
    place = next(i for i, word in enumerate(argv) if word.partition("=")[0] == "--scene")
    rest = argv[1:place] + argv[place + (1 if "=" in argv[place] else 2) :]
    options, answer = jobs.import_weights(Path(argv[0]), source, rest)
    _answer(options, answer, f"{answer['networks']} networks after {answer['steps']} steps -> {answer['run']}")
    return 0


def view(argv: list[str]) -> int:
    """nerfit view RUN|SCENE."""
    from nerfit.viewing import view

    options = _parse(ViewOptions, argv, "view")

    def tell(viewer: Any) -> None:
        moved = "" if viewer.port == options.port else f" (port {options.port} is in use)"
        _answer(options, {"url": viewer.url, "port": viewer.port}, f"{options.source} -> {viewer.url}{moved}; Ctrl-C ends the viewer")

    view(options, tell)
    return 0


def demo(argv: list[str]) -> int:
    """nerfit demo."""
    from nerfit import jobs
    from nerfit.runs import numbered_folders

    options = _parse(DemoOptions, argv, "demo")
    start = time.perf_counter()
    extra = [] if options.seconds is None else ["--seconds", str(options.seconds)]
    folder = options.out or next(p for p in numbered_folders(Path("runs/demo")) if not p.exists())
    plan, train_options, folder = jobs.prepare("instant", "procedural", ["--recipe", "demo", "--out", str(folder), *extra])
    summary = jobs.train(plan, train_options, folder)
    if summary["exit_code"]:
        return int(summary["exit_code"])
    drawn = jobs.render(RenderOptions(run=folder, frames=48))
    answer = {"run": str(folder), "psnr": summary["test"]["psnr"], "video": drawn["videos"][0], "seconds": time.perf_counter() - start}
    times = f"{summary['seconds']:.0f} s of training, {answer['seconds']:.0f} s in all"
    text = f"test PSNR {answer['psnr']:.2f} dB after {times}\nvideo: {answer['video']}"
    _answer(options, answer, text)
    return 0


def inspect(argv: list[str]) -> int:
    """nerfit inspect scene|rays|field|METHOD SCENE."""
    from nerfit import jobs
    from nerfit.plugins import available, find

    kinds = ("scene", "rays", "field", *available("nerfit.methods"))
    if {"-h", "--help"} & set(argv[:2]):
        print("nerfit inspect scene|rays|field|METHOD SCENE [--out PICTURE.png] [--recipe R] [--any.config.key V]\n")
        print("One part alone: shapes, ranges, timing and a picture. Example: nerfit inspect rays procedural")
        return 0
    word = argv[0] if argv else ""
    if word not in kinds:
        raise ConfigError(f"inspect what? One of {', '.join(kinds)}{nearest(word, kinds)}.")
    source = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else None
    posed = source is None or not find("nerfit.scenes", "image").detect(source)
    method = word if word in kinds[3:] else "nerf" if posed else "image"
    plan, options, _ = jobs.prepare(method, source, argv[2:], folder=False)
    report = jobs.inspect(argv[0], plan, options.out)
    _answer(options, report, "\n".join(f"{key:24} {value}" for key, value in report.items()))
    return 0


def bench(argv: list[str]) -> int:
    """nerfit bench speed|time-to-quality|memory."""
    kinds = {"speed": _speed, "time-to-quality": _time_to_quality, "memory": _memory}
    if argv[:1] in (["-h"], ["--help"]):
        print(_BENCH_HELP)
        return 0
    word = argv[0] if argv else ""
    if word not in kinds:
        raise ConfigError(f"bench what? One of {', '.join(kinds)}{nearest(word, kinds)}.")
    return kinds[word](argv[1:])


def _speed(argv: list[str]) -> int:
    from rich.console import Console

    from nerfit.kernels.field import FieldShape
    from nerfit.kernels.hash_grid import GridLayout
    from nerfit.outputs.bench import speed
    from nerfit.training.devices import pick_device, set_threads

    options = _parse(SpeedOptions, argv, "bench speed")
    set_threads(options.threads)
    shape = FieldShape(GridLayout(options.levels, options.log2_entries, 16, 1024), options.width)
    with Console(stderr=True).status("measuring"):
        answer = speed(shape, options.samples, options.precision, pick_device(options.device))
    _answer(options, answer, "" if options.json else _speed_text(answer))
    return 0


def _speed_text(answer: dict[str, Any]) -> str:
    from rich.console import Console
    from rich.table import Table

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


def _time_to_quality(argv: list[str]) -> int:
    from nerfit import jobs

    options, flags = _bench_scene(TimeToQualityOptions, argv, "time-to-quality")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the training in hand ends too
    try:
        answer = jobs.time_to_quality(options, flags)
    finally:
        signal.signal(signal.SIGTERM, before)
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
    _answer(options, answer, "\n".join([*lines, f"-> {answer['folder']}/results.svg, results.csv, results.json"]))
    return 0


def _memory(argv: list[str]) -> int:
    from nerfit import jobs

    options, flags = _bench_scene(MemoryOptions, argv, "memory")
    answer = jobs.memory(options, flags)
    lines = [f"{stage:12} {mb:8,.0f} MB" for stage, mb in answer["peak_memory_mb"].items()]
    _answer(options, answer, "\n".join(["most memory held until after", *lines]))
    return 0


def _bench_scene(kind: Any, argv: list[str], name: str) -> tuple[Any, list[str]]:
    """A benchmark's own options, and the flags that are for training; SCENE and METHOD come first, in either order."""
    mine = {"--" + f.name for f in fields(kind)} | {"-h", "--help"}
    own: list[str] = []
    flags: list[str] = []
    into = own
    for word in argv:
        if word.startswith("--") or word == "-h":
            into = own if word.partition("=")[0] in mine else flags
        into.append(word)
    options = _parse(kind, own, f"bench {name}")
    methods = _method_names()
    if options.scene in methods and options.method not in methods:
        options.scene, options.method = options.method, options.scene
    if not options.scene or own[0].startswith("-"):
        raise ConfigError(f"a SCENE is needed first: nerfit bench {name} SCENE [METHOD], for instance nerfit bench {name} procedural.")
    return options, flags


def convert(argv: list[str]) -> int:
    """nerfit convert multiscale SCENE OUT."""
    from nerfit.scenes.multiscale import make_multiscale

    kinds = ("multiscale",)
    if argv[:1] in (["-h"], ["--help"]):
        print("nerfit convert multiscale SCENE OUT [--scales 4]")
        print("  a Blender scene at several sizes, each half the one before, as mip-NeRF trains on")
        return 0
    word = argv[0] if argv else ""
    if word not in kinds:
        raise ConfigError(f"convert into what? One of {', '.join(kinds)}{nearest(word, kinds)}.")
    options = _parse(MultiscaleOptions, argv[1:], "convert multiscale")
    if not options.scene or options.out == Path():
        raise ConfigError("a SCENE and a new folder are needed: nerfit convert multiscale SCENE OUT.")
    pictures = make_multiscale(options.scene, options.out, options.scales)
    _answer(options, {"folder": str(options.out), "pictures": pictures}, f"{pictures} pictures -> {options.out}")
    return 0


def methods(argv: list[str]) -> int:
    """nerfit methods: what can be trained."""
    options = _parse(Common, argv, "methods")
    known = {name: _about(name) for name in _method_names()}
    _answer(options, known, "\n".join(f"{name:14} {text}" for name, text in known.items()))
    return 0


def _about(method: str) -> str:
    """The first line of a method's docstring, or why there is none."""
    from nerfit.plugins import AUTO, find

    if method == AUTO:
        return "What suits the scene: image for a single picture, else instant."
    try:
        return (find("nerfit.methods", method).__doc__ or "").strip().partition("\n")[0]
    except ConfigError as error:
        return str(error)


def recipes(argv: list[str]) -> int:
    """nerfit recipes: what --recipe knows by name."""
    from nerfit.config import shipped_recipes

    options = _parse(Common, argv, "recipes")
    known = shipped_recipes()
    _answer(options, known, "\n".join(f"{name:16} {text}" for name, text in known.items()))
    return 0


def doctor(argv: list[str]) -> int:
    """nerfit doctor: versions, devices, kernels in use, missing extras."""
    from nerfit.doctor import report

    options = _parse(Common, argv, "doctor")
    answer = report()
    _answer(options, answer, "\n".join(f"{key:22} {value}" for key, value in answer.items()))
    return 0


def _answer(options: Any, answer: Any, text: str) -> None:
    print(json.dumps(answer, indent=1) if options.json else text, flush=True)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "poses": poses,
    "train": train,
    "eval": evaluate,
    "render": render,
    "view": view,
    "export": export,
    "import": import_,
    "inspect": inspect,
    "bench": bench,
    "convert": convert,
    "methods": methods,
    "recipes": recipes,
    "doctor": doctor,
}

_HELP = """nerfit: neural radiance fields that anyone can train

  nerfit demo                                  made-up scene -> trained -> video and numbers
  nerfit poses PHOTOS_OR_VIDEO [--out FOLDER]  camera poses of photographs or a video (nerfit train does this by itself too)
  nerfit train METHOD SCENE [--recipe R]       train; METHOD: auto, instant, ...; SCENE: photographs, a video, a folder in one of
                                               many formats, an image file, or 'procedural'
               [--steps N] [--seconds S] [--out RUN] [--resume] [--seed K] [--any.config.key V]
  nerfit eval RUN [--split test]               PSNR, SSIM, LPIPS per view and on average
  nerfit render RUN [--path spiral]            pictures and videos along a camera path
  nerfit view RUN|SCENE                        walk through it in the browser (while training: nerfit train --viewer)
  nerfit export mesh|points|web|cameras RUN    take it away: triangles, points, a page, poses
  nerfit import CHECKPOINT --scene SCENE       weights of nerf-pytorch or bmild/nerf become a run
  nerfit inspect scene|rays|field|METHOD SCENE each part alone, with a picture
  nerfit bench speed|time-to-quality|memory    how fast, how good after how long, and in how much memory
  nerfit convert multiscale SCENE OUT          a Blender scene at several sizes, as mip-NeRF trains on
  nerfit methods | recipes | doctor            what there is, and what this machine can do

Every command: --help, --json, --debug. Examples:
  nerfit train auto photos/garden
  nerfit train nerf data/lego --recipe nerf-small --seconds 900
  nerfit train image photo.jpg --recipe image
"""

_EXPORT_HELP = """nerfit export: a trained run for other programs

  nerfit export mesh RUN                       triangles with colours: .ply, .obj, .glb
  nerfit export points RUN                     coloured points with normals: .ply
  nerfit export web RUN                        a page that shows the field in a browser: .html
  nerfit export cameras RUN [--format colmap]  poses and lenses: transforms.json, COLMAP, poses_bounds.npy

Each: --help, --json, --out. Examples:
  nerfit export mesh runs/lego-instant --resolution 384 --largest --out lego.obj
  nerfit export points runs/lego-instant --count 200000
"""

_IMPORT_HELP = """nerfit import CHECKPOINT --scene SCENE [--recipe R] [--out RUN] [--any.config.key V]

The weights of an older program become a run of the method nerf, which renders, evaluates and goes on:
a .tar of nerf-pytorch, or model_<step>.npy of bmild/nerf (model_fine_<step>.npy is read from beside it).
The networks' sizes are told by the weights; the recipe says how they were trained and how rays are sampled.

Example:
  nerfit import logs/lego_test/200000.tar --scene data/lego --recipe lego
"""

_BENCH_HELP = """nerfit bench: measurements on this machine

  nerfit bench speed                           matrix peak, fused field, each kernel beside its definition in PyTorch
  nerfit bench time-to-quality SCENE [METHOD]  test PSNR after trainings of several lengths: a table and a chart
  nerfit bench memory SCENE [METHOD]           most memory held after loading, building, training, rendering

Each: --help, --json. Examples:
  nerfit bench speed --threads 2
  nerfit bench time-to-quality procedural --at 5 10 20
  nerfit bench memory data/lego instant --steps 100
"""
