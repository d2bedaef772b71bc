"""The command line: each command parses, calls one function and prints."""

import contextlib
import io
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection
from inspect import cleandoc
from pathlib import Path
from typing import Any

from nerfit import __version__
from nerfit.commands.options import (
    BENCHMARKS,
    BlocksOptions,
    Common,
    DemoOptions,
    EvalOptions,
    MultiscaleOptions,
    RenderOptions,
    SweepOptions,
    TrainingBenchOptions,
    ViewOptions,
)
from nerfit.errors import ConfigError, NerfitError, nearest, one_line
from nerfit.plugins import AUTO, about, available, find, method_names

_HELP = """nerfit: neural radiance fields that anyone can train

  nerfit demo                                  made-up scene -> trained -> video and numbers
  nerfit poses PHOTOS_OR_VIDEO [--out FOLDER]  camera poses of photographs or a video (nerfit train does this by itself too)
  nerfit train METHOD SCENE [--recipe R]       train; METHOD: auto, instant, ...; SCENE: photographs, a video, a folder in one of
                                               many formats, an image file, or 'procedural'
               [--steps N] [--seconds S] [--out RUN] [--resume] [--seed K] [--devices N] [--any.config.key V]
  nerfit eval RUN [--split test]               PSNR, SSIM, LPIPS per view and on average
  nerfit render RUN [--path spiral]            pictures and videos along a camera path
  nerfit view RUN|SCENE                        walk through it in the browser (while training: nerfit train --viewer)
  nerfit export mesh|points|web|cameras RUN    take it away: triangles, points, a page, poses
  nerfit import CHECKPOINT --scene SCENE       weights of nerf-pytorch or bmild/nerf become a run
  nerfit inspect scene|rays|field|METHOD SCENE each part alone, with a picture
  nerfit sweep SCENES --methods METHODS        many runs on Ray -> one table; run again it does what is left
  nerfit blocks SCENE [METHOD] --blocks 2x1    a scene too large for one field, trained in blocks, seen as one
  nerfit bench speed|time-to-quality|memory    how fast, how good after how long, and in how much memory
  nerfit convert multiscale SCENE OUT          a Blender scene at several sizes, as mip-NeRF trains on
  nerfit methods | recipes | doctor            what there is, and what this machine can do

Every command: --help, --json, --debug. Examples:
  nerfit train auto photos/garden
  nerfit train nerf data/lego --recipe nerf-small --seconds 900
  nerfit train image photo.jpg --recipe image
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 only on success, errors are one sentence on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    logging.getLogger("nerfit").setLevel(logging.DEBUG if debug else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {one_line(str(message))}", file=sys.stderr)
    if not debug:  # of TensorBoard's writer, say, whose failure the training tells too
        threading.excepthook = lambda failed: print(f"warning: {one_line(str(failed.exc_value))}", file=sys.stderr)
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


def _parse_with_flags(options: Any, argv: list[str], prog: str) -> tuple[Any, list[str]]:
    from nerfit.config import parse_with_flags

    return parse_with_flags(options, argv, f"nerfit {prog}", cleandoc(options.__doc__))


def _wants_help(argv: list[str], text: str, among: int = 1) -> bool:
    """Print a command's help where one of its first words asks for it."""
    wanted = bool({"-h", "--help"} & set(argv[:among]))
    if wanted:
        print(text)
    return wanted


def _kind(argv: list[str], command: str, kinds: Collection[str]) -> str:
    """The first word, which must be one of the command's kinds."""
    word = argv[0] if argv else ""
    if word not in kinds:
        raise ConfigError(f"{command} what? One of {', '.join(kinds)}{nearest(word, kinds)}.")
    return word


def train(argv: list[str]) -> int:
    """nerfit train METHOD SCENE: see `preparing.prepare` and `seeds.train_seeds`."""
    if (count := _processes(argv)) > 1:
        return _launch("train", _with_out(argv), count)
    from nerfit.commands import seeds
    from nerfit.commands import train as jobs
    from nerfit.commands.preparing import prepare
    from nerfit.training import distributed

    method, source, rest = _positionals(argv)
    scene = None
    with distributed.process_group():
        if method == AUTO:
            method, scene = jobs.choose_method(source, rest)
        plan, options, folder = distributed.broadcast_result(lambda: prepare(method, source, rest))
        tell = lambda summary: _answer(options, summary, seeds.train_text(summary))  # noqa: E731
        return int(seeds.train_seeds(plan, options, folder, tell, scene)["exit_code"])


def _processes(argv: list[str]) -> int:
    """How many processes ``--devices`` asks for that are not running yet."""
    from nerfit.config import typed_value

    count = typed_value(argv, "--devices")
    if count is None or not count.isdecimal() or int(count) < 2 or {"-h", "--help"} & set(argv):
        return 1
    from nerfit.training.launching import under_torchrun

    return 1 if under_torchrun() else int(count)


def _launch(command: str, argv: list[str], count: int) -> int:
    from nerfit.config import typed_value
    from nerfit.training.launching import launch

    return launch(main, [command, *argv], count, typed_value(argv, "--device"))


