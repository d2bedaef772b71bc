"""What a training is asked for: its command line, in two parts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nerfit.commands.options import Common
from nerfit.config import own_words, parse, typed_values


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


def request(method: str | None, source: str | None, words: Sequence[str] = ()) -> Options:
    """The training of a method on a scene with flags; of the flags nerfit's own are parsed."""
    own, flags = own_words(TrainOptions, words)
    parsed = parse(TrainOptions, own, prog="nerfit train")
    return Options(**vars(parsed), method=method, source=source, flags=flags, typed=typed_values(words))
