"""One `Scene` whatever the files look like; one module per format, found by what lies at the path."""

import warnings
from typing import Any

from nerfit.errors import ConfigError, SceneError
from nerfit.plugins import available, find
from nerfit.scenes.background import choose_background
from nerfit.scenes.contents import contents
from nerfit.scenes.scene import Scene, SceneConfig

__all__ = ["Scene", "SceneConfig", "detect_format", "load_scene", "scene_format"]


def detect_format(source: str) -> str:
    """The name of the format that recognises ``source``, built-in ones first, but a mere folder of photographs last of all.

    A broken plug-in is passed over with a warning. Raises SceneError, with what lies there instead and the nearest thing that is a
    scene.
    """
    if name := _detected(source):
        return name
    raise SceneError(
        f"no known scene at '{source}': {contents(source, _detected)}; a scene is a folder of photographs, a video, an image file, "
        "'procedural', or a folder with transforms.json (instant-ngp, nerfstudio), transforms_train.json (Blender, LINEMOD), "
        "poses_bounds.npy (LLFF), sparse/0 (COLMAP), or another layout of docs/scenes.md."
    )


def _detected(source: str) -> str | None:
    others = [name for name in reversed(list(available("nerfit.scenes"))) if name != "photos"]
    for name in [*others, "photos"]:
        try:
            found = find("nerfit.scenes", name).detect(source)
        except ConfigError as error:
            warnings.warn(str(error), stacklevel=3)
            continue
        if found:
            return name
    return None


def load_scene(source: str) -> Scene:
    """The scene at ``source``, read with the default options of the format that recognises it; its background is chosen."""
    form = scene_format(detect_format(source))
    return choose_background(form.load(source, form.Config()))


def scene_format(name: str) -> Any:
    """The module of a format: ``Config``, ``detect`` and ``load``."""
    return find("nerfit.scenes", name)
