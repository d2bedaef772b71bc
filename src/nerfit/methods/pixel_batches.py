"""The batch that most methods train on: random pixels of one image or of all images, with their rays; and its colour error."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.errors import ConfigError, SceneError, require_min
from nerfit.kernels.layouts import PixelTable
from nerfit.kernels.pixels import draw_pixels
from nerfit.methods.batch import Batch, Part
from nerfit.sampling.share import WHOLE, Share
from nerfit.sampling.shuffle import epoch_indices, mix, permute
from nerfit.scenes.scene import Scene, composite

Pixels = tuple[Int[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"], Float[Tensor, "n channels"]]
"""View, column, row and stored colour of pixels."""
Draw = Callable[[int, int, Share], tuple[Pixels, int]]
"""From a key and a seed to a device's share of the drawn pixels, and how many all devices draw."""
_TRIES = 100
_PIXELS_PER_POINT = 4
"""One pixel in which a point of the scene is visible is added for this many others."""


@dataclass
class PixelBatchConfig:
    """How a step's pixels are drawn."""

    batching: Literal["image", "all"] = "image"
    """Draw a step's rays from one random image or from all images, without replacement either way."""
    area_weights: bool = False
    """Weight each pixel's loss by its area, for pictures of several sizes (mip-NeRF's comparison; with batching all)."""
    rays: int = 1024
    """Rays per step."""
    precrop_steps: int = 0
    """Number of first steps that train on the central part of each image."""
    precrop_fraction: float = 0.5
    """Side of that central part over the side of the image."""

    def check_pixels(self) -> None:
        """Raise ConfigError for numbers that can't work."""
        require_min("model.", self, rays=1, precrop_steps=0)
        if not 0 < self.precrop_fraction <= 1:
            raise ConfigError(f"model.precrop_fraction must be above 0 and at most 1, not {self.precrop_fraction:g}.")

    def unused_of_pixels(self) -> dict[str, str]:
        """Keys without effect, and why."""
        unused = {"area_weights": "batching is image, which draws every view equally often"} if self.batching == "image" else {}
        return unused | ({} if self.precrop_steps else {"precrop_fraction": "precrop_steps is 0"})

    def crop(self, step: int) -> float:
        """Side of the part of the images that a step trains on over their side."""
        return self.precrop_fraction if step < self.precrop_steps else 1.0

    def mean_area(self, scene: Scene) -> float | None:
        """`mean_area` where the loss is weighted by area."""
        return mean_area(scene) if self.area_weights and self.batching == "all" else None


@dataclass
class PixelSource:
    """What the pixels of a training step are drawn from; `Method.pixel_source` makes it."""

    scene: Scene
    step: int
    generator: torch.Generator
    """The step's source of random numbers."""
    device: torch.device
    """Where the batch goes."""
    seed: int = 0
    """The run's seed, which decides the order of a walk through all pixels."""
    cameras: Cameras | None = None
    """Cameras (`Method.training_cameras`) in place of the scene's own."""
    depths: bool = False
    """Whether known depths are added: those of depth maps, else of a quarter as many pixels more in which points are visible."""
    share: Share = WHOLE
    """The part of the batch that this device takes."""


def pixel_batch(source: PixelSource, count: int, batching: str, crop: float = 1.0) -> Batch:
    """``count`` training pixels with rays and target colours, drawn without replacement.

    ``batching`` "image": from one random view (fewer if the view is smaller). "all": a shuffled walk through all
    training pixels; ``crop`` < 1 keeps to each image's central part (rows H/2 ± H/2·crop, the same for columns).
    Pixels hidden by masks are drawn but left out.
    """
    scene = source.scene
    views = torch.tensor(scene.splits["train"])
    left, top, width, height = _central_parts(scene.cameras.width[views], scene.cameras.height[views], crop)
    sizes = width * height

    def draw(key: int, seed: int, share: Share) -> tuple[Pixels, int]:
        whole = count
        if batching == "image":
            chosen = torch.randint(len(views), (1,), generator=torch.Generator().manual_seed(key))
            size = int(sizes[chosen])
            whole = min(count, size)
            inside = permute(share.indices(whole), size, key)
            chosen = chosen.expand(len(inside))
        else:
            ends = sizes.cumsum(0)
            index = epoch_indices(source.step, count, int(ends[-1]), seed, share)
            chosen = torch.searchsorted(ends, index, right=True)
            inside = index - (ends - sizes)[chosen]
        x = left[chosen] + inside % width[chosen]
        y = top[chosen] + torch.div(inside, width[chosen], rounding_mode="floor")
        return (views[chosen], x, y, scene.colors(views[chosen], x, y)), whole

    return _batch(source, draw)


def random_pixels(source: PixelSource, count: int, empty: float) -> Batch:
    """``count`` training pixels with rays and target colours, drawn with replacement.

    A fully transparent pixel is kept with probability ``empty``. Pixels hidden by masks are passed over, and left out where twelve in a
    row are hidden.
    """
    scene = source.scene
    views = torch.tensor(scene.splits["train"])
    table = PixelTable(scene.stored_pixels, scene.starts, scene.cameras.width, scene.cameras.height)
    empty = 0.0 if scene.masked else empty

    def draw(key: int, seed: int, share: Share) -> tuple[Pixels, int]:
        return draw_pixels(table, views, count, key, empty, share.rank, share.world_size), count

    return _batch(source, draw)


