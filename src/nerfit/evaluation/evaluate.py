"""Test metrics of a run, view by view, by the protocol that papers use."""

import math
import time
from collections.abc import Callable
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
from nerfit.training.distributed import all_gather_object, collected, share

PROTOCOL = (
    "full-size {split} views of {scene}{background}; pictures rounded to 8 bits; PSNR from the squared error of each view "
    "(at most 100 dB), SSIM with an 11-tap Gaussian (sigma 1.5, data range 1), LPIPS 0.1; means over views"
)


def evaluate(
    method: Method,
    scene: Scene,
    chunk: int,
    split: str = "test",
    lpips_weights: Path | None = None,
    pictures: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    lpips: bool = True,
    pose_steps: int = 0,
    appearance_fit: bool = False,
) -> dict[str, Any]:
    """PSNR, SSIM, LPIPS (where wished and weights are at hand), depth error (where depths are known) and seconds per view of a split.

    ``pose_steps`` first moves each view's camera by so many photometric steps (`optimised_pose`).
    ``appearance_fit`` judges the right half of each view alone, after `fitted_to_left_half`.
    Processes that train together share the views. ``pictures`` is a folder for PNGs of each view and strips of truth | prediction |
    error. Returns what metrics.json keeps: means, ``by_size`` with those of each size where sizes differ, ``views`` with each view's
    own, ``protocol`` in words, and ``missing`` saying what could not be judged.
    """
    left = [int(width) // 2 if appearance_fit else 0 for width in scene.cameras.width]
    views = [view for view in scene.splits.get(split, ()) if scene.visible(view)[:, left[view] :].any()]
    if not views:
        others = ", ".join(name for name, of_split in scene.splits.items() if of_split)
        raise SceneError(f"{scene.name} has no {split} views that can be judged (it has: {others}).")
    networks = {}
    missing = []
    for net in ("vgg", "alex") if lpips else ():
        path = find_weights(net, lpips_weights)
        if path is None:
            missing.append(f"lpips_{net}: no {net}.safetensors in --lpips-weights, $NERFIT_LPIPS or the cache")
        else:
            networks[f"lpips_{net}"] = load_lpips(net, path).to(method.device)
    found = []
    with collected(pictures or Path()) as folder:
        for number in share().indices(len(views)).tolist():
            view = views[number]
            start = time.perf_counter()
            camera = (optimised_pose(method, scene, view, pose_steps), 0) if pose_steps else (scene.cameras, view)
            rendering = render_view(method, scene, *camera, chunk)
            seconds = time.perf_counter() - start
            rgb = fitted_to_left_half(rendering, scene, view, scene.backdrop) if appearance_fit else rendering.rgb
            row, prediction, judged, truth = _judged(rgb, scene, view, left[view], networks, method.device)
            row |= _depth_error(method, scene, view, rendering) | {"seconds": seconds}
            small = [name for name, value in row.items() if isinstance(value, float) and math.isnan(value)]
            for name in small:
                del row[name]
            found.append((number, row, [f"{name} of {row['view']}: the picture is too small for it" for name in small]))
            report(f"{number + 1}/{len(views)}  {row['view']}  psnr {row['psnr']:.2f} dB  {seconds:.1f} s")
            if pictures is not None:
                write_png(folder / f"{number:03d}.png", prediction)
                write_png(folder / "strips" / f"{number:03d}.png", error_strip(truth, judged))
    in_order = sorted((one for of_process in all_gather_object(found) for one in of_process), key=lambda one: one[0])
    rows = [row for _, row, _ in in_order]
    missing += [what for _, _, small in in_order for what in small]
    over = f" over {'white' if scene.backdrop else 'black'}" if scene.has_alpha else ""
    over += ", but for the pixels that masks hide (SSIM and LPIPS see the truth there)" if scene.masked else ""
    return _means(rows) | {
        "by_size": _by_size(rows),
        "seconds_per_view": float(np.mean([row["seconds"] for row in rows])),
        "split": split,
        "protocol": PROTOCOL.format(split=split, scene=scene.name, background=over)
        + _poses(method, split, pose_steps)
        + _appearance(method, appearance_fit),
        "missing": missing,
        "views": rows,
    }


def _judged(
    rgb: Tensor, scene: Scene, view: int, left: int, networks: dict[str, Lpips], device: torch.device
) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """Measures of a view from column ``left`` on; its rounded picture, the same with the truth where that is hidden, and the truth."""
    whole, known = quantise(scene.image(view, scene.backdrop)), scene.visible(view)[:, left:]
    prediction, truth = quantise(rgb)[:, left:], whole[:, left:]
    judged = torch.where(known[..., None], prediction, truth)
    row: dict[str, Any] = {
        "view": scene.view_names[view] if scene.view_names else str(view),
        "size": f"{whole.shape[1]}x{whole.shape[0]}",
        "psnr": min(psnr(prediction[known], truth[known]), 100.0),
        "ssim": ssim(judged, truth),
    }
    row |= {name: float(network.distance(judged.to(device), truth.to(device))) for name, network in networks.items()}
    return row, prediction, judged, truth


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


def error_strip(truth: Tensor, prediction: Tensor) -> np.ndarray:
    """Truth | prediction | absolute error (times 4, so that an error of a quarter is full scale)."""
    error = torch.clamp((prediction - truth).abs() * 4, 0, 1)
    return strip([truth, prediction, error])
