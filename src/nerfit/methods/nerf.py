"""NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis (Mildenhall et al. 2020)."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.cameras import Rays
from nerfit.cameras.learned import CameraConfig, learned_cameras
from nerfit.errors import ConfigError
from nerfit.fields.frequency import encoded_size, frequency_encoding, opened_levels
from nerfit.fields.mlp import NerfMLP, unused_skips
from nerfit.fields.siren import SirenMLP
from nerfit.kernels.dispatch import warm_up
from nerfit.kernels.inverse_cdf import sample_pdf
from nerfit.kernels.layouts import Cutoffs, Samples
from nerfit.kernels.marching import keep_visible
from nerfit.methods.base import Batch, CaptureConfig, Method, require_inverse_depth, require_model_min
from nerfit.methods.batches import colour_error, mean_area, pixel_batch
from nerfit.metrics.psnr_ssim import psnr
from nerfit.rendering.volume import Rendering, composite_samples, intervals, render_packed, render_weights
from nerfit.sampling.along_rays import stratified
from nerfit.sampling.space import OccupiedSpace
from nerfit.scenes.scene import Scene

CUTOFFS = Cutoffs(min_weight=1e-4, early_stop=1e-3)
"""Samples that get a colour and a gradient, with an occupancy grid."""
WARMUP_DECAY = 0.6
"""What the grid keeps in each update at first: its updates are few, since the network is slow."""
_PIECE = 1 << 16
Normal = Callable[..., Tensor | None]
"""Normal numbers of a shape."""


@dataclass
class NerfConfig(CaptureConfig):
    """Every switch of the original programs; the defaults are the paper's, with a density that can't die."""

    network: Literal["relu", "siren"] = "relu"
    """Layers that end in ReLU, or in sines, which want raw coordinates (frequencies 0) and no skips."""
    first_w0: float = 30.0
    """Frequency of the first sine layer."""
    hidden_w0: float = 1.0
    """Frequency of the other sine layers."""
    depth: int = 8
    """Layers of the network."""
    width: int = 256
    """Channels per layer."""
    skips: list[int] = field(default_factory=lambda: [4])
    """Layers (from 0) after which the encoded position joins again."""
    fine_depth: int | None = None
    """Layers of the fine network; none = as the coarse one."""
    fine_width: int | None = None
    """Channels of the fine network; none = as the coarse one."""
    viewdirs: bool = True
    """Let colour depend on the view direction."""
    frequencies: int = 10
    """Octaves of the position encoding; 0 = raw coordinates."""
    view_frequencies: int = 4
    """Octaves of the direction encoding; 0 = raw directions."""
    samples: int = 64
    """Stratified samples per ray for the coarse network."""
    fine_samples: int = 128
    """Importance samples per ray added for the fine network; 0 = coarse network only."""
    jitter: bool = True
    """Jitter samples while training."""
    lindisp: bool = False
    """Space coarse samples evenly in inverse depth (not with NDC)."""
    raw_noise: float = 0.0
    """Standard deviation of noise added to the raw density while training."""
    density_activation: Literal["softplus", "relu"] = "softplus"
    """softplus(x - 1), which never loses its gradient, or the original ReLU."""
    density_factor: float = 1.0
    """Multiplies the raw density before its activation (improved-nerfmm's siren_sigma_mul)."""
    density_bias: float = 0.0
    """Then added to it; above 0 it keeps a ReLU density alive at the start."""
    init: Literal["glorot", "torch"] = "glorot"
    """Glorot-uniform weights with zero biases (the original), or PyTorch's default."""
    batching: Literal["image", "all"] = "image"
    """Draw a step's rays from one random image or from all images, without replacement either way."""
    area_weights: bool = False
    """Weight each pixel's loss by its area, for pictures of several sizes (mip-NeRF's comparison; with batching all)."""
    rays: int = 1024
    """Rays per step."""
    precrop_steps: int = 0
    """Train on the images' central part for so many steps."""
    precrop_fraction: float = 0.5
    """Side of that central part over the image's side."""
    occupancy: bool = False
    """Skip empty space with an occupancy grid, instead of coarse and fine samples; one network."""
    march_steps: int = 512
    """March steps along the diagonal of the occupancy grid's box."""
    camera: CameraConfig = field(default_factory=CameraConfig)
    """Learning the cameras too."""

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        deepest = max(self.depth, self.fine_depth or 0 if self.fine_samples and not self.occupancy else 0)
        unused = unused_skips(self.skips, deepest)
        if self.occupancy:
            coarse_and_fine = ("samples", "lindisp", "fine_samples", "fine_depth", "fine_width")
            unused |= dict.fromkeys(coarse_and_fine, "occupancy is on, which marches with one network")
        else:
            unused["march_steps"] = "occupancy is off"
            if self.fine_samples == 0:
                unused |= {"fine_depth": "fine_samples is 0", "fine_width": "fine_samples is 0"}
        if not self.viewdirs:
            unused["view_frequencies"] = "viewdirs is off"
        if self.network == "siren":
            unused["init"] = "network is siren, which has its own"
        else:
            unused |= dict.fromkeys(("first_w0", "hidden_w0"), "network is relu")
        if self.camera.learn and not (self.frequencies or (self.viewdirs and self.view_frequencies)):
            unused |= dict.fromkeys(("camera.coarse_from", "camera.coarse_until"), "there are no octaves to open")
        if self.batching == "image":
            unused["area_weights"] = "batching is image, which draws every view equally often"
        if self.precrop_steps == 0:
            unused["precrop_fraction"] = "precrop_steps is 0"
        return unused


class Nerf(Method):
    """Coarse and fine networks over frequency-encoded positions, volume-rendered by quadrature."""

    Config = NerfConfig

    def __init__(self, config: NerfConfig, scene: Scene) -> None:
        super().__init__()
        self.config = config
        require_model_min(config, depth=1, width=2, fine_depth=1, fine_width=2, samples=1, fine_samples=0, rays=1)
        for key in ("first_w0", "hidden_w0", "density_factor"):
            if not getattr(config, key) > 0:
                raise ConfigError(f"model.{key} must be above 0, not {getattr(config, key):g}.")
        require_model_min(config, frequencies=0, view_frequencies=0, raw_noise=0, precrop_steps=0, march_steps=16)
        if not 0 < config.precrop_fraction <= 1:
            raise ConfigError(f"model.precrop_fraction must be above 0 and at most 1, not {config.precrop_fraction:g}.")
        require_inverse_depth(config.lindisp, scene)
        if config.samples < 3 and config.fine_samples and not config.occupancy:
            raise ConfigError("model.samples must be at least 3 to place importance samples.")
        # A density that is never zero would end every ray opaque, so where space ends at far, rays do too.
        self.rays_end = config.density_activation == "softplus" and scene.bounds == "object" and not scene.ndc
        self.cameras = learned_cameras(config.camera, scene.cameras, scene.splits["train"], scene.ndc, boxed=config.occupancy)
        self.mean_area = mean_area(scene) if config.area_weights and config.batching == "all" else None
        self.coarse = self._network(config.depth, config.width)
        self.fine: NerfMLP | None = None
        self.space = OccupiedSpace(scene, config.march_steps, warmup_decay=WARMUP_DECAY) if config.occupancy else None
        if config.fine_samples and not config.occupancy:
            self.fine = self._network(config.fine_depth or config.depth, config.fine_width or config.width)
        self.set_capture(config, scene)

    def _network(self, depth: int, width: int) -> NerfMLP:
        c = self.config
        direction_size = encoded_size(3, c.view_frequencies) if c.viewdirs else 0
        sizes = encoded_size(3, c.frequencies), direction_size, depth, width, c.skips
        return SirenMLP(*sizes, c.first_w0, c.hidden_w0) if c.network == "siren" else NerfMLP(*sizes, c.init)

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Rays of one random image, or of all, from the central crop at first (section 5.3 and the released configs)."""
        c = self.config
        crop = c.precrop_fraction if step < c.precrop_steps else 1.0
        cameras, depths = self.training_cameras(), self.depth_loss > 0
        return pixel_batch(scene, c.rays, c.batching, step, self.seed, generator, self.device, crop, cameras, depths, self.share)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        """Compile the kernels of the march."""
        if self.space is not None:
            warm_up(self.device)
        return super().session()

    def before_step(self, step: int) -> None:
        """Look at some cells of the occupancy grid from time to time."""
        if (space := self.space) is not None:
            space.update(step, lambda x: space.side * self._densities(space.to_scene(x)), self.seed)

    def render(self, batch: Batch) -> Rendering:
        """Coarse samples, then fine ones where the coarse weights are (section 5.2); or those in occupied space that can be seen."""
        c, rays = self.config, batch.rays
        assert rays is not None
        if self.space is not None:
            return self._render_occupied(self.space, batch)
        jitter = batch.uniform if c.jitter else lambda *_: None
        t = stratified(rays.near, rays.far, c.samples, jitter(len(rays), c.samples), c.lindisp)
        rendering = self._march(self.coarse, batch, t)
        if self.fine is None:
            return rendering
        mids = 0.5 * (t[:, 1:] + t[:, :-1])
        assert rendering.weights is not None
        extra = sample_pdf(mids, rendering.weights[:, 1:-1], c.fine_samples, jitter(len(rays), c.fine_samples))
        t = torch.sort(torch.cat([t, extra], -1), -1).values
        fine = self._march(self.fine, batch, t)
        assert rendering.opacity is not None
        fine.extras = {"rgb_coarse": rendering.rgb, "opacity_coarse": rendering.opacity}
        return fine

    def _march(self, network: NerfMLP, batch: Batch, t: Tensor) -> Rendering:
        rays = batch.rays
        assert rays is not None
        points = rays.origins[:, None] + rays.directions[:, None] * t[..., None]
        density, rgb = self._evaluate(network, points, rays.viewdirs, batch.normal)
        delta = intervals(t, rays.directions.norm(dim=-1), rays.far if self.rays_end else None)
        return composite_samples(render_weights(density, delta), rgb, t, batch.background)

    def _evaluate(self, network: NerfMLP, points: Tensor, viewdirs: Tensor, normal: Normal | None) -> tuple[Tensor, Tensor]:
        """Densities and colours at points [rays, samples, 3], noisy where ``normal`` numbers are to be had."""
        position = self._encode(points)
        direction = self._encode_direction(viewdirs)
        with self.autocast():
            raw_density, raw_rgb = network(position, direction if self.config.viewdirs else None)
        raw_density, raw_rgb = raw_density.float(), raw_rgb.float()
        if self.config.raw_noise and normal is not None and (noise := normal(*raw_density.shape)) is not None:
            raw_density = raw_density + noise * self.config.raw_noise
        return self._activate(raw_density), torch.sigmoid(raw_rgb)

    def _render_occupied(self, space: OccupiedSpace, batch: Batch) -> Rendering:
        """March through occupied space; colours and gradients at those samples alone whose weight can be seen."""
        rays = batch.rays
        assert rays is not None
        warm_up(self.device)
        jitter = batch.uniform(len(rays)) if self.config.jitter else None
        marched = space.march(rays, jitter, None if batch.generator is None else self._most_samples())
        norm = rays.directions.norm(dim=-1)
        with torch.no_grad():
            samples = keep_visible(marched, self._densities(_middles(rays, marched)), norm, CUTOFFS)
        space.count(len(rays), samples.evaluated, len(samples))
        points, viewdirs = _middles(rays, samples), rays.viewdirs[samples.ray_indices.long()]
        pieces = zip(points.split(_PIECE), viewdirs.split(_PIECE), strict=True)
        normal = None if (g := batch.generator) is None else lambda *shape: torch.randn(shape, generator=g, device=g.device)
        found = [self._evaluate(self.coarse, p[:, None], d, normal) for p, d in pieces]
        density, rgb = (torch.cat(parts)[:, 0] for parts in zip(*found, strict=True))
        return render_packed(density, rgb, samples, norm, batch.background, CUTOFFS.early_stop)

    def _densities(self, points: Tensor) -> Tensor:
        """Network densities in pieces, for cells and samples of young fields are many."""
        return torch.cat([self._network_density(p) for p in points.split(_PIECE)])

    def _activate(self, raw: Tensor) -> Tensor:
        raw = self.config.density_factor * raw + self.config.density_bias
        return F.relu(raw) if self.config.density_activation == "relu" else F.softplus(raw - 1)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Squared colour error of both networks (equation 6)."""
        losses = {"rgb": colour_error(rendering.rgb, batch, self.mean_area)}
        if "rgb_coarse" in rendering.extras:
            losses["rgb_coarse"] = colour_error(rendering.extras["rgb_coarse"], batch, self.mean_area)
        return losses

    @property
    def counts(self) -> tuple[int, ...]:
        """Rays and samples of the march."""
        return () if self.space is None else self.space.counts

    @counts.setter
    def counts(self, sums: tuple[int, ...]) -> None:
        if self.space is not None:
            self.space.counts = sums

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """PSNR of the coarse network, or how many samples the march took."""
        assert batch.target is not None
        if self.space is not None:
            return self.space.scalars()
        if "rgb_coarse" not in rendering.extras:
            return {}
        return {"psnr_coarse": psnr(rendering.extras["rgb_coarse"], batch.target)}

    def density(self, points: Tensor) -> Tensor:
        """Density of the finest network at points (in NDC for forward-facing scenes); nothing outside the grid, if there is one."""
        return self._in_grid(points, self._network_density(points))

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """The finest network's density, as `density` gives it, and colour."""
        density, rgb = self._evaluate(self.fine or self.coarse, points[:, None], viewdirs, None)
        return self._in_grid(points, density[:, 0]), rgb[:, 0]

    def _in_grid(self, points: Tensor, density: Tensor) -> Tensor:
        return density if self.space is None else torch.where(self.space.to_cascades(points)[1], density, 0.0)

    def _encode(self, points: Tensor) -> Tensor:
        return frequency_encoding(points, n := self.config.frequencies, opened_levels(n, self.config.camera.opened(self.progress)))

    def _encode_direction(self, viewdirs: Tensor) -> Tensor:
        n = self.config.view_frequencies
        return frequency_encoding(viewdirs, n, opened_levels(n, self.config.camera.opened(self.progress)))

    def _network_density(self, points: Tensor) -> Tensor:
        with self.autocast():
            raw = (self.fine or self.coarse).raw_density(self._encode(points))
        return self._activate(raw.float())

    def _most_samples(self) -> int:
        """Samples of a training ray on average, where there is an occupancy grid."""
        return self.config.march_steps // 4

    def samples_per_ray(self) -> int:
        """Coarse samples, and all samples again for the fine network; with an occupancy grid those of the latest step."""
        c = self.config
        if self.space is not None:
            return round(self.space.scalars()["samples_per_ray"])
        return c.samples + (c.samples + c.fine_samples if c.fine_samples else 0)

    def floats_per_ray(self) -> int:
        """Activations kept by both networks, or by the march's at most."""
        c = self.config
        if self.space is not None:
            return self._most_samples() * self._floats_per_sample(c.depth, c.width)
        fine = (c.samples + c.fine_samples) * self._floats_per_sample(c.fine_depth or c.depth, c.fine_width or c.width)
        return c.samples * self._floats_per_sample(c.depth, c.width) + (fine if c.fine_samples else 0)

    def _floats_per_sample(self, depth: int, width: int) -> int:
        return 2 * encoded_size(3, self.config.frequencies) + (depth + 2) * width


def _middles(rays: Rays, samples: Samples) -> Tensor:
    """Points of the scene in the middle of samples."""
    ray = samples.ray_indices.long()
    return rays.origins[ray] + samples.middles[:, None] * rays.directions[ray]
