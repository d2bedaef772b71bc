"""nerfit export web: a run as a web page."""

from dataclasses import dataclass
from typing import Any

from nerfit.commands.export_options import FieldOptions, report, text
from nerfit.outputs.web.bake import BakeConfig, bake, likeness
from nerfit.outputs.web.page import check_web_name, write_web

__all__ = ["Options", "run", "text"]


@dataclass(kw_only=True)
class Options(FieldOptions, BakeConfig):
    """nerfit export web RUN: one HTML file that shows the field in any browser with WebGL 2, to turn and to come near.

    The page leaves out the space beyond the box. The answer gives the PSNR of its pictures against the field's own (three test
    views of at most 400 pixels, within the box).

    Examples:
      nerfit export web runs/lego-instant
      nerfit export web runs/garden-instant --box -1 -1 -0.5 1 1 0.5 --resolution 256
    """


def run(options: Options) -> dict[str, Any]:
    """Write a page; returns where it is, how large, and how near its pictures are to the field's own."""
    options.check()
    path = options.place("web.html")
    check_web_name(path)
    trained = options.open()
    baked = bake(trained.method, trained.scene, options, trained.chunk, report)
    write_web(path, trained.scene, baked)
    return {"written": str(path), "megabytes": round(path.stat().st_size / 1e6, 2), "blocks": len(baked.blocks)} | {
        "psnr": [round(p, 2) for p in likeness(trained.method, trained.scene, baked, trained.chunk)]
    }
