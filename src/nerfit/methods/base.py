"""What a method is: the methods of `Method` in the order in which a new one needs them."""

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfit.cameras import Cameras
from nerfit.cameras.learned import LearnedCameras
from nerfit.cameras.poses import scale_of
from nerfit.errors import ConfigError, require_min
from nerfit.methods.batch import Batch
from nerfit.methods.pixel_batches import PixelSource
from nerfit.rendering.appearance import Appearance, AppearanceConfig, learned_appearance
from nerfit.rendering.losses import depth_error
from nerfit.rendering.volume import Rendering
from nerfit.sampling.share import WHOLE, Share
from nerfit.scenes.scene import Scene


@dataclass
class CaptureConfig:
    """Options of every method that help with captures of the real world."""

    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    """Learning the exposure and white balance of each picture."""
    depth_loss: float = 0.0
    """Factor of the loss on depths, if the scene has some."""


class Method(nn.Module, ABC):
    """A published method: it draws its own batch, renders it, and says what to minimise.

    Subclasses set ``Config`` (a dataclass; its attribute docstrings are the command line's help) and take
    ``(config, scene)``. They are ordinary torch modules: everything to be saved is a parameter or a buffer.
    """

    Config: ClassVar[type]
    default_steps: ClassVar[int] = 200_000
    default_recipe: ClassVar[str | None] = None
    """Shipped recipe that is used if the user names none."""
    scene_formats: ClassVar[tuple[str, ...] | None] = None
    """Scene formats the method accepts; None = every scene with camera poses."""
    batch_key: ClassVar[str] = "rays"
    """Key of the configuration that sets the size of a batch: devices that share one multiply it."""

    # The trainer sets these.
    precision: torch.dtype = torch.float32
    """Type that the networks compute in (`autocast`)."""
    seed: int = 0
    """The run's seed, for orders that span steps."""
    progress: float = 1.0
    """Spent share of the run's budget, for schedules."""
    share: Share = WHOLE
    """The part of each batch that this device takes."""

    def __init__(self) -> None:
        super().__init__()
        self.cameras: LearnedCameras | None = None
        """Cameras that are learned with the scene."""
        self.appearance: Appearance | None = None
        """Colour map of each training picture, learned with the scene."""
        self.depth_loss = 0.0
        """Factor of `depth_error`, for batches with depths."""

    # --- Every method has these three ---------------------------------------------------------------------------------

    @abstractmethod
    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """The batch of a training step, on the model's device; depends on ``step`` and ``generator`` alone.

        `pixel_batch` and `random_pixels` draw it from `pixel_source`. A batch without a `Part` is split by the trainer among the devices.
        """

    @abstractmethod
    def render(self, batch: Batch) -> Rendering:
        """Colours of the batch's rays, with depth and opacity for a radiance field."""

    @abstractmethod
    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms to be summed and minimised, each a mean over the batch's rays."""

    # --- A method has these where it wants to --------------------------------------------------------------------------

    @classmethod
    def sized(cls, config: Any, core_seconds: float | None = None) -> Any:
        """A new run's configuration with the sizes chosen that it leaves open: here there are none.

        The run has ``core_seconds`` of processor cores without matrix units; None: faster hardware, or a budget in steps alone.
        """
        return config

    def before_step(self, step: int) -> None:
        """Called before each training step."""

    def after_step(self, step: int) -> None:
        """Called after each training step."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; ``lr_scale`` multiplies the learning rate of a group.

        Learned cameras and appearance have groups of their own (``parameter_group``), which are not among them.
        A group with ``sparse`` True holds tables most of whose entries have no gradient in a step (optimizer sparse-adam).
        """
        return [{"params": [p for name, p in self.named_parameters() if not name.startswith(("cameras.", "appearance."))]}]

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """Numbers for the log beside the losses, such as ``psnr_coarse``."""
        return {}

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """Volume density (per unit of scene length) at points of the scene."""
        raise ConfigError(f"{type(self).__name__.lower()} has no density: normals and meshes need a radiance field.")

    def radiance(self, points: Float[Tensor, "n 3"], viewdirs: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
        """The same density, and colour in [0, 1], of points in unit view directions."""
        raise ConfigError(f"{type(self).__name__.lower()} has no colours at single points, which a baked field is made of.")

    def floats_per_ray(self) -> int:
        """Roughly how many floats a ray keeps for the backward pass; the automatic chunk size is computed from it."""
        return 4096

    def samples_per_ray(self) -> int:
        """Network evaluations per ray, for the rates that are logged."""
        return 1

    def histograms(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Edges in [0, 1] and weights along the batch's rays of each level of sampling, the field's last; none by default."""
        return []

    def session(self) -> contextlib.AbstractContextManager[Any]:
        """Entered before the training clock starts: here kernels are compiled and threads are assigned."""
        return contextlib.nullcontext()

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers counted in a step on this device; before `after_step` the trainer replaces them by their sums over all devices."""
        return ()

    @counts.setter
    def counts(self, sums: tuple[int, ...]) -> None: ...

    def view_batch(self, scene: Scene, cameras: Cameras, view: int, pixels: Tensor, look: Cameras | None = None) -> Batch:
        """Pixels (flat row-major indices) of one view of ``cameras`` over the scene's background, for evaluation and pictures.

        ``look`` as in `Scene.rays`.
        """
        width = cameras.width[view]
        y, x = torch.div(pixels, width, rounding_mode="floor"), pixels % width
        rays = scene.rays(torch.full_like(pixels, view), x, y, cameras, look)
        return Batch(rays=rays.to(self.device), background=scene.backdrop.to(self.device))

    # --- Every method has these from here ------------------------------------------------------------------------------

    def set_capture(self, config: CaptureConfig, scene: Scene) -> None:
        """Take the options of `CaptureConfig`; ConfigError if the scene (with its images) has no depths to learn from."""
        self.appearance, self.depth_loss = learned_appearance(config.appearance, scene), config.depth_loss
        require_min("model.", config, depth_loss=0)
        if self.depth_loss and scene.pixels is not None and scene.depths is None and scene.points is None:
            raise ConfigError(
                "model.depth_loss needs depths, which this scene was read without: add --scene.depths to a COLMAP model with points "
                "or a transforms.json with depth maps."
            )

    def pixel_source(self, scene: Scene, step: int, generator: torch.Generator) -> PixelSource:
        """The source of a training step's pixels: learned cameras and known depths go into their rays."""
        cameras, depths = self.training_cameras(), self.depth_loss > 0
        return PixelSource(scene, step, generator, self.device, self.seed, cameras, depths, self.share)

    def training_losses(self, batch: Batch, step: int) -> tuple[Rendering, dict[str, Tensor]]:
        """The rendering of a training batch in the appearance of its pictures, and its losses, with that of known depths."""
        rendering = self.render(batch)
        if self.appearance is not None and batch.rays is not None:
            rendering = self.appearance(rendering, batch.rays.image_index, batch.background)
        losses = self.losses(rendering, batch, step)
        if batch.depth is not None and batch.depth_weight is not None and rendering.depth is not None:
            losses["depth"] = self.depth_loss * depth_error(rendering.depth, batch.depth, batch.depth_weight).mean()
        return rendering, losses

    def training_cameras(self) -> Cameras | None:
        """Learned cameras at this point of the budget, with gradients; None if the scene's are used as they are."""
        return None if self.cameras is None else self.cameras(self.progress)

    def place(self, scene: Scene) -> Scene:
        """The scene with its learned cameras; the scene itself if the method learns none."""
        if self.cameras is None:
            return scene
        cameras, moved = self.cameras.placed()
        depths = scene.depth_range and tuple(scale_of(moved) * depth for depth in scene.depth_range)
        return replace(scene, cameras=cameras, to_original=scene.to_original @ torch.linalg.inv(moved), depth_range=depths)

    @property
    def has_density(self) -> bool:
        """Whether the method is a radiance field, with depth and normals, and not a picture."""
        return type(self).density is not Method.density

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def half_precision(self) -> bool:
        """Whether matrix products take half-precision inputs."""
        return self.precision != torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that networks run in: their matrix products take ``precision``, everything else stays float32."""
        return torch.autocast(self.device.type, dtype=self.precision) if self.half_precision else contextlib.nullcontext()
