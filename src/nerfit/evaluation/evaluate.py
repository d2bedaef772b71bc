"""Test metrics of a run, view by view, by the protocol that papers use."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfit.errors import SceneError
from nerfit.evaluation.appearance import fitted_to_left_half
from nerfit.evaluation.poses import optimised_pose
from nerfit.methods.base import Method
from nerfit.methods.views import render_view
from nerfit.metrics.lpips import Lpips, find_weights, load_lpips
from nerfit.metrics.psnr_ssim import psnr, quantise, ssim
from nerfit.rendering.volume import Rendering
from nerfit.scenes.images import strip, write_png
from nerfit.scenes.scene import Scene
from nerfit.training.collapse import BETTER, MEMORISED
from nerfit.training.distributed import all_gather_object, collected, share

_PLAIN = 40.0
"""PSNR in dB from which on a view's mean colour is all that the view shows."""
PROTOCOL = (
    "full-size {split} views of {scene}{background}; pictures rounded to 8 bits; PSNR from the squared error of each view "
    "(at most 100 dB), SSIM with an 11-tap Gaussian (sigma 1.5, data range 1), LPIPS 0.1; means over views"
)


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated, and how."""

    split: str = "test"
    """Split of the scene."""
    lpips: bool = True
    """Measure LPIPS if the networks' weights can be found."""
    lpips_weights: Path | None = None
    """Folder of the networks' weights (`find_weights`)."""
    pictures: Path | None = None
    """Folder for PNGs of each view, and for strips of truth | prediction | error."""
    pose_steps: int = 0
    """Photometric steps that first move each view's camera (`optimised_pose`)."""
    appearance_fit: bool = False
    """Evaluate the right half of each view alone, after `fitted_to_left_half`."""


@dataclass
class _View:
    """An evaluated view: its number in the split, its measures, and the measures that its picture is too small for."""

    number: int
    row: dict[str, Any]
    missing: list[str]