def _with_out(argv: list[str]) -> list[str]:
    """A training's command line, found to be in order, with the run folder that processes which are started again will look for."""
    from nerfit.commands.preparing import prepare
    from nerfit.runs import numbered_folders

    method, source, rest = _positionals(list(argv))
    with contextlib.redirect_stderr(io.StringIO()):
        _, options, folder = prepare(method, source, rest)
    if options.resume or options.out is not None:
        return argv
    return [*argv, "--out", str(next(path for path in numbered_folders(folder) if not path.exists()))]


def _positionals(argv: list[str]) -> tuple[str | None, str | None, list[str]]:
    """METHOD and SCENE, which may stand before or after the flags; a flag's value may be the name of a method too."""
    methods = method_names()
    named = [i for i, word in enumerate(argv) if word in methods]
    before_scene = [i for i in named if i + 1 < len(argv) and not argv[i + 1].startswith("-")]
    alone = [i for i in named if i and not argv[i - 1].startswith("-")]
    start = (before_scene or alone or [0])[-1]
    taken: list[str] = []
    while start < len(argv) and len(taken) < 2 and not argv[start].startswith("-"):
        taken.append(argv.pop(start))
    return (*taken, None, None)[0], (*taken, None, None)[1], argv


def evaluate(argv: list[str]) -> int:
    """nerfit eval RUN."""
    options = _parse(EvalOptions, argv, "eval")
    if (count := _processes(argv)) > 1:
        return _launch("eval", argv, count)
    from nerfit.commands import train as jobs
    from nerfit.training import distributed

    with distributed.process_group():
        metrics = jobs.evaluate(options)
        _answer(options, metrics, jobs.metrics_text(metrics))
    return 0


def render(argv: list[str]) -> int:
    """nerfit render RUN."""
    options = _parse(RenderOptions, argv, "render")
    if (count := _processes(argv)) > 1:
        return _launch("render", argv, count)
    from nerfit.commands import render as filming
    from nerfit.training import distributed

    with distributed.process_group():
        answer = filming.render(options)
        _answer(options, answer, "\n".join(answer["videos"] or [answer["folder"]]))
    return int(answer["exit_code"])


_EXPORT_HELP = """nerfit export: a trained run for other programs

  nerfit export mesh RUN                       triangles with colours: .ply, .obj, .glb
  nerfit export points RUN                     coloured points with normals: .ply
  nerfit export web RUN                        a page that shows the field in a browser: .html
  nerfit export cameras RUN [--format colmap]  poses and lenses: transforms.json, COLMAP, poses_bounds.npy

Each: --help, --json, --out. Examples:
  nerfit export mesh runs/lego-instant --resolution 384 --largest --out lego.obj
  nerfit export points runs/lego-instant --count 200000
"""


def export(argv: list[str]) -> int:
    """nerfit export mesh|points|web|cameras RUN."""
    if _wants_help(argv, _EXPORT_HELP):
        return 0
    from nerfit.commands.export import EXPORTS
    from nerfit.progress import tick

    word = _kind(argv, "export", EXPORTS)
    options = _parse(EXPORTS[word].options, argv[1:], f"export {word}")
    answer = EXPORTS[word].write(options, lambda done, of: tick(done, of, "views"))
    details = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in answer.items() if name != "written")
    _answer(options, answer, "\n".join(filter(None, [answer["written"], details])))
    return 0


def poses(argv: list[str]) -> int:
    """nerfit poses PHOTOS_OR_VIDEO."""
    from nerfit.commands import train as jobs

    options = _parse(jobs.PosesOptions, argv, "poses")
    answer, text = jobs.poses(options)
    _answer(options, answer, text)
    return 0


_IMPORT_HELP = """nerfit import CHECKPOINT --scene SCENE [--recipe R] [--out RUN] [--any.config.key V]

The weights of an older program become a run of the method nerf, which renders, evaluates and goes on:
a .tar of nerf-pytorch, or model_<step>.npy of bmild/nerf (model_fine_<step>.npy is read from beside it).
The networks' sizes are told by the weights; the recipe says how they were trained and how rays are sampled.

Example:
  nerfit import logs/lego_test/200000.tar --scene data/lego --recipe lego
"""


def import_(argv: list[str]) -> int:
    """nerfit import CHECKPOINT --scene SCENE."""
    if _wants_help(argv or ["--help"], _IMPORT_HELP, len(argv) or 1):
        return 0 if argv else 1
    from nerfit.commands import train as jobs
    from nerfit.config import typed_value

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
    options = _parse(ViewOptions, argv, "view")
    from nerfit.commands.view import view

    def tell(viewer: Any) -> None:
        moved = "" if viewer.port == options.port else f" (port {options.port} is in use)"
        _answer(options, {"url": viewer.url, "port": viewer.port}, f"{options.source} -> {viewer.url}{moved}; Ctrl-C ends the viewer")

    view(options, tell)
    return 0


def demo(argv: list[str]) -> int:
    """nerfit demo."""
    options = _parse(DemoOptions, argv, "demo")
    from nerfit.commands import train as jobs

    code, answer, text = jobs.demo(options)
    if not code:
        _answer(options, answer, text)
    return code