def _central_parts(width: Tensor, height: Tensor, crop: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, width and height of the central part of images, ``crop`` of their sides."""
    left, top = torch.zeros_like(width), torch.zeros_like(height)
    if crop >= 1:
        return left, top, width, height
    half_w, half_h = (width * crop / 2).long().clamp(min=1), (height * crop / 2).long().clamp(min=1)
    left, top = (width // 2 - half_w).clamp(min=0), (height // 2 - half_h).clamp(min=0)
    return left, top, torch.minimum(2 * half_w, width), torch.minimum(2 * half_h, height)


def rays_for_samples(samples: int, rays: int, kept: int) -> int:
    """How many rays give about ``samples`` samples if ``rays`` gave ``kept``: a half more or fewer at most.

    At least 64, and at most 2¹⁶ or 4 for each sample.
    """
    return int(min(max(rays * samples / max(kept, 1), 0.5 * rays, 64), 1.5 * rays, max(2**16, 4 * samples)))


def mean_area(scene: Scene) -> float:
    """Mean over the training pixels of the squared radius of their cones (`Rays.pixel_radius`)."""
    views = torch.tensor(scene.splits["train"])
    corner = torch.zeros_like(views)
    pixels = (scene.cameras.width * scene.cameras.height)[views]
    return float((scene.rays(views, corner, corner).pixel_radius.square() * pixels).sum() / pixels.sum())


def colour_error(rgb: Tensor, batch: Batch, area: float | None = None) -> Tensor:
    """Mean squared error of a batch's colours [rays, 3]; with a mean ``area`` each pixel counts by its own (mip-NeRF, section 4.1)."""
    assert batch.target is not None
    if area is None:
        return F.mse_loss(rgb, batch.target)
    assert batch.rays is not None
    weight = batch.rays.pixel_radius.detach().square() / area
    return (weight * (rgb - batch.target).square().mean(-1)).mean()


def _batch(source: PixelSource, draw: Draw) -> Batch:
    """Rays and colours of a share of the pixels that ``draw`` takes, over the scene's background or a random one each."""
    scene, share, device, cameras = source.scene, source.share, source.device, source.cameras
    key = source.generator.initial_seed()
    if scene.masked:  # every device draws all pixels, since their number depends on how many the masks hide
        pixels = _visible(scene, draw, source.seed, key)
        whole = len(pixels[0])
        if share.world_size > 1:
            view, x, y, colors = (value[share.indices(whole)] for value in pixels)
            pixels = view, x, y, colors
    else:
        pixels, whole = draw(key, source.seed, share)
    part = Part(share.indices(whole), whole)
    depth = weight = None
    if source.depths:
        pixels, part, depth, weight = _with_depths(source, pixels, part, key)
        depth, weight = depth.to(device), weight.to(device)
    view, x, y, colors = pixels
    colors = colors.to(device)
    batch = Batch(generator=source.generator, depth=depth, depth_weight=weight, part=part if share.world_size > 1 else None)
    background = batch.uniform(len(colors), 3) if scene.background == "random" else scene.backdrop.to(device)
    assert background is not None
    where = view.device if cameras is None else cameras.c2w.device
    rays = scene.rays(view.to(where), x.to(where), y.to(where), cameras).to(device)
    return replace(batch, rays=rays, target=composite(colors, background), background=background)


def _with_depths(source: PixelSource, pixels: Pixels, part: Part, key: int) -> tuple[Pixels, Part, Tensor, Tensor]:
    """The pixels, and without depth maps others in which points are visible; the distances t of all, and the factors of their errors."""
    scene, share = source.scene, source.share
    view, x, y, colors = pixels
    if scene.depths is not None:
        depth = scene.depths[scene.starts[view] + y * scene.cameras.width[view] + x]
        trust = (depth > 0).float()
    else:
        assert scene.points is not None
        more = -(-part.whole // _PIXELS_PER_POINT)
        chosen = torch.randint(len(scene.points), (more,), generator=torch.Generator().manual_seed(mix(key, 0xDE)))
        points = scene.points[chosen[share.indices(more)]]
        part = Part(torch.cat([part.indices, part.whole + share.indices(more)]), part.whole + more)
        none = torch.zeros(len(view))
        depth, trust = torch.cat([none, points.depth]), torch.cat([none, points.trust])
        view, x, y = (torch.cat(pair) for pair in ((view, points.view), (x, points.x), (y, points.y)))
        colors = torch.cat([colors, scene.colors(points.view, points.x, points.y)])
    distance, weight = scene.distances(view, x, y, depth, source.cameras)
    return (view, x, y, colors), part, distance, trust * weight


def _visible(scene: Scene, draw: Draw, seed: int, key: int) -> Pixels:
    """Pixels without those that masks hide; drawn again with another key and seed where none is left."""
    pixels, _ = draw(key, seed, WHOLE)
    for attempt in range(_TRIES):
        visible = pixels[3][:, 3] > 0
        if visible.any():
            return pixels[0][visible], pixels[1][visible], pixels[2][visible], pixels[3][visible]
        pixels, _ = draw(mix(key, attempt), mix(seed, attempt), WHOLE)
    raise SceneError(f"{scene.name}: the masks hide nearly everything; do they show what to hide in black?")
