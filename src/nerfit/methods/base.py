"""What training, judging and rendering ask of a method, and how any method renders a whole view."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nerfit.cameras import Cameras, Rays
from nerfit.cameras.learned import LearnedCameras
from nerfit.cameras.poses import scale_of
from nerfit.errors import ConfigError, RunError, require_min
from nerfit.rendering.appearance import Appearance, AppearanceConfig, learned_appearance
from nerfit.rendering.losses import depth_error
from nerfit.rendering.volume import Rendering, join
from nerfit.sampling.share import WHOLE, Share
from nerfit.scenes.scene import Scene

_PER_RAY = ("rays", "coordinates", "target", "depth", "depth_weight")


@dataclass
class Part:
    """Where the rays of one device stand in a batch of ``whole`` rays that several devices share; ``places`` rise."""

    places: Int[Tensor, "n"]
    whole: int


@dataclass
class Batch:
    """What one step, or one chunk of a picture, works on: rays, or plain coordinates ([n, k]) for image fitting.

    ``target`` holds the true colours where they are known, ``depth`` the distances t of what is seen, and ``depth_weight`` what an
    error of theirs is multiplied by, 0 where they are unknown. ``generator`` is the step's source of randomness;
    None means judging: no jitter, no noise, the same picture every time. ``part`` says which rays of a larger batch these are:
    they get the random numbers that they would have there. None means that they are all of it.
    """

    rays: Rays | None = None
    coordinates: Tensor | None = None
    target: Float[Tensor, "n 3"] | None = None
    background: Tensor | float = 1.0
    generator: torch.Generator | None = None
    depth: Float[Tensor, "n"] | None = None
    depth_weight: Float[Tensor, "n"] | None = None
    part: Part | None = None

    def __len__(self) -> int:
        source = self.rays if self.rays is not None else self.coordinates
        return 0 if source is None else len(source)

    @property
    def whole(self) -> int:
        """Rays of the whole batch, on all devices that share it."""
        return len(self) if self.part is None else self.part.whole

    def chunks(self, size: int) -> Iterator["Batch"]:
        """The batch in consecutive pieces: of a part, what it holds of each ``size`` rays of the whole."""
        if self.part is None:
            for start in range(0, len(self), size):
                yield self._at(slice(start, start + size), None)
            return
        places, whole = self.part.places, self.part.whole
        for start in range(0, whole, size):
            first, last = torch.searchsorted(places, torch.tensor([start, start + size])).tolist()
            if first < last:
                yield self._at(slice(first, last), Part(places[first:last] - start, min(size, whole - start)))

    def shared(self, share: Share) -> "Batch":
        """The part of a whole batch that a device takes."""
        places = share.indices(len(self))
        return self._at(places, Part(places, len(self)))

    def _at(self, piece: slice | Tensor, part: Part | None) -> "Batch":
        background = self.background
        return replace(
            self,
            background=background[piece] if isinstance(background, Tensor) and background.ndim == 2 else background,
            part=part,
            **{name: value[piece] for name in _PER_RAY if (value := getattr(self, name)) is not None},
        )

    def uniform(self, *shape: int) -> Tensor | None:
        """Uniform numbers in [0, 1) for training, the first axis along the rays; None when judging."""
        return self._random(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor | None:
        """Normal numbers for training, likewise."""
        return self._random(torch.randn, shape)

    def _random(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor | None:
        if self.generator is None:
            return None
        device = self.generator.device
        if self.part is None:
            return draw(shape, generator=self.generator, device=device)
        return draw((self.part.whole, *shape[1:]), generator=self.generator, device=device)[self.part.places.to(device)]


@dataclass
class CaptureConfig:
    """What any method can take from captures of the real world."""

    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    """Learning what each picture makes of the scene's colours."""
    depth_loss: float = 0.0
    """Factor of the loss on depths, where the scene is read with some."""


