"""Each part alone: shapes, ranges, timing, and a picture of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nerfit.cameras.poses import rays_meet
from nerfit.commands.machine import matrix_peak, median_seconds
from nerfit.errors import ConfigError
from nerfit.methods.views import render_view
from nerfit.outputs.pictures.frusta import draw_cameras
from nerfit.scenes.images import colorize, strip, write_png
from nerfit.scenes.scene import Scene
from nerfit.training.trainer import Trainer


def inspect_part(part: str, trainer: Trainer, picture: Path) -> dict[str, Any]:
    """The report of ``part`` ("scene", "rays", "field", or else the method) of a training; writes ``picture``.

    Inspecting the method takes a few training steps.
    """
    parts: dict[str, Callable[[Trainer, Path], dict[str, Any]]] = {"scene": _scene, "rays": _rays, "field": _field}
    report = parts.get(part, _method)(trainer, picture)
    return report | {"picture": str(picture)}


def _range(t: torch.Tensor) -> str:
    kind = str(t.dtype).removeprefix("torch.")
    return f"{tuple(t.shape)} {kind}, {float(t.min()):.4g} … {float(t.max()):.4g}, mean {float(t.float().mean()):.4g}"


def _box(points: torch.Tensor) -> str:
    return "; ".join(f"{axis} {float(c.min()):.3f} … {float(c.max()):.3f}" for axis, c in zip("xyz", points.T, strict=True))


def _milliseconds(fn: Callable[[], Any], repeats: int = 5) -> str:
    return f"{1e3 * median_seconds(fn, repeats):.1f} ms (median of {repeats})"


def _sizes(scene: Scene) -> str:
    sizes = {(int(w), int(h)) for w, h in zip(scene.cameras.width, scene.cameras.height, strict=True)}
    return ", ".join(f"{w}x{h}" for w, h in sorted(sizes))


def _scene(trainer: Trainer, picture: Path) -> dict[str, Any]:
    """Cameras, images, bounds and splits; frusta with near and far; do the cameras look at something common?"""
    scene = trainer.scene
    near, far = scene.depth_range if scene.ndc and scene.depth_range else (scene.near, scene.far)
    write_png(picture, draw_cameras(scene.cameras, near, far))
    pixels = scene.pixels
    report = {
        "scene": f"{scene.name} ({scene.format}, {scene.bounds}{', NDC' if scene.ndc else ''})",
        "views": ", ".join(f"{len(views)} {split}" for split, views in scene.splits.items()),
        "image sizes": _sizes(scene),
        "pixels": "none" if pixels is None else f"{tuple(pixels.shape)} uint8, {pixels.numel() / 2**20:.1f} MiB",
        "focal length": f"{float(scene.cameras.fx.min()):.2f} … {float(scene.cameras.fx.max()):.2f} pixels",
        "near, far": f"{scene.near:g}, {scene.far:g}",
        "camera positions": _box(scene.cameras.centers),
        "background": scene.background,
    }
    if pixels is not None and pixels.shape[1] == 4:
        report["visible pixels" if scene.masked else "opaque pixels"] = f"{float((pixels[:, 3] > 127).float().mean()):.1%}"
    return report if scene.format == "image" else report | _meeting(scene)


def _meeting(scene: Scene) -> dict[str, str]:
    """Do the cameras' axes meet in front of them? If not, poses are probably inverted or in other axes."""
    m = rays_meet(scene.cameras)
    # Cameras that look the same way (forward-facing) meet far off or nowhere, and that is no fault.
    axes = torch.nn.functional.normalize(-scene.cameras.c2w[:, :, 2], dim=-1)
    parallel = float(axes.mean(0).norm()) > 0.9
    point = ", ".join(f"{x:.3f}" for x in m.point.tolist())
    report = {
        "axes meet at": f"({point}), {m.distance:.3f} from the cameras on average, {m.residual:.3f} off the axes",
        "in front of": f"{m.in_front:.0%} of the cameras",
    }
    if parallel:
        report["verdict"] = "the cameras look the same way: a forward-facing capture"
    elif m.in_front < 0.9:
        report["verdict"] = (
            "suspicious: most cameras should have what they look at in front of them; "
            "are the poses inverted (world-to-camera) or in other axes?"
        )
    else:
        report["verdict"] = "the cameras look at something common"
    return report


