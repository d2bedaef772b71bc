"""nerfit train: a method on a scene, into a run folder."""

import contextlib
import dataclasses
import io
from collections.abc import Callable
from typing import Any

from nerfit.commands.train_options import Options, request
from nerfit.errors import PoseError
from nerfit.plugins import AUTO, method_names


def parse(words: list[str], prog: str) -> Options:
    """A training's command line; asked for help it prints that of the method and the recipe, and exits."""
    method, source, flags = _positionals(list(words))
    asked = [word for word in flags if word not in ("-h", "--help")]
    options = request(method, source, asked)
    if asked != flags:
        from nerfit.commands.train_plan import print_help

        print_help(options)
    return options


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


def launch_words(options: Options, words: list[str]) -> list[str]:
    """The checked command line of a training in several processes, with the run folder that they look for when they are started again."""
    from nerfit.commands.train_plan import prepare
    from nerfit.runs import numbered_folders

    with contextlib.redirect_stderr(io.StringIO()):
        _, options, folder = prepare(options)
    if options.resume or options.out is not None:
        return words
    return [*words, "--out", str(next(path for path in numbered_folders(folder) if not path.exists()))]


def run(options: Options, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train, with one seed or several; ``show`` is given the summary before a viewer is served."""
    from nerfit.commands.seeds import train_seeds
    from nerfit.commands.train_plan import choose_method, prepare, without_poses
    from nerfit.training import distributed

    scene = None
    if options.method == AUTO:
        try:
            method, scene = choose_method(options)
            options = dataclasses.replace(options, method=method)
        except PoseError as error:
            options, scene = without_poses(options, error)
    return train_seeds(*distributed.broadcast_result(lambda: prepare(options)), show, scene)


def text(summary: dict[str, Any]) -> str:
    """The summary for a reader."""
    from nerfit.commands.seeds import train_text

    return train_text(summary)
