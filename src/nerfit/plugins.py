"""Methods and scene formats by name: our own, and those that other packages bring by entry points.

A package adds a method with an entry point in group ``nerfit.methods`` whose object is a `Method` subclass, and a scene
format with one in ``nerfit.scenes`` whose object is a module (or class) offering ``Config``, ``detect(source) -> bool``
and ``load(source, config) -> Scene``. The entry point's name is the name users type.
"""

import ast
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any

from nerfit.errors import ConfigError, nearest

_BUILT_IN = {
    "nerfit.methods": {
        "instant": "nerfit.methods.instant:Instant",
        "instant-unbounded": "nerfit.methods.instant_proposals:InstantProposals",
        "nerf": "nerfit.methods.nerf:Nerf",
        "nerf-occupancy": "nerfit.methods.nerf_occupancy:NerfOccupancy",
        "mipnerf": "nerfit.methods.mipnerf:MipNerf",
        "mipnerf360": "nerfit.methods.mipnerf360:MipNerf360",
        "image": "nerfit.methods.image:Image",
    },
    "nerfit.scenes": {
        "procedural": "nerfit.scenes.formats.procedural",
        "realitycapture": "nerfit.scenes.formats.realitycapture",
        "bundler": "nerfit.scenes.formats.bundler",
        "nvm": "nerfit.scenes.formats.nvm",
        "mvsnet": "nerfit.scenes.formats.mvsnet",
        "neus": "nerfit.scenes.formats.neus",
        "kapture": "nerfit.scenes.formats.kapture",
        "openmvg": "nerfit.scenes.formats.openmvg",
        "opensfm": "nerfit.scenes.formats.opensfm",
        "metashape": "nerfit.scenes.formats.metashape",
        "record3d": "nerfit.scenes.formats.record3d",
        "polycam": "nerfit.scenes.formats.polycam",
        "colmap": "nerfit.scenes.formats.colmap",
        "transforms": "nerfit.scenes.formats.transforms",
        "blender": "nerfit.scenes.formats.blender",
        "linemod": "nerfit.scenes.formats.linemod",
        "multiscale": "nerfit.scenes.formats.multiscale",
        "deepvoxels": "nerfit.scenes.formats.deepvoxels",
        "nsvf": "nerfit.scenes.formats.nsvf",
        "llff": "nerfit.scenes.formats.llff",
        "unposed": "nerfit.scenes.formats.unposed",
        "tiny": "nerfit.scenes.formats.tiny",
        "image": "nerfit.scenes.formats.single_image",
        "video": "nerfit.scenes.formats.video",
        "photos": "nerfit.scenes.formats.photos",
    },
}
AUTO = "auto"
"""The name that stands for the method which suits a scene."""

_PARTS = {"nerfit.methods": ("Config", "render", "scene_formats"), "nerfit.scenes": ("Config", "detect", "load")}
"""The attributes that a plug-in must have."""


def available(group: str) -> dict[str, EntryPoint | str]:
    """Everything of a group by name, built-in first; a plug-in can't replace a built-in name."""
    plugins = {point.name: point for point in entry_points(group=group)}
    return plugins | _BUILT_IN[group]


def method_names() -> list[str]:
    """The names that METHOD may have on a command line."""
    return [AUTO, *available("nerfit.methods")]


def about(method: str) -> str:
    """The first line of a method's docstring, or why there is none; a built-in one's is read from its file, for PyTorch takes seconds."""
    if method == AUTO:
        return "The method that suits the scene: image for a single picture, instant-unbounded for an unbounded scene, else instant."
    target = available("nerfit.methods")[method]
    if isinstance(target, EntryPoint):
        try:
            text = find("nerfit.methods", method).__doc__
        except ConfigError as error:
            return str(error)
    else:
        module, _, name = target.partition(":")
        tree = ast.parse((files("nerfit") / (module.partition(".")[2].replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        text = next(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return (text or "").strip().partition("\n")[0]


def find(group: str, name: str) -> Any:
    """The class or module of a name; an unknown name, or a plug-in that can't be imported, is a ConfigError."""
    known = _BUILT_IN[group] if name in _BUILT_IN[group] else available(group)
    if name not in known:
        kind = "method" if group == "nerfit.methods" else "scene format"
        raise ConfigError(f"there is no {kind} '{name}'{nearest(name, known)} (known: {', '.join(sorted(known))}).")
    target = known[name]
    if isinstance(target, EntryPoint):
        try:
            found = target.load()
        except Exception as error:
            raise ConfigError(f"plug-in '{name}' ({target.value}) can't be imported: {' '.join(str(error).split())}.") from error
        missing = [part for part in _PARTS[group] if not hasattr(found, part)]
        if missing:
            raise ConfigError(f"plug-in '{name}' ({target.value}) has no {' and no '.join(missing)}.")
        return found
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute) if attribute else import_module(module)
