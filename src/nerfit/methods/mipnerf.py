"""Mip-NeRF: A Multiscale Representation for Anti-Aliasing Neural Radiance Fields (Barron et al. 2021)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.cameras import Rays
from nerfit.errors import require_above, require_min
from nerfit.fields.frequency import encoded_size, frequency_encoding
from nerfit.fields.integrated import integrated_encoding
from nerfit.fields.mlp import Layers, NerfMLP, unused_skips
from nerfit.kernels.inverse_cdf import sample_pdf
from nerfit.methods.base import CaptureConfig, Method
from nerfit.methods.batch import Batch
from nerfit.methods.pixel_batches import colour_error, mean_area, pixel_batch
from nerfit.metrics.psnr_ssim import psnr
from nerfit.rendering.volume import Rendering, composite_samples, render_weights
from nerfit.sampling.along_rays import require_inverse_depth, stratified
from nerfit.sampling.frustums import PointGaussians, ray_gaussians
from nerfit.sampling.histograms import blurred
from nerfit.scenes.scene import Scene


@dataclass
class MipNerfConfig(CaptureConfig):
    """The network and its samples; the defaults are the paper's."""

    depth: int = 8
    """Layers of the network."""
    width: int = 256
    """Channels per layer."""
    skips: list[int] = field(default_factory=lambda: [4])
    """Layers (from 0) after which the encoded position joins again."""
    frequencies: int = 16
    """Octaves of the integrated position encoding."""
    view_frequencies: int = 4
    """Octaves of the direction encoding; 0 = raw directions."""
    samples: int = 128
    """Frustums per ray at each of the two levels."""
    padding: float = 0.01
    """Weight added to every frustum before the second level's are drawn."""
    jitter: bool = True
    """Jitter samples while training."""
    lindisp: bool = False
    """Space the first level's samples evenly in inverse depth (not with NDC)."""
    raw_noise: float = 0.0
    """Standard deviation of noise added to the raw density while training."""
    density_bias: float = -1.0
    """Added to the raw density before its softplus."""
    rgb_padding: float = 0.001
    """How far colours reach beyond [0, 1], so that black and white keep a gradient."""
    coarse_weight: float = 0.1
    """Factor of the first level's loss."""
    batching: Literal["image", "all"] = "image"
    """Draw a step's rays from one random image, or from all images with each pixel's loss weighted by its area."""
    rays: int = 4096
    """Rays per step."""

    def check(self, scene: Scene) -> None:
        """Raise ConfigError for values that can't work with a scene."""
        require_min("model.", self, depth=1, width=2, frequencies=1, view_frequencies=0, samples=2, rays=1, raw_noise=0, rgb_padding=0)
        require_above("model.", self, padding=0)
        require_inverse_depth(self.lindisp, scene)

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        return unused_skips(self.skips, self.depth)


class MipNerf(Method):
    """One network over cone segments instead of points, at two levels of samples: anti-aliased at every scale."""

    Config = MipNerfConfig
    default_steps: ClassVar[int] = 1_000_000
    default_recipe: ClassVar[str | None] = "mipnerf"

    def __init__(self, config: MipNerfConfig, scene: Scene) -> None:
        super().__init__()
        self.config = c = config
        c.check(scene)
        self.network = NerfMLP(6 * c.frequencies, encoded_size(3, c.view_frequencies), Layers(c.depth, c.width, c.skips), "glorot")
        self.ndc, self.point_gaussians = scene.ndc, PointGaussians(scene)
        self.mean_area = mean_area(scene) if c.batching == "all" else None
        self.set_capture(c, scene)

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Rays of one random image, or of all."""
        return pixel_batch(self.pixel_source(scene, step, generator), self.config.rays, self.config.batching)

    def render(self, batch: Batch) -> Rendering:
        """Evenly spread frustums, then as many where the first ones' blurred weights are (section 3.2), through the same network."""
        c, rays = self.config, batch.rays
        assert rays is not None
        posts = c.samples + 1
        jitter = batch.uniform(len(rays), posts) if c.jitter else None
        t = stratified(rays.near, rays.far, posts, jitter, c.lindisp)
        coarse = self._march(batch, rays, t)
        assert coarse.weights is not None and coarse.opacity is not None
        jitter = batch.uniform(len(rays), posts) if c.jitter else None
        share = None if jitter is None else (torch.arange(posts, device=t.device) + jitter) / posts
        t = sample_pdf(t, blurred(coarse.weights), posts, share, c.padding)
        rendering = self._march(batch, rays, t)
        rendering.extras = {"rgb_coarse": coarse.rgb, "opacity_coarse": coarse.opacity}
        return rendering

    def _march(self, batch: Batch, rays: Rays, t: Tensor) -> Rendering:
        """Colour of frustums between neighbouring distances t [rays, samples + 1]."""
        c = self.config
        mean, covariance = ray_gaussians(rays, t, self.ndc)
        direction = frequency_encoding(rays.viewdirs, c.view_frequencies)
        with self.autocast():
            raw_density, raw_rgb = self.network(self._encode(mean, covariance), direction)
        raw_density, raw_rgb = raw_density.float(), raw_rgb.float()
        if c.raw_noise and (noise := batch.normal(*raw_density.shape)) is not None:
            raw_density = raw_density + noise * c.raw_noise
        weights = render_weights(F.softplus(raw_density + c.density_bias), t.diff() * rays.directions.norm(dim=-1)[:, None])
        return composite_samples(weights, widened_sigmoid(raw_rgb, c.rgb_padding), 0.5 * (t[:, 1:] + t[:, :-1]), batch.background)

    def _encode(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Along the coordinate axes the Gaussians' variances are enough (equation 16)."""
        return integrated_encoding(mean, covariance.diagonal(dim1=-2, dim2=-1), self.config.frequencies)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Squared colour error of both levels (equation 17), of pixels of all images by the pixel's area (section 4.1)."""
        coarse = colour_error(rendering.extras["rgb_coarse"], batch, self.mean_area)
        return {"rgb": colour_error(rendering.rgb, batch, self.mean_area), "rgb_coarse": self.config.coarse_weight * coarse}

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """PSNR of the first level."""
        assert batch.target is not None
        return {"psnr_coarse": psnr(rendering.extras["rgb_coarse"], batch.target)}

    def density(self, points: Tensor) -> Tensor:
        """Density around points (in NDC for forward-facing scenes), as wide as a training pixel."""
        with self.autocast():
            raw = self.network.raw_density(self._encode(*self.point_gaussians(points)))
        return F.softplus(raw.float() + self.config.density_bias)

    def samples_per_ray(self) -> int:
        """Frustums of both levels."""
        return 2 * self.config.samples

    def floats_per_ray(self) -> int:
        """Activations kept at both levels, and what leads to them."""
        c = self.config
        return self.samples_per_ray() * (4 * 6 * c.frequencies + (c.depth + 2) * c.width)


def widened_sigmoid(raw: Tensor, padding: float) -> Tensor:
    """Colours from -padding to 1 + padding (mip-NeRF, appendix)."""
    return (1 + 2 * padding) * torch.sigmoid(raw) - padding
