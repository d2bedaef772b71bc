"""nerfit train: a method on a scene, into a run folder."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nerfit.commands.options import Common
from nerfit.config import own_words, typed_values
from nerfit.config import parse as parse_config
from nerfit.errors import PoseError
from nerfit.plugins import AUTO, method_names


@dataclass(kw_only=True)
class TrainOptions(Common):
    """The options of a training that are not part of its configuration."""

    out: Path | None = None
    """Run folder; none = runs/<scene>-<method>[-n]."""
    recipe: str | None = None
    """Shipped recipe, YAML file, or a key = value config of the original programs."""
    resume: bool = False
    """Go on with the run in --out (or the newest of this scene and method)."""
    init: Path | None = None
    """Start from the weights of another run."""
    init_only: Literal["cameras"] | None = None
    """Take only the learned cameras of that run, which may be of another method."""
    seeds: int = 1
    """Number of trainings, with --seed and the seeds after it; the run that fits its training pixels best is kept."""
    evaluate: bool = True
    """Evaluate the test views at the end, if that takes minutes at most."""
    lpips_weights: Path | None = None
    """Folder with alex.safetensors and vgg.safetensors."""
    viewer: bool = False
    """Watch the training in the browser; afterwards the viewer stays open until Ctrl-C."""
    host: str = "127.0.0.1"
    """Address that the viewer serves on; 0.0.0.0 = reachable from other machines, with a token."""
    port: int = 7007
    """The viewer's port; if it is in use, the next free one."""


@dataclass(kw_only=True)
class Options(TrainOptions):
    """The parsed command line of a training: its own options, METHOD and SCENE, and the flags of the configuration.

    The configuration itself is parsed once the recipe is known, which gives its defaults (`train_plan.configure`).
    """

    method: str | None = None
    source: str | None = None
    flags: list[str] = dataclasses.field(default_factory=list)
    """The words that configure method, scene and loop."""
    typed: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """All keys that were typed, with their values."""

    @property
    def devices(self) -> int:
        """Processes to start on this machine."""
        count = (self.typed.get("devices") or ["1"])[0]
        return int(count) if count.isdecimal() else 1

    @property
    def device(self) -> str | None:
        """The device as typed."""
        return (self.typed.get("device") or [None])[0]


def parse(words: list[str], prog: str) -> Options:
    """A training's command line."""
    return request(*_positionals(list(words)))


def request(method: str | None, source: str | None, words: Sequence[str] = ()) -> Options:
    """The training of a method on a scene with flags; of the flags nerfit's own are parsed. Asked for help it prints it and exits."""
    own, flags = own_words(TrainOptions, words)
    asked = [word for word in own if word not in ("-h", "--help")]
    parsed = parse_config(TrainOptions, asked, prog="nerfit train")
    options = Options(**vars(parsed), method=method, source=source, flags=flags, typed=typed_values(words))
    if asked != own:
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
