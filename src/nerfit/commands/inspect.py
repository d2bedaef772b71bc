"""nerfit inspect: one part of a training alone, with its shapes, ranges and timing, and a picture."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from nerfit.commands.options import TrainingFlags
from nerfit.errors import one_of
from nerfit.plugins import available, find

PARTS = ("scene", "rays", "field")


@dataclass
class Options(TrainingFlags):
    """nerfit inspect scene|rays|field|METHOD SCENE: one part alone, with its shapes, ranges, timing and a picture.

    All flags of nerfit train that configure a method or a scene may follow.

    Examples:
      nerfit inspect rays procedural
      nerfit inspect scene data/fern --out cameras.png
      nerfit inspect instant data/lego --model.levels 4
    """

    part: tyro.conf.Positional[str] = ""
    """scene, rays, field, or a method."""
    scene: tyro.conf.Positional[str] = ""
    """A folder or file of any scene format, or procedural, as for nerfit train."""
    out: Path | None = None
    """The picture; none = inspect-<part>-<scene>.png."""


def run(options: Options) -> dict[str, Any]:
    """The report of a part, with the path of its picture."""
    word = one_of(options.part, "inspect", (*PARTS, *available("nerfit.methods")))
    from nerfit.commands.inspect_parts import inspect_part
    from nerfit.commands.train_options import request
    from nerfit.commands.train_plan import plan_of
    from nerfit.training.trainer import Trainer

    source = options.scene or None
    posed = source is None or not find("nerfit.scenes", "image").detect(source)
    method = word if word not in PARTS else "nerf" if posed else "image"
    plan = plan_of(request(method, source, options.flags))
    scene = plan.load_scene()
    picture = options.out or Path(f"inspect-{word}-{scene.name}.png")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, Path(folder), quiet=True)
        return inspect_part(word, trainer, picture)


def text(report: dict[str, Any]) -> str:
    """A line for each fact."""
    return "\n".join(f"{key:24} {value}" for key, value in report.items())
