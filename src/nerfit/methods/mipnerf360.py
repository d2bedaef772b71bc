"""Mip-NeRF 360: Unbounded Anti-Aliased Neural Radiance Fields (Barron et al. 2022)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfit.errors import ConfigError, require_above, require_min
from nerfit.fields.frequency import encoded_size, frequency_encoding
from nerfit.fields.integrated import icosahedron_basis, integrated_encoding, lift
from nerfit.fields.mlp import Layers, NerfMLP, perceptron, unused_skips
from nerfit.methods.base import CaptureConfig, Method
from nerfit.methods.batch import Batch
from nerfit.methods.mipnerf import widened_sigmoid
from nerfit.methods.pixel_batches import pixel_batch
from nerfit.rendering.distortion import distortion
from nerfit.rendering.losses import charbonnier, interlevel
from nerfit.rendering.volume import Rendering, over_background, render_weights
from nerfit.sampling.along_rays import spaced
from nerfit.sampling.frustums import PointGaussians, contract, ray_gaussians
from nerfit.sampling.histograms import annealed, dilated, resample
from nerfit.scenes.scene import Scene


@dataclass
class MipNerf360Config(CaptureConfig):
    """The two networks and their samples; the defaults are the paper's."""

    depth: int = 8
    """Layers of the field's network."""
    width: int = 1024
    """Channels of its layers."""
    skips: list[int] = field(default_factory=lambda: [4])
    """Its layers (from 0) after which the encoded position joins again."""
    bottleneck: int = 256
    """Channels that go from its layers to its colour."""
    view_width: int = 128
    """Channels of the layer that sees the view direction."""
    proposal_depth: int = 4
    """Layers of the proposal network, which all proposal levels share."""
    proposal_width: int = 256
    """Channels of the proposal network."""
    basis: Literal["icosahedron", "axes"] = "icosahedron"
    """Directions along which positions are encoded: 21 through an icosahedron, or the 3 axes."""
    frequencies: int = 12
    """Octaves of the integrated position encoding."""
    view_frequencies: int = 4
    """Octaves of the direction encoding; 0 = raw directions."""
    proposal_samples: list[int] = field(default_factory=lambda: [64, 64])
    """Intervals per ray of each proposal level."""
    samples: int = 32
    """Intervals per ray of the field."""
    contracted: bool | None = None
    """Contract space around the unit ball, sample in inverse depth and let rays end opaque; none = in unbounded scenes."""
    anneal: float = 10.0
    """How fast proposals are believed, from flat at the first step on; 0 = at once."""
    dilation: float = 0.5
    """Weights are spread by so many expected intervals before the next level is drawn."""
    least_dilation: float = 0.0025
    """And by this share of the whole ray."""
    jitter: bool = True
    """Move all samples of a ray by one random number while training."""
    density_bias: float = -1.0
    """Added to the raw density before its softplus."""
    rgb_padding: float = 0.001
    """How far colours reach beyond [0, 1], so that black and white keep a gradient."""
    charbonnier: float = 0.001
    """Colour error below which the loss is quadratic; 0 = squared error."""
    interlevel: float = 1.0
    """Factor of the loss that keeps proposals above the field's weights."""
    distortion: float = 0.01
    """Factor of the distortion loss, which wants one surface on each ray."""
    batching: Literal["image", "all"] = "all"
    """Draw a step's rays from one random image or from all images, without replacement either way."""
    rays: int = 16384
    """Rays per step."""

    def check(self) -> None:
        """Raise ConfigError for values that can't work."""
        sizes = {"depth": 1, "width": 2, "bottleneck": 1, "view_width": 1, "proposal_depth": 1, "proposal_width": 2}
        require_min("model.", self, **sizes, frequencies=1, view_frequencies=0, samples=2, rays=1)
        require_min("model.", self, anneal=0, dilation=0, charbonnier=0, interlevel=0, distortion=0)
        require_above("model.", self, least_dilation=0)
        if min(self.proposal_samples, default=0) < 2:
            raise ConfigError("model.proposal_samples must name at least one level, each of at least 2 samples.")

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        return unused_skips(self.skips, self.depth)


