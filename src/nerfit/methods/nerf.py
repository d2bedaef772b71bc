"""NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis (Mildenhall et al. 2020)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nerfit.cameras.learned import CameraConfig, learned_cameras
from nerfit.errors import ConfigError, require_min
from nerfit.fields.nerf_field import NerfField, NerfFieldConfig
from nerfit.kernels.inverse_cdf import sample_pdf
from nerfit.methods.base import CaptureConfig, Method
from nerfit.methods.batch import Batch
from nerfit.methods.pixel_batches import PixelBatchConfig, colour_error, pixel_batch
from nerfit.metrics.psnr_ssim import psnr
from nerfit.rendering.volume import Rendering, composite_samples, intervals, render_weights
from nerfit.sampling.along_rays import require_inverse_depth, stratified
from nerfit.scenes.scene import Scene


@dataclass
class NerfConfig(PixelBatchConfig, NerfFieldConfig, CaptureConfig):
    """The networks, their samples and the batch."""

    fine_depth: int | None = None
    """Layers of the fine network; none = as the coarse one."""
    fine_width: int | None = None
    """Channels of the fine network; none = as the coarse one."""
    samples: int = 64
    """Stratified samples per ray for the coarse network."""
    fine_samples: int = 128
    """Importance samples per ray added for the fine network; 0 = coarse network only."""
    jitter: bool = True
    """Jitter samples while training."""
    lindisp: bool = False
    """Space coarse samples evenly in inverse depth (not with NDC)."""
    camera: CameraConfig = field(default_factory=CameraConfig)
    """Learning the cameras too."""

    def check(self, scene: Scene) -> None:
        """Raise ConfigError for values that can't work with a scene."""
        self.check_field()
        self.check_pixels()
        require_min("model.", self, fine_depth=1, fine_width=2, samples=1, fine_samples=0)
        if self.samples < 3 and self.fine_samples:  # 3 samples have 2 middles, and one bin between these
            raise ConfigError("model.samples must be at least 3 to place importance samples.")
        require_inverse_depth(self.lindisp, scene)

    def unused(self) -> dict[str, str]:
        """Keys that have no effect beside the others, and why."""
        deepest = max(self.depth, self.fine_depth or 0) if self.fine_samples else self.depth
        keys = self.unused_of_pixels() | self.unused_of_field(deepest)
        if self.fine_samples == 0:
            keys |= {"fine_depth": "fine_samples is 0", "fine_width": "fine_samples is 0"}
        if self.camera.learn and not (self.frequencies or (self.viewdirs and self.view_frequencies)):
            keys |= dict.fromkeys(("camera.coarse_from", "camera.coarse_until"), "there are no octaves to open from coarse to fine")
        return keys


class Nerf(Method):
    """Coarse and fine networks over frequency-encoded positions, volume-rendered by quadrature."""

    Config = NerfConfig

    def __init__(self, config: NerfConfig, scene: Scene) -> None:
        super().__init__()
        config.check(scene)
        self.config = c = config
        # The original's last interval is infinite. Softplus is never 0 and would be opaque there, so an object's rays end at far then.
        self.last_ends_at_far = c.density_activation == "softplus" and scene.bounds == "object" and not scene.ndc
        self.cameras = learned_cameras(c.camera, scene.cameras, scene.splits["train"], scene.ndc, boxed=False)
        self.mean_area = c.mean_area(scene)  # of a pixel; None unless the loss weighs pixels by their areas
        self.coarse = NerfField(c, c.depth, c.width)
        self.fine = NerfField(c, c.fine_depth or c.depth, c.fine_width or c.width) if c.fine_samples else None
        self.set_capture(c, scene)

    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """Rays of one random image, or of all, from the central crop at first (section 5.3 and the released configs)."""
        c = self.config
        return pixel_batch(self.pixel_source(scene, step, generator), c.rays, c.batching, c.crop(step))

    def render(self, batch: Batch) -> Rendering:
        """Coarse samples, then all of them and fine ones where the coarse weights are (section 5.2); `sample_pdf` passes no gradient."""
        c, rays = self.config, batch.rays
        assert rays is not None
        jitter = batch.uniform if c.jitter else lambda *_: None  # None: even distances, as in evaluation too
        t = stratified(rays.near, rays.far, c.samples, jitter(len(rays), c.samples), c.lindisp)
        coarse = self._march(self.coarse, batch, t)
        if self.fine is None:
            return coarse
        mids = 0.5 * (t[:, 1:] + t[:, :-1])
        assert coarse.weights is not None and coarse.opacity is not None
        # The bins between the middles lie around the inner samples.
        extra = sample_pdf(mids, coarse.weights[:, 1:-1], c.fine_samples, jitter(len(rays), c.fine_samples))
        fine = self._march(self.fine, batch, torch.sort(torch.cat([t, extra], -1), -1).values)
        fine.extras = {"rgb_coarse": coarse.rgb, "opacity_coarse": coarse.opacity}
        return fine

    def _march(self, network: NerfField, batch: Batch, t: Tensor) -> Rendering:
        """Rays rendered from their samples at t [rays, samples], in lengths of their directions (equation 3)."""
        rays = batch.rays
        assert rays is not None
        points = rays.origins[:, None] + rays.directions[:, None] * t[..., None]
        with self.autocast():
            density, rgb = network(points, rays.viewdirs, self._opened(), noise=batch.normal)
        delta = intervals(t, rays.directions.norm(dim=-1), far=rays.far if self.last_ends_at_far else None)
        return composite_samples(render_weights(density, delta), rgb, t, batch.background)

    def _opened(self) -> float:
        """Open share of the encodings' octaves: less than 1 at first where cameras are learned (BARF)."""
        return self.config.camera.opened(self.progress)

    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Squared colour error of one network or both (equation 6), weighted by the pixels' areas if the config asks for it."""
        losses = {"rgb": colour_error(rendering.rgb, batch, self.mean_area)}
        if "rgb_coarse" in rendering.extras:
            losses["rgb_coarse"] = colour_error(rendering.extras["rgb_coarse"], batch, self.mean_area)
        return losses

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """PSNR of the coarse network, beside that of the fine one."""
        assert batch.target is not None
        return {} if self.fine is None else {"psnr_coarse": psnr(rendering.extras["rgb_coarse"], batch.target)}

    def density(self, points: Tensor) -> Tensor:
        """Density of the finest network at points (in NDC for forward-facing scenes)."""
        with self.autocast():
            return (self.fine or self.coarse).density(points, self._opened())

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour of the finest network."""
        with self.autocast():
            density, rgb = (self.fine or self.coarse)(points[:, None], viewdirs, self._opened())
        return density[:, 0], rgb[:, 0]

    def samples_per_ray(self) -> int:
        """Coarse samples, and all samples again for the fine network."""
        c = self.config
        return c.samples + (c.samples + c.fine_samples if c.fine_samples else 0)

    def floats_per_ray(self) -> int:
        """Activations kept by both networks."""
        c = self.config
        coarse = c.samples * self.coarse.floats_per_sample()
        return coarse + (0 if self.fine is None else (c.samples + c.fine_samples) * self.fine.floats_per_sample())