class Method(nn.Module, ABC):
    """A published method: it asks for its own batch, renders it, and says what to minimise.

    Subclasses set ``Config`` (a dataclass; its attribute docstrings are the command line's help) and take
    ``(config, scene)``. They are ordinary torch modules: everything to be saved is a parameter or a buffer.
    """

    Config: ClassVar[type]
    default_steps: ClassVar[int] = 200_000
    default_recipe: ClassVar[str | None] = None
    """Shipped recipe that is used where the user names none."""
    scene_formats: ClassVar[tuple[str, ...] | None] = None
    """Scene formats the method accepts; None = every scene with camera poses."""
    precision: torch.dtype = torch.float32
    """What the networks compute in (`autocast`); the trainer sets it."""
    seed: int = 0
    """The run's seed, for orders that span steps; the trainer sets it."""
    progress: float = 1.0
    """Share of the run's budget that is spent, for what changes with it; the trainer sets it."""
    share: Share = WHOLE
    """What this device takes of each batch; the trainer sets it."""
    batch_key: ClassVar[str] = "rays"
    """Key of the configuration that says how large a batch is: devices that share one multiply it."""

    def __init__(self) -> None:
        super().__init__()
        self.cameras: LearnedCameras | None = None
        """Cameras that are learned with the scene."""
        self.appearance: Appearance | None = None
        """What each training picture makes of the scene's colours, learned with the scene."""
        self.depth_loss = 0.0
        """Factor of `depth_error`, where batches come with depths."""

    def set_capture(self, config: CaptureConfig, scene: Scene) -> None:
        """Take up the options of `CaptureConfig`; ConfigError where the scene (with its images) has no depths to learn from."""
        self.appearance, self.depth_loss = learned_appearance(config.appearance, scene), config.depth_loss
        require_min("model.", config, depth_loss=0)
        if self.depth_loss and scene.pixels is not None and scene.depths is None and scene.points is None:
            raise ConfigError(
                "model.depth_loss needs depths, which this scene was read without: add --scene.depths to a COLMAP model with points "
                "or a transforms.json with depth maps."
            )

    @abstractmethod
    def next_batch(self, scene: Scene, step: int, generator: torch.Generator) -> Batch:
        """The batch of a training step, on the model's device; depends on ``step`` and ``generator`` alone.

        It may be this device's share of it (with a `Part`); of a whole one the trainer takes that.
        """

    @abstractmethod
    def render(self, batch: Batch) -> Rendering:
        """What the batch's rays see."""

    @abstractmethod
    def losses(self, rendering: Rendering, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms to be summed and minimised, each a mean over the batch's rays."""

    def training_losses(self, batch: Batch, step: int) -> tuple[Rendering, dict[str, Tensor]]:
        """What a training batch's rays see, as its pictures would show it, and its losses, that of known depths among them."""
        rendering = self.render(batch)
        if self.appearance is not None and batch.rays is not None:
            rendering = self.appearance(rendering, batch.rays.image_index, batch.background)
        losses = self.losses(rendering, batch, step)
        if batch.depth is not None and batch.depth_weight is not None and rendering.depth is not None:
            losses["depth"] = self.depth_loss * depth_error(rendering.depth, batch.depth, batch.depth_weight).mean()
        return rendering, losses

    def scalars(self, rendering: Rendering, batch: Batch) -> dict[str, float]:
        """Numbers for the log beside the losses, such as ``psnr_coarse``."""
        return {}

    def histograms(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Edges in [0, 1] and weights along the batch's rays of each level of sampling, the field's last; none by default."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; ``lr_scale`` multiplies the learning rate of a group.

        Learned cameras and appearance have groups of their own (``parameter_group``), which are not among them.
        A group with ``sparse`` True holds tables most of whose entries have no gradient in a step (optimizer sparse-adam).
        """
        return [{"params": [p for name, p in self.named_parameters() if not name.startswith(("cameras.", "appearance."))]}]

    def training_cameras(self) -> Cameras | None:
        """Learned cameras at this point of the budget, with gradients; None where the scene's are taken as they are."""
        return None if self.cameras is None else self.cameras(self.progress)

    def place(self, scene: Scene) -> Scene:
        """The scene with its cameras where the method has learned them to be; the scene itself if it learns none."""
        if self.cameras is None:
            return scene
        cameras, moved = self.cameras.placed()
        depths = scene.depth_range and tuple(scale_of(moved) * depth for depth in scene.depth_range)
        return replace(scene, cameras=cameras, to_original=scene.to_original @ torch.linalg.inv(moved), depth_range=depths)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        """Entered before the training clock starts: the place to compile, and to share out threads."""
        return contextlib.nullcontext()

    def before_step(self, step: int) -> None:
        """Called before each training step."""

    def after_step(self, step: int) -> None:
        """Called after each training step."""

    @property
    def counts(self) -> tuple[int, ...]:
        """What was counted in a step on this device; before `after_step` the trainer puts the sums over all devices there."""
        return ()

    @counts.setter
    def counts(self, sums: tuple[int, ...]) -> None: ...

    def floats_per_ray(self) -> int:
        """Roughly how many floats a ray keeps for the backward pass; the automatic chunk size is made from it."""
        return 4096

    def samples_per_ray(self) -> int:
        """Network evaluations per ray, for the rates that are logged."""
        return 1

    @property
    def has_density(self) -> bool:
        """Whether the method is a radiance field, with depth and normals, and not a picture."""
        return type(self).density is not Method.density

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """Volume density (per unit of scene length) at points of the scene."""
        raise ConfigError(f"{type(self).__name__.lower()} has no density: normals and meshes need a radiance field.")

    def radiance(self, points: Float[Tensor, "n 3"], viewdirs: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
        """The same density, and colour in [0, 1], at points seen along unit directions."""
        raise ConfigError(f"{type(self).__name__.lower()} has no colours at single points, which a baked field is made of.")

    def view_batch(self, scene: Scene, cameras: Cameras, view: int, pixels: Tensor, look: Cameras | None = None) -> Batch:
        """The batch that judges or draws pixels (flat row-major indices) of one view of ``cameras``, in scene background."""
        width = cameras.width[view]
        y, x = torch.div(pixels, width, rounding_mode="floor"), pixels % width
        rays = scene.rays(torch.full_like(pixels, view), x, y, cameras, look)
        return Batch(rays=rays.to(self.device), background=scene.backdrop)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that networks run in: their matrix products take ``precision``, everything else stays float32."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)


require_model_min = partial(require_min, "model.")
"""ConfigError where a key of a method's config lies below the least value that works, as in ``require_model_min(config, depth=1)``."""


def require_inverse_depth(lindisp: bool, scene: Scene) -> None:
    """Raise ConfigError where samples are to be spaced in an inverse depth that a scene doesn't have."""
    if lindisp and scene.ndc:
        raise ConfigError("model.lindisp has no meaning in NDC, whose depth is inverse already: add --scene.no-ndc or drop it.")
    if lindisp and scene.near <= 0:
        raise ConfigError("model.lindisp needs a near distance above 0: set --scene.near.")


@torch.no_grad()
def render_view(
    method: Method, scene: Scene, cameras: Cameras, view: int, chunk: int, look: Cameras | None = None, every: int = 1
) -> Rendering:
    """A view, or the middle of each square of ``every`` x ``every`` pixels, as tensors [height, width, …] on the CPU, without weights."""
    wide, rows = int(cameras.width[view]), torch.arange(every // 2, int(cameras.height[view]), every)
    columns = torch.arange(every // 2, wide, every)
    pixels, height, width = (rows[:, None] * wide + columns).flatten(), len(rows), len(columns)
    parts: list[Rendering] = []
    while len(pixels):
        try:
            parts.append(method.render(method.view_batch(scene, cameras, view, pixels[:chunk], look)))
            pixels = pixels[chunk:]
        except torch.cuda.OutOfMemoryError:
            chunk = smaller_chunk(chunk)
    joined = join(parts)

    def as_image(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.float().cpu().reshape(height, width, *value.shape[1:])

    rgb = joined.rgb.float().cpu().reshape(height, width, 3)
    return Rendering(rgb, as_image(joined.depth), as_image(joined.opacity), as_image(joined.disparity))


def smaller_chunk(chunk: int) -> int:
    """Half the chunk after a GPU ran out of memory; a RunError where little more can be saved."""
    torch.cuda.empty_cache()
    if chunk <= 64:
        raise RunError("the GPU has too little free memory even for 64 rays at a time.")
    return chunk // 2
