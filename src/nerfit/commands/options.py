"""The options that several commands share; the docstrings are their help."""

from dataclasses import dataclass, field
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

import tyro

from nerfit.config import own_words, parse, typed_values
from nerfit.errors import ConfigError
from nerfit.plugins import method_names

T = TypeVar("T", bound="Common")


@dataclass
class Common:
    """Options of every command."""

    json: bool = False
    """Print the answer as JSON, for programs."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class DeviceOptions(Common):
    """Options of commands that compute."""

    threads: int | None = None
    """CPU threads."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, xpu; auto = a GPU if nerfit's fast kernels run on it, else the CPU."""


@dataclass
class RunOptions(Common):
    """Options of commands on a run."""

    run: tyro.conf.Positional[Path] = field(default_factory=Path)
    """Run folder."""


@dataclass
class SharedOptions(RunOptions, DeviceOptions):
    """Options of commands on a run whose views several processes can share."""

    devices: int = 1
    """Processes on this machine that share the views: with CUDA one for each GPU, else they share the threads."""


@dataclass
class TrainingFlags(Common):
    """Options of commands that train, which all flags of nerfit train may follow."""

    flags: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The flags that are for nerfit train."""

    @property
    def typed(self) -> dict[str, list[str]]:
        """The keys that these flags set, with their values."""
        return typed_values(self.flags)

    def refuse(self, keys: set[str], why: str) -> None:
        """Raise ConfigError if the flags set one of ``keys``."""
        for key in sorted(keys & self.typed.keys()):
            raise ConfigError(f"leave out --{key.replace('_', '-')}: {why}.")


@dataclass
class OneTraining(TrainingFlags):
    """Options of commands that train METHOD on SCENE."""

    scene: tyro.conf.Positional[str] = ""
    """A folder or file of any scene format, or procedural, as for nerfit train."""
    method: tyro.conf.Positional[str] = "instant"
    """A method, as for nerfit train."""


@dataclass(kw_only=True)
class ClusterOptions(Common):
    """Options of commands that run many jobs on Ray."""

    at_once: int | None = None
    """Jobs at a time; none = as many as there is room for, each with the threads that --threads gives a training."""
    gpus: float | None = None
    """GPUs for each job, whole or a share; none = 1 if this machine has any, else 0."""
    retries: int = 2
    """How often a job whose process died is tried again, from its last checkpoint on."""
    address: str | None = None
    """Ray cluster to run on (auto, host:port); its machines need nerfit, and --out and the scenes at the same paths. None = here."""


def parse_options(kind: type[T], words: list[str], prog: str) -> T:
    """The options of a command from its command line; of one that trains, the flags of nerfit train are left in ``flags``.

    Of `OneTraining` SCENE and METHOD come first, in either order; ConfigError without a scene.
    """
    trains = issubclass(kind, TrainingFlags)
    own, flags = own_words(kind, words) if trains else (words, [])
    options: Any = parse(kind, own, prog=prog, description=cleandoc(kind.__doc__ or ""))
    if trains:
        options.flags = tuple(flags)
    if issubclass(kind, OneTraining):
        methods = method_names()
        if options.scene in methods and options.method not in methods:
            options.scene, options.method = options.method, options.scene
        if not options.scene or own[0].startswith("-"):
            raise ConfigError(f"a SCENE is needed first: {prog} SCENE [METHOD], for instance {prog} procedural.")
    return options
