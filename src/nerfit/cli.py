"""The command line: a table of the commands; each is parsed, run and printed in the same way."""

import codecs
import contextlib
import gc
import io
import json
import logging
import os
import sys
import threading
import warnings
from importlib import import_module
from typing import Any, NamedTuple

from nerfit import __version__
from nerfit.commands.options import parse_options
from nerfit.errors import ConfigError, NerfitError, nearest, one_line, one_of


class Command(NamedTuple):
    """The module of a command in `nerfit.commands`, the words after its name, and what it does."""

    module: str
    words: str
    about: str


COMMANDS = {
    "demo": Command("demo", "", "a made-up scene: trained, a video, its PSNR"),
    "poses": Command("poses", "PHOTOS_OR_VIDEO", "camera poses (nerfit train estimates them by itself too)"),
    "train": Command("train", "METHOD SCENE", "train; METHOD: auto, instant, ...; SCENE: photos, a video, a data set, 'procedural'"),
    "eval": Command("evaluate", "RUN", "PSNR, SSIM, LPIPS per view and on average"),
    "render": Command("render", "RUN", "pictures and videos along a camera path"),
    "view": Command("view", "RUN|SCENE", "a field or a scene in the browser (while it trains: nerfit train --viewer)"),
    "export mesh": Command("export_mesh", "RUN", "triangles with colours: .ply, .obj, .glb"),
    "export points": Command("export_points", "RUN", "coloured points with normals: .ply"),
    "export web": Command("export_web", "RUN", "a page that shows the field in a browser: .html"),
    "export cameras": Command("export_cameras", "RUN", "poses and lenses: transforms.json, COLMAP, poses_bounds.npy"),
    "import": Command("import_weights", "CHECKPOINT --scene SCENE", "weights of nerf-pytorch or bmild/nerf become a run"),
    "inspect": Command("inspect", "scene|rays|field|METHOD SCENE", "one part alone, with a picture"),
    "sweep": Command("sweep", "SCENES --methods METHODS", "many trainings on Ray, one table"),
    "blocks": Command("blocks", "SCENE [METHOD] --blocks 2x1", "a scene too large for one field, in blocks"),
    "bench speed": Command("bench_speed", "", "matrix peak, fused field, each kernel beside its definition in PyTorch"),
    "bench time-to-quality": Command("bench_quality", "SCENE [METHOD]", "test PSNR after trainings of several lengths"),
    "bench memory": Command("bench_memory", "SCENE [METHOD]", "peak memory after loading, building, training, rendering"),
    "convert multiscale": Command("convert_multiscale", "SCENE OUT", "a Blender scene at several sizes, as mip-NeRF trains on"),
    "methods": Command("methods", "", "the methods that can be trained"),
    "recipes": Command("recipes", "", "the recipes of the package"),
    "doctor": Command("doctor", "", "versions, devices, kernels and missing extras on this machine"),
}

_HELP = """nerfit: neural radiance fields that anyone can train

{commands}

Every command: --help, --json, --debug. Examples:
  nerfit train auto photos/garden
  nerfit train nerf data/lego --recipe nerf-small --seconds 900
  nerfit train image photo.jpg --recipe image
"""


_PLAIN = {"×": "x", "±": "+-", "…": "...", "²": "2", "–": "-", "’": "'"} | dict.fromkeys("─━═", "-") | dict.fromkeys("│┃║", "|")
"""What is printed for a character that the console does not have; for others it is a question mark."""


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 only on success, errors are one sentence on stderr."""
    gc.set_threshold(100_000, *gc.get_threshold()[1:])  # imports make so many objects that looking for dead ones took a seventh of a start
    codecs.register_error("nerfit", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a Windows console may know a few hundred characters only
            stream.reconfigure(errors="nerfit")
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    logging.getLogger("nerfit").setLevel(logging.DEBUG if debug else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {one_line(str(message))}", file=sys.stderr)
    if not debug:  # of TensorBoard's writer, for instance, whose failure the training reports too
        threading.excepthook = lambda failed: print(f"warning: {one_line(str(failed.exc_value))}", file=sys.stderr)
    try:
        return _main(argv)
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
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which is not imported here
            raise
        print("nerfit: the GPU's memory is full: end what else uses it, or compute with --device cpu.", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return int(stop.code or 0)


def _main(argv: list[str]) -> int:
    word = argv[0] if argv else "--help"
    kinds = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{word} ")]
    if word in ("-h", "--help", "help"):
        print(_HELP.format(commands=_lines(COMMANDS)))
    elif word in ("-V", "--version"):
        print(f"nerfit {__version__}")
    elif word in COMMANDS:
        return _run(word, argv[1:])
    elif kinds and argv[1:2] in (["-h"], ["--help"]):
        names = [f"{word} {kind}" for kind in kinds]
        print(f"{_lines(names)}\n\nEach: --help. Examples:\n  nerfit {names[0]} {COMMANDS[names[0]].words}".rstrip())
    elif kinds:
        return _run(f"{word} {one_of((*argv, '')[1], word, kinds)}", argv[2:])
    else:
        first_words = [name.partition(" ")[0] for name in COMMANDS]
        raise ConfigError(f"there is no command '{word}'{nearest(word, first_words)} (`nerfit --help` lists them).")
    return 0


def _lines(names: Any) -> str:
    """A line of help for each command."""
    return "\n".join(f"  {f'nerfit {name} {COMMANDS[name].words}':50} {COMMANDS[name].about}" for name in names)


def _run(name: str, words: list[str]) -> int:
    """Parse the options of a command, run it, and print its answer; the exit code."""
    command: Any = import_module(f"nerfit.commands.{COMMANDS[name].module}")
    prog = f"nerfit {name}"
    options = command.parse(words, prog) if hasattr(command, "parse") else parse_options(command.Options, words, prog)

    def show(answer: Any) -> None:
        print(json.dumps(answer, indent=1) if options.json else command.text(answer), flush=True)

    with contextlib.ExitStack() as together:
        if hasattr(options, "devices"):
            from nerfit.training import distributed, launching

            if options.devices > 1 and not launching.under_torchrun():
                words = command.launch_words(options, words) if hasattr(command, "launch_words") else words
                return launching.launch(main, [name, *words], options.devices, options.device)
            together.enter_context(distributed.process_group())
        if name in ("train", "view"):  # they go on after their answer, with a viewer
            answer = command.run(options, show)
        else:
            answer = command.run(options)
            show(answer)
    return int(answer.get("exit_code", 0))
