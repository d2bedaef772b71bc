"""A loss on whole views: perceptual on training views, semantic on poses without a picture (DietNeRF, Jain et al. 2021)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.poses import pose_between, rays_meet
from nerfit.errors import ConfigError
from nerfit.methods.base import Method
from nerfit.metrics.clip import load_clip
from nerfit.metrics.lpips import find_weights, load_lpips
from nerfit.metrics.networks import PictureMetric
from nerfit.sampling.shuffle import mix
from nerfit.scenes.scene import Scene, composite

CORNERS = 3
"""Number of training cameras that a camera in between is mixed from."""


@dataclass
class PerceptualConfig:
    """A loss on whole views beside the loss on single pixels."""

    net: Literal["none", "alex", "vgg", "clip"] = "none"
    """Network that compares views; alex and vgg are those of LPIPS."""
    weight: float = 0.01
    """Factor of the loss."""
    every: int = 10
    """Steps between views that have this loss."""
    size: int = 64
    """Largest number of pixels along a view's longer side."""
    stride: int | None = None
    """Distance in pixels between the rendered pixels of a view; none = the whole view fits in size, 1 = a patch at full resolution."""
    between: float = 0.5
    """Share of views from cameras between the training cameras; each is compared with a random training picture."""
    until: float = 1.0
    """Share of the budget after which the loss ends."""
    clip: str = "openai/clip-vit-base-patch32"
    """Folder with config.json and model.safetensors of a CLIP model, or its name on Hugging Face's hub."""

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        if self.net == "none":
            return {f.name: "net is none" for f in fields(self) if f.name != "net"}
        return {} if self.net == "clip" else {"clip": f"net is {self.net}"}


def load_metric(config: PerceptualConfig, lpips_weights: Path | None) -> PictureMetric:
    """The network of a configuration; ConfigError or RunError if its weights are missing or damaged."""
    if config.net == "clip":
        return load_clip(config.clip)
    assert config.net != "none"
    path = find_weights(config.net, lpips_weights)
    if path is None:
        raise ConfigError(f"perceptual.net {config.net} needs a folder with {config.net}.safetensors: --lpips-weights, or $NERFIT_LPIPS.")
    return load_lpips(config.net, path)


