"""The colour behind a scene whose pictures are opaque: that of a plain border which the training views share."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import UInt8
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.files import peek_json, write_json
from nerfit.progress import say
from nerfit.scenes.scene import Background, Colour, Scene, colour_name

CHOSEN = ("auto", "random")
"""Backgrounds of opaque pictures that `choose_background` may replace."""
_NOISE = 12
"""Levels of 255 by which a channel of a plain border may differ from its median: JPEG's noise, weak shadows."""
_SHARE = 0.9
"""Share of the border's pixels that must agree."""
_VIEWS, _POINTS = 200, 100
"""The most views that are looked at, and points on each side of a picture."""
_INSET = 0.01
"""Distance of these points from the picture's edge, as a share of its side: the outermost pixels may be frames of scanners."""


def border_colour(pixels: UInt8[Tensor, "pixels channels"], cameras: Cameras, views: Sequence[int]) -> Colour | None:
    """The one colour that nearly all points along the borders of opaque pictures have, within noise; None where they show more.

    ``pixels`` holds all views of ``cameras`` one after another, as in `Scene`; those with alpha 0 are passed over.
    """
    return _shared_colour(_border(pixels, cameras, views), _SHARE)


def _border(pixels: UInt8[Tensor, "pixels channels"], cameras: Cameras, views: Sequence[int]) -> UInt8[Tensor, "points 3"]:
    """The colours of points along the borders of some of the views."""
    sizes = cameras.width * cameras.height
    starts = sizes.cumsum(0) - sizes
    t = torch.linspace(_INSET, 1 - _INSET, _POINTS)
    low, high = torch.full_like(t, _INSET), torch.full_like(t, 1 - _INSET)
    across, down = torch.cat([t, t, low, high]), torch.cat([low, high, t, t])
    found = []
    for view in views[:: -(-len(views) // _VIEWS)]:
        x, y = (across * cameras.width[view]).long(), (down * cameras.height[view]).long()
        found.append(pixels[starts[view] + y * cameras.width[view] + x])
    border = torch.cat(found)
    return border[border[:, 3] > 0, :3] if pixels.shape[1] == 4 else border


def _shared_colour(border: UInt8[Tensor, "points 3"], share: float) -> Colour | None:
    """The one colour that a ``share`` of some points have, within noise."""
    if not len(border):
        return None
    levels = border.float()
    agree = ((levels - levels.median(0).values).abs() <= _NOISE).all(-1)
    if agree.float().mean() < share:
        return None
    red, green, blue = (levels[agree].mean(0) / 255 if agree.any() else levels.median(0).values / 255).tolist()
    return red, green, blue


def choose_background(scene: Scene) -> Scene:
    """The scene with a background in place of "auto", or of "random" where opaque pictures have a plain border; nerfit prints it.

    Opaque pictures get the colour of their plain border: a random one, which forces matter onto every ray, would make walls of it.
    Pictures without such a border show surroundings, for which that is right, and keep "random"; auto is white for them. A given
    background stays, with a warning where the border has another colour. Where the background is no more than a guess,
    ``other_background`` is the border's median colour.
    """
    asked = scene.background
    if scene.pixels is None or scene.format == "image" or scene.has_alpha:
        return scene if asked != "auto" else replace(scene, background="white")
    border = _border(scene.pixels, scene.cameras, scene.splits["train"])
    colour = _shared_colour(border, _SHARE)
    found = None if colour is None else _named(colour)
    if asked not in CHOSEN:
        if colour is not None and (scene.backdrop - torch.tensor(colour)).abs().max() > 2 * _NOISE / 255:
            warnings.warn(
                f"{scene.name}: the pictures have a plain border of {colour_name(colour)}, but the background is {scene.backdrop_name}; "
                "leave --scene.background out to take the border's.",
                stacklevel=2,
            )
        return scene
    chosen = replace(scene, background=found or ("random" if asked == "random" else "white"))
    if found is None:
        chosen.other_background = _shared_colour(border, share=0.0)
    else:
        name = f"{scene.name}: the pictures are opaque with a plain border"
        say(f"{name}, so the background is {chosen.backdrop_name} (--scene.background overrides)")
    return chosen


def keep_background(scene: Scene, run: Path) -> None:
    """Put the scene's background into a run folder's scene.json, if there is one."""
    info = peek_json(run / "scene.json")
    if isinstance(info, dict):
        write_json(run / "scene.json", info | {"background": scene.background})


def saved_background(run: Path) -> Background | Colour | None:
    """The background that a run folder's scene.json keeps; None where it can't be read."""
    info = peek_json(run / "scene.json")
    kept = info.get("background") if isinstance(info, dict) else None
    if isinstance(kept, list) and len(kept) == 3:
        return kept[0], kept[1], kept[2]
    return next((word for word in get_args(Background) if word == kept), None)


def _named(colour: Colour) -> Background | Colour:
    """White or black in a word, within the noise of JPEG."""
    if min(colour) > 1 - 2 / 255:
        return "white"
    return "black" if max(colour) < 2 / 255 else colour