_INSPECT_HELP = """nerfit inspect scene|rays|field|METHOD SCENE [--out PICTURE.png] [--recipe R] [--any.config.key V]

One part alone: shapes, ranges, timing and a picture. Example: nerfit inspect rays procedural"""


def inspect(argv: list[str]) -> int:
    """nerfit inspect scene|rays|field|METHOD SCENE."""
    if _wants_help(argv, _INSPECT_HELP, among=2):
        return 0
    kinds = ("scene", "rays", "field", *available("nerfit.methods"))
    word = _kind(argv, "inspect", kinds)
    from nerfit.commands import train as jobs
    from nerfit.commands.preparing import prepare

    source = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else None
    posed = source is None or not find("nerfit.scenes", "image").detect(source)
    method = word if word in kinds[3:] else "nerf" if posed else "image"
    plan, options, _ = prepare(method, source, argv[2:], folder=False)
    report = jobs.inspect(word, plan, options.out)
    _answer(options, report, "\n".join(f"{key:24} {value}" for key, value in report.items()))
    return 0


_BENCH_HELP = """nerfit bench: measurements on this machine

  nerfit bench speed                           matrix peak, fused field, each kernel beside its definition in PyTorch
  nerfit bench time-to-quality SCENE [METHOD]  test PSNR after trainings of several lengths: a table and a chart
  nerfit bench memory SCENE [METHOD]           most memory held after loading, building, training, rendering

Each: --help, --json. Examples:
  nerfit bench speed --threads 2
  nerfit bench time-to-quality procedural --at 5 10 20
  nerfit bench memory data/lego instant --steps 100
"""


def bench(argv: list[str]) -> int:
    """nerfit bench speed|time-to-quality|memory."""
    if _wants_help(argv, _BENCH_HELP):
        return 0
    kind = BENCHMARKS[_kind(argv, "bench", BENCHMARKS)]
    parse = _parse_with_flags if issubclass(kind, TrainingBenchOptions) else lambda *words: (_parse(*words), [])
    options, flags = parse(kind, argv[1:], f"bench {argv[0]}")
    from nerfit.commands.bench import MEASURES

    measure, text = MEASURES[kind]
    answer = measure(options, flags)
    _answer(options, answer, text(answer))
    return 0


def sweep(argv: list[str]) -> int:
    """nerfit sweep SCENE [SCENE ...]: see `sweeping.sweep`."""
    options, flags = _parse_with_flags(SweepOptions, argv, "sweep")
    from nerfit.commands import sweep as sweeping

    answer = sweeping.sweep(options, flags)
    _answer(options, answer, sweeping.sweep_text(answer))
    return int(answer["exit_code"])


def blocks(argv: list[str]) -> int:
    """nerfit blocks SCENE [METHOD]: see `dividing.divide`."""
    options, flags = _parse_with_flags(BlocksOptions, argv, "blocks")
    from nerfit.commands import blocks as dividing

    answer = dividing.divide(options, flags)
    _answer(options, answer, dividing.divide_text(answer))
    return int(answer["exit_code"])


_CONVERT_HELP = """nerfit convert multiscale SCENE OUT [--scales 4]
  a Blender scene at several sizes, each half the one before, as mip-NeRF trains on"""


def convert(argv: list[str]) -> int:
    """nerfit convert multiscale SCENE OUT."""
    if _wants_help(argv, _CONVERT_HELP):
        return 0
    _kind(argv, "convert into", ("multiscale",))
    options = _parse(MultiscaleOptions, argv[1:], "convert multiscale")
    if not options.scene or options.out == Path():
        raise ConfigError("a SCENE and a new folder are needed: nerfit convert multiscale SCENE OUT.")
    from nerfit.scenes.formats.multiscale import make_multiscale

    pictures = make_multiscale(options.scene, options.out, options.scales, options.factor)
    _answer(options, {"folder": str(options.out), "pictures": pictures}, f"{pictures} pictures -> {options.out}")
    return 0


def methods(argv: list[str]) -> int:
    """nerfit methods: what can be trained."""
    options = _parse(Common, argv, "methods")
    known = {name: about(name) for name in method_names()}
    _answer(options, known, "\n".join(f"{name:14} {text}" for name, text in known.items()))
    return 0


def recipes(argv: list[str]) -> int:
    """nerfit recipes: what --recipe knows by name."""
    options = _parse(Common, argv, "recipes")
    from nerfit.recipes.loading import shipped_recipes

    known = shipped_recipes()
    _answer(options, known, "\n".join(f"{name:16} {text}" for name, text in known.items()))
    return 0


def doctor(argv: list[str]) -> int:
    """nerfit doctor: versions, devices, kernels in use, missing extras."""
    options = _parse(Common, argv, "doctor")
    from nerfit.commands.doctor import report

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
    "sweep": sweep,
    "blocks": blocks,
    "bench": bench,
    "convert": convert,
    "methods": methods,
    "recipes": recipes,
    "doctor": doctor,
}