class MipNerf360(Method):
    """A proposal network says where samples of the field shall lie, in space contracted around the cameras."""

    Config = MipNerf360Config
    default_steps: ClassVar[int] = 250_000
    default_recipe: ClassVar[str | None] = "mipnerf360"

    basis: Tensor

    def __init__(self, config: MipNerf360Config, scene: Scene) -> None:
        super().__init__()
        self.config = c = config
        c.check()
        self.contracted = scene.bounds == "unbounded" and not scene.ndc if c.contracted is None else c.contracted
        if self.contracted and (scene.ndc or scene.near <= 0):
            raise ConfigError("model.contracted needs a scene without NDC and a near distance above 0: set --scene.near, --scene.no-ndc.")
        self.register_buffer("basis", icosahedron_basis() if c.basis == "icosahedron" else torch.eye(3), persistent=False)
        size, directions = 2 * len(self.basis) * c.frequencies, encoded_size(3, c.view_frequencies)
        self.proposal = perceptron(size, c.proposal_depth, c.proposal_width, 1, "he")
        self.field = NerfMLP(size, directions, Layers(c.depth, c.width, c.skips), "he", c.bottleneck, c.view_width)
        self.ndc, self.point_gaussians = scene.ndc, PointGaussians(scene)
        self.set_capture(c, scene)

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Rays of all images, or of a random one."""
        return pixel_batch(self.pixel_source(scene, step, generator), self.config.rays, self.config.batching)

    def render(self, batch: Batch) -> Rendering:
        """What the field's few samples show; of training rays also the losses on the histograms of all levels."""
        rays = batch.rays
        assert rays is not None
        (*proposals, (s, weights)), rgb = self._march(batch)
        t = spaced(rays.near, rays.far, s, self.contracted)
        middle, opacity = 0.5 * (t[:, 1:] + t[:, :-1]), weights.sum(-1)
        # The mean of log t, for a mean of t would hang on the interval that ends at the horizon.
        depth = opacity * ((weights * middle.clamp(min=1e-10).log()).sum(-1) / opacity.clamp(min=1e-10)).exp()
        rendering = over_background((weights[..., None] * rgb).sum(-2), opacity, depth, batch.background, weights)
        if batch.generator is not None:
            bounds = torch.stack([interlevel(s, weights, edges, proposed) for edges, proposed in proposals])
            rendering.extras = {"interlevel": bounds.sum(0), "distortion": distortion(weights, s)}
        return rendering

    def _march(self, batch: Batch) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Edges in [0, 1] and weights of each level's histogram, the field's last, and the field's colours (section 3)."""
        c, rays = self.config, batch.rays
        assert rays is not None
        levels: list[tuple[Tensor, Tensor]] = []
        s, weights = torch.tensor([0.0, 1.0], device=self.device).expand(len(rays), 2), torch.ones(len(rays), 1, device=self.device)
        intervals, rgb = 1, weights
        for samples in (*c.proposal_samples, c.samples):
            if levels:
                s, weights = dilated(s, weights.detach(), c.least_dilation + c.dilation / intervals)
            intervals *= samples
            weights = annealed(weights, self.progress, c.anneal) if c.anneal else weights
            s = resample(s, weights, samples, batch.uniform(len(rays), 1) if c.jitter else None)
            t = spaced(rays.near, rays.far, s, self.contracted)
            encoded = self._encode(*ray_gaussians(rays, t, self.ndc))
            if len(levels) < len(c.proposal_samples):
                with self.autocast():
                    raw = self.proposal(encoded)[..., 0]
            else:
                with self.autocast():
                    raw, raw_rgb = self.field(encoded, frequency_encoding(rays.viewdirs, c.view_frequencies))
                rgb = widened_sigmoid(raw_rgb.float(), c.rgb_padding)
            delta = t.diff() * rays.directions.norm(dim=-1)[:, None]
            if self.contracted:
                delta[:, -1] = 1e10
            weights = render_weights(self._activate(raw), delta)
            levels.append((s, weights))
        return levels, rgb

    def _encode(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Gaussians, contracted, along the axes of the basis, as waves."""
        mean, covariance = contract(mean, covariance) if self.contracted else (mean, covariance)
        return integrated_encoding(*lift(mean, covariance, self.basis), self.config.frequencies)

    def _activate(self, raw: Tensor) -> Tensor:
        return F.softplus(raw.float() + self.config.density_bias)

    def histograms(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Of the proposals and of the field, on the scale that samples are spaced on."""
        return self._march(batch)[0]

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Charbonnier loss of the colours, proposals above the field's weights, and one surface on each ray (section 4)."""
        assert batch.target is not None
        c, seen = self.config, rendering.extras
        rgb = charbonnier(rendering.rgb, batch.target, c.charbonnier).mean() if c.charbonnier else F.mse_loss(rendering.rgb, batch.target)
        return {"rgb": rgb, **{name: getattr(c, name) * seen[name].mean() for name in ("interlevel", "distortion")}}

    def density(self, points: Tensor) -> Tensor:
        """Density of the field around points (in NDC for forward-facing scenes), as wide as a training pixel."""
        with self.autocast():
            raw = self.field.raw_density(self._encode(*self.point_gaussians(points)))
        return self._activate(raw)

    def samples_per_ray(self) -> int:
        """Samples of all levels."""
        return sum(self.config.proposal_samples) + self.config.samples

    def floats_per_ray(self) -> int:
        """Activations kept by both networks, and what leads to them."""
        c, encoded = self.config, 4 * 2 * len(self.basis) * self.config.frequencies
        proposals = sum(c.proposal_samples) * (encoded + c.proposal_depth * c.proposal_width)
        return proposals + c.samples * (encoded + (c.depth + 1) * c.width)