class Perceptual:
    """Renders a training view, or one between training views, every few steps, and back-propagates a network's difference."""

    def __init__(self, config: PerceptualConfig, scene: Scene, device: torch.device, lpips_weights: Path | None = None) -> None:
        for key in ("every", "size", "stride"):
            if (given := getattr(config, key)) is not None and given < 1:
                raise ConfigError(f"perceptual.{key} must be at least 1, not {given}.")
        if not config.weight > 0:
            raise ConfigError(f"perceptual.weight must be above 0, not {config.weight:g}; perceptual.net none turns the loss off.")
        if not 0 <= config.between <= 1 or not 0 < config.until <= 1:
            raise ConfigError("perceptual.between and perceptual.until are shares, from 0 to 1.")
        self.config, self.scene, self.metric = config, scene, load_metric(config, lpips_weights).to(device)
        for view in scene.splits["train"]:
            sides = [len(side) for side in self._window(view, torch.Generator())]
            if min(sides) < self.metric.smallest:
                raise ConfigError(
                    f"perceptual.net {config.net} sees pictures of {self.metric.smallest} pixels and more, but views are "
                    f"{sides[1]}x{sides[0]} with perceptual.size {config.size}: make it larger."
                )

    def due(self, step: int, progress: float) -> bool:
        """Whether a step has this loss when ``progress`` of the budget is spent."""
        return step > 0 and step % self.config.every == 0 and progress < self.config.until

    def backward(self, method: Method, seed: int, step: int, chunk: int, scale: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Add the gradient of the loss of a step's view to the method's parameters; returns the loss.

        ``chunk`` rays are rendered at a time; ``scale`` is applied to the loss before it goes backward.
        """
        scene, random = self.scene, torch.Generator().manual_seed(mix(seed, step, 0x9E4C))
        view = self._random_view(random)
        aligned = bool(torch.rand((), generator=random) >= self.config.between)
        background = torch.rand(3, generator=random) if scene.background == "random" else scene.backdrop
        rows, columns = self._window(view, random)
        pixels = (rows[:, None] * scene.cameras.width[view] + columns).flatten()
        colors = scene.colors(torch.full_like(pixels, view), pixels % scene.cameras.width[view], rows.repeat_interleave(len(columns)))
        target, known = composite(colors, background).to(method.device), (colors[:, -1:] > 0).to(method.device)
        mixed = None if aligned else self._pose_between(method, random)

        def render(piece: Tensor) -> Tensor:
            cameras = self._cameras(method)  # again for every piece: learned cameras have a graph, which is freed with it
            if mixed is not None:
                cameras = replace(cameras, c2w=cameras.c2w.detach().index_copy(0, piece.new_tensor([view]), mixed[None].to(cameras.c2w)))
            batch = method.view_batch(scene, cameras, view, piece.to(cameras.c2w.device))
            return method.render(replace(batch, background=background.to(method.device))).rgb

        def loss(rgb: Tensor) -> Tensor:
            rendered = torch.where(known, rgb, target) if scene.masked and aligned else rgb
            shape = (len(rows), len(columns), 3)
            return self.config.weight * self.metric.difference(rendered.reshape(shape), target.reshape(shape), aligned)

        return backward_in_strips(render, pixels, chunk, loss, scale)

    def _cameras(self, method: Method) -> Cameras:
        """The scene's cameras, or the learned ones."""
        learned = method.training_cameras()
        return self.scene.cameras if learned is None else learned

    def _random_view(self, random: torch.Generator) -> int:
        train = self.scene.splits["train"]
        return train[int(torch.randint(len(train), (), generator=random))]

    def _window(self, view: int, random: torch.Generator) -> tuple[Int[Tensor, "rows"], Int[Tensor, "columns"]]:
        """Rows and columns of a view: every stride-th, as many as fit in the size, from a random first one.

        They are pixels of the picture itself: a ray through a larger pixel would show one point instead of the pixel's mean.
        """
        sides = int(self.scene.cameras.height[view]), int(self.scene.cameras.width[view])
        stride = min(self.config.stride or math.ceil(max(sides) / self.config.size), *sides)
        counts = [min(self.config.size, side // stride) for side in sides]
        firsts = [torch.randint(side - stride * (n - 1), (), generator=random) for side, n in zip(sides, counts, strict=True)]
        rows, columns = (first + stride * torch.arange(n) for first, n in zip(firsts, counts, strict=True))
        return rows, columns

    @torch.no_grad()
    def _pose_between(self, method: Method, random: torch.Generator) -> Float[Tensor, "3 4"]:
        """A random pose between three random training cameras; for an object scene, around the point that they look at."""
        train = self._cameras(method).to("cpu")[self.scene.splits["train"]]
        chosen = torch.randperm(len(train), generator=random)[:CORNERS]
        shares = -torch.rand(len(chosen), generator=random).clamp(min=1e-9).log()
        around = rays_meet(train).point if self.scene.bounds == "object" and not self.scene.ndc else None
        return pose_between(train.c2w[chosen], shares / shares.sum(), around)


def backward_in_strips(
    render: Callable[[Int[Tensor, "n"]], Float[Tensor, "n 3"]],
    pixels: Int[Tensor, "pixels"],
    chunk: int,
    loss: Callable[[Float[Tensor, "pixels 3"]], Tensor],
    scale: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Back-propagate a loss on a whole picture through ``render``, with the graph of ``chunk`` pixels at a time; returns the loss.

    By the chain rule: the picture is rendered without a graph, which gives the gradient of the loss by its colours; then each strip is
    rendered again and takes its part of that gradient. ``render`` must give the same colours twice. Exact, for a third more work.
    """
    *strips, last = pixels.split(chunk)
    with torch.no_grad():
        done = [render(strip) for strip in strips]
    rendered = render(last)
    picture = torch.cat([*done, rendered.detach()]).requires_grad_()
    value = loss(picture)
    *gradients, gradient = torch.autograd.grad(scale(value), picture)[0].split(chunk)
    rendered.backward(gradient)
    for strip, gradient in zip(strips, gradients, strict=True):
        render(strip).backward(gradient)
    return value.detach()