def _rays(trainer: Trainer, picture: Path) -> dict[str, Any]:
    """One view's rays: origins, directions, and where they go."""
    scene, method = trainer.scene, trainer.method
    view = scene.splits["train"][0]
    batch = method.view_batch(scene, scene.cameras, view, torch.arange(int(scene.cameras.width[view] * scene.cameras.height[view])))
    rays = batch.rays
    if rays is None:
        raise ConfigError("this method works on coordinates, not on rays.")
    write_png(picture, strip([scene.image(view), (rays.viewdirs.reshape(*scene.image(view).shape[:2], 3) + 1) / 2]))
    ends = torch.cat([rays.origins + rays.directions * t[:, None] for t in (rays.near, rays.far)])
    generator = torch.Generator(method.device)
    report = {
        "origins": _range(rays.origins),
        "directions": _range(rays.directions),
        "direction lengths": _range(rays.directions.norm(dim=-1)),
        "view directions": _range(rays.viewdirs),
        "near, far": f"{float(rays.near.min()):g}, {float(rays.far.max()):g}",
        "sampled space": _box(ends),
        "a training batch": _milliseconds(lambda: method.next_batch(scene, 0, generator.manual_seed(0))),
    }
    return report | _meeting(scene)


def _field(trainer: Trainer, picture: Path) -> dict[str, Any]:
    """Density on a slice through the scene's middle (untrained: what initialisation gives)."""
    scene, method = trainer.scene, trainer.method
    side = 128
    centre = torch.zeros(3) if scene.ndc else rays_meet(scene.cameras).point.float()
    extent = 1.0 if scene.ndc else (scene.far - scene.near) / 2
    u, v = torch.meshgrid(torch.linspace(-extent, extent, side), torch.linspace(-extent, extent, side), indexing="ij")
    points = torch.stack([v, -u, torch.zeros_like(u)], -1).reshape(-1, 3) + centre
    with torch.no_grad():
        density = method.density(points.to(method.device)).cpu()
        timing = _milliseconds(lambda: method.density(points.to(method.device)))
    write_png(picture, colorize(density.reshape(side, side), 0.0, float(density.max()) + 1e-9))
    return {
        "parameters": f"{sum(p.numel() for p in method.parameters()):,}",
        "points": _range(points),
        "density": _range(density),
        f"{side * side} densities": timing,
    }


def _method(trainer: Trainer, picture: Path) -> dict[str, Any]:
    """Training steps of the method, their timing beside the machine's matrix product, and a view of the result."""
    scene, method = trainer.scene, trainer.method
    seconds = median_seconds(trainer.step, 5)
    result = trainer.step()
    view = (scene.splits.get("test") or scene.splits["train"])[0]
    camera = scene.cameras[view].rescale(min(1.0, 64 / float(scene.cameras.width[view])))
    write_png(picture, render_view(method, scene, camera, 0, trainer.state.chunk).rgb)
    report = {
        "parameters": f"{sum(p.numel() for p in method.parameters()):,}",
        "batch": f"{len(result.batch)} rays, {method.samples_per_ray()} samples each, {trainer.state.chunk} rays at a time",
    }
    for name in ("rgb", "depth", "opacity", "disparity"):
        value = getattr(result.rendering, name)
        if value is not None:
            report[name] = _range(value.detach())
    report |= {f"loss {name}": f"{float(value):.5f}" for name, value in result.losses.items()}
    precision = str(method.precision).removeprefix("torch.")
    report["a training step"] = f"{seconds:.3f} s in {precision} (median of 5), {len(result.batch) / seconds:,.0f} rays/s"
    for dtype in (torch.float32, torch.bfloat16):
        report[f"matrix peak {str(dtype).removeprefix('torch.')}"] = f"{matrix_peak(method.device, dtype) / 1e9:,.0f} GFLOP/s"
    return report