def evaluate(
    method: Method, scene: Scene, chunk: int, config: EvalConfig = EvalConfig(), report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """PSNR, SSIM, LPIPS, depth error (if depths are known) and seconds per view of a split.

    Args:
        method: The trained method; its networks stay as they are.
        scene: The scene with its pictures.
        chunk: Rays rendered together.
        config: What is evaluated, and how.
        report: Called with a line of text after each view.

    Processes that train together share the views. Returns what metrics.json keeps: means, ``by_size`` with those of each size if sizes
    differ, ``views`` with each view's own, ``protocol`` in words, and ``missing``: what could not be measured, and why. SceneError for
    a split without visible views.
    """
    left = [int(width) // 2 if config.appearance_fit else 0 for width in scene.cameras.width]
    views = [view for view in scene.splits.get(config.split, ()) if scene.visible(view)[:, left[view] :].any()]
    if not views:
        others = ", ".join(name for name, of_split in scene.splits.items() if of_split)
        raise SceneError(f"{scene.name} has no {config.split} views that can be evaluated (it has: {others}).")
    networks, missing = _lpips_networks(config, method.device)
    found: list[_View] = []
    with collected(config.pictures or Path()) as folder:
        for number in share().indices(len(views)).tolist():
            one = _evaluate_view(method, scene, chunk, config, number, views[number], networks, folder)
            found.append(one)
            report(f"{number + 1}/{len(views)}  {one.row['view']}  psnr {one.row['psnr']:.2f} dB  {one.row['seconds']:.1f} s")
    in_order = sorted((one for of_process in all_gather_object(found) for one in of_process), key=lambda one: one.number)
    rows = [one.row for one in in_order]
    return _means(rows) | {
        "by_size": _by_size(rows),
        "seconds_per_view": float(np.mean([row["seconds"] for row in rows])),
        "split": config.split,
        "protocol": _protocol(method, scene, config),
        "missing": missing + [what for one in in_order for what in one.missing],
        "views": rows,
    }


def _lpips_networks(config: EvalConfig, device: torch.device) -> tuple[dict[str, Lpips], list[str]]:
    """LPIPS' networks by the measure's name, and what is missing without their weights."""
    networks, missing = {}, []
    for net in ("vgg", "alex") if config.lpips else ():
        path = find_weights(net, config.lpips_weights)
        if path is None:
            missing.append(f"lpips_{net}: no {net}.safetensors in --lpips-weights, $NERFIT_LPIPS or the cache")
        else:
            networks[f"lpips_{net}"] = load_lpips(net, path).to(device)
    return networks, missing


def _evaluate_view(
    method: Method, scene: Scene, chunk: int, config: EvalConfig, number: int, view: int, networks: dict[str, Lpips], folder: Path
) -> _View:
    """Render a view, measure it, and write its pictures into ``folder`` if the config asks for them."""
    start = time.perf_counter()
    camera = (optimised_pose(method, scene, view, config.pose_steps), 0) if config.pose_steps else (scene.cameras, view)
    rendering = render_view(method, scene, *camera, chunk)
    seconds = time.perf_counter() - start
    rgb = fitted_to_left_half(rendering, scene, view, scene.backdrop) if config.appearance_fit else rendering.rgb
    left = int(scene.cameras.width[view]) // 2 if config.appearance_fit else 0
    row, prediction, masked, truth = _measured(rgb, scene, view, left, networks, method.device)
    row |= _depth_error(method, scene, view, rendering) | {"seconds": seconds}
    small = [name for name, value in row.items() if isinstance(value, float) and math.isnan(value)]
    for name in small:
        del row[name]
    if config.pictures is not None:
        write_png(folder / f"{number:03d}.png", prediction)
        write_png(folder / "strips" / f"{number:03d}.png", error_strip(truth, masked))
    return _View(number, row, [f"{name} of {row['view']}: the picture is too small for it" for name in small])


def _protocol(method: Method, scene: Scene, config: EvalConfig) -> str:
    """What the numbers are means of, in words."""
    over = f" over {scene.backdrop_name}" if scene.has_alpha else ""
    over += ", but for the pixels that masks hide (SSIM and LPIPS see the truth there)" if scene.masked else ""
    text = PROTOCOL.format(split=config.split, scene=scene.name, background=over)
    return text + _poses(method, config.split, config.pose_steps) + _appearance(method, config.appearance_fit)


def _measured(
    rgb: Tensor, scene: Scene, view: int, left: int, networks: dict[str, Lpips], device: torch.device
) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """Measures of a view from column ``left`` on; its rounded picture, the same with the truth where that is hidden, and the truth."""
    whole, known = quantise(scene.image(view, scene.backdrop)), scene.visible(view)[:, left:]
    prediction, truth = quantise(rgb)[:, left:], whole[:, left:]
    masked = torch.where(known[..., None], prediction, truth)
    row: dict[str, Any] = {
        "view": scene.view_names[view] if scene.view_names else str(view),
        "size": f"{whole.shape[1]}x{whole.shape[0]}",
        "psnr": min(psnr(prediction[known], truth[known]), 100.0),
        "psnr_one_colour": min(psnr(truth[known].mean(0), truth[known]), 100.0),
        "ssim": ssim(masked, truth),
    }
    row |= {name: float(network.distance(masked.to(device), truth.to(device))) for name, network in networks.items()}
    return row, prediction, masked, truth


def _depth_error(method: Method, scene: Scene, view: int, rendering: Rendering) -> dict[str, float]:
    """``depth_error``: mean error of the depth per unit of opacity, over pixels whose surface is known, in the scene's unit of length."""
    w, h, start = int(scene.cameras.width[view]), int(scene.cameras.height[view]), int(scene.starts[view])
    if scene.depths is None or scene.ndc or method.cameras is not None or rendering.depth is None or rendering.opacity is None:
        return {}
    truth = scene.depths[start : start + w * h].reshape(h, w)
    known = scene.visible(view) & (truth > 0)
    error = (rendering.depth / rendering.opacity.clamp(min=1e-10) - truth).abs()
    return {"depth_error": float(error[known].mean())} if known.any() else {}


def _means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each measure that all rows have."""
    names = [name for name in rows[0] if name not in ("view", "size", "seconds")]
    return {name: float(np.mean([row[name] for row in rows])) for name in names if all(name in row for row in rows)}


def _by_size(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means of the views of each size, the largest first; nothing where all are alike."""
    sizes = sorted({row["size"] for row in rows}, key=lambda size: -int(size.split("x")[0]))
    return {size: _means([row for row in rows if row["size"] == size]) for size in sizes if len(sizes) > 1}


def _poses(method: Method, split: str, pose_steps: int) -> str:
    """The protocol's words about where the views' poses come from, where that is not the scene."""
    carried = "given poses carried into the learned world by the similarity that fits the training positions"
    own = "" if method.cameras is None else "; learned poses" if split == "train" else f"; {carried}"
    return own + (f"; each pose optimised on its own picture for {pose_steps} photometric steps" if pose_steps else "")


def _appearance(method: Method, fit: bool) -> str:
    """The protocol's words about the colours' appearance, where it is not that of the field alone."""
    if fit:
        return "; the right half of each picture, after the affine colour map that fits its left half best"
    return "" if method.appearance is None else "; in the mean appearance of the training pictures"


def why_blank(metrics: dict[str, Any], training_psnr: float | None) -> str | None:
    """A sentence for held-out views that are no better than pictures of one colour, each view's own mean, and the likely reason; else None.

    ``training_psnr`` is that of the latest training pixels, in dB. Views that are of one colour themselves are none to measure it by.
    """
    reached, flat = metrics["psnr"], metrics["psnr_one_colour"]
    if reached > flat + BETTER or flat > _PLAIN:
        return None
    what = f"the {metrics['split']} views reach {reached:.1f} dB, no more than pictures of one colour would ({flat:.1f} dB)"
    if training_psnr is not None and training_psnr > flat + MEMORISED:
        return (
            f"{what}, while training pixels reach {training_psnr:.1f} dB: matter stands right before each camera, or the poses are wrong; "
            "look at nerfit inspect scene, and try a larger --scene.near or another --scene.background."
        )
    return (
        f"{what}, and training pixels reach {training_psnr or math.nan:.1f} dB: the field is empty or of one colour; "
        "does nerfit inspect scene show the object between near and far? If so, try another --scene.background or a lower --optim.lr."
    )


def error_strip(truth: Tensor, prediction: Tensor) -> np.ndarray:
    """Truth | prediction | absolute error (times 4, so that an error of a quarter is full scale)."""
    error = torch.clamp((prediction - truth).abs() * 4, 0, 1)
    return strip([truth, prediction, error])
