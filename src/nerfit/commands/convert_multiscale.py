"""nerfit convert multiscale: a Blender scene at several sizes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from nerfit.commands.options import Common
from nerfit.errors import ConfigError


@dataclass
class Options(Common):
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
    factor: int = 1
    """Shrink the pictures by this factor first."""


def run(options: Options) -> dict[str, Any]:
    """Write the scene; its folder and the number of pictures."""
    if not options.scene or options.out == Path():
        raise ConfigError("a SCENE and a new folder are needed: nerfit convert multiscale SCENE OUT.")
    from nerfit.scenes.formats.multiscale import make_multiscale

    pictures = make_multiscale(options.scene, options.out, options.scales, options.factor)
    return {"folder": str(options.out), "pictures": pictures}


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    return f"{answer['pictures']} pictures -> {answer['folder']}"
