"""A batch: the rays (or plain coordinates) of one training step, or of one chunk of a picture, with what is known about them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfit.cameras import Rays
from nerfit.sampling.share import Share

_PER_RAY = ("rays", "coordinates", "target", "depth", "depth_weight")


@dataclass
class Part:
    """The part of a batch of ``whole`` rays that one device renders; ``indices`` are its rays' numbers in that batch, ascending."""

    indices: Int[Tensor, "n"]
    whole: int


@dataclass
class Batch:
    """Rays to render, or coordinates [n, k] for image fitting, and in training what the pictures show there.

    A method draws its training batches in `Method.next_batch`; `Method.view_batch` makes those of evaluation and pictures.
    """

    rays: Rays | None = None
    """n rays; None in image fitting."""
    coordinates: Tensor | None = None
    """[n, k] coordinates of image fitting."""
    target: Float[Tensor, "n 3"] | None = None
    """True colours in training."""
    background: Tensor | float = 1.0
    """Colour behind the scene: [3], [n, 3] or a grey."""
    generator: torch.Generator | None = None
    """Source of random numbers in training. None in evaluation: no jitter and no noise, so that a picture is the same every time."""
    depth: Float[Tensor, "n"] | None = None
    """Known distances t along the rays."""
    depth_weight: Float[Tensor, "n"] | None = None
    """Factor of each ray's depth error, 0 where no depth is known."""
    part: Part | None = None
    """Which rays of a larger batch these are: they get the random numbers that they would have there. None = they are all of it."""

    def __len__(self) -> int:
        source = self.rays if self.rays is not None else self.coordinates
        return 0 if source is None else len(source)

    @property
    def whole(self) -> int:
        """Rays of the whole batch, on all devices that share it."""
        return len(self) if self.part is None else self.part.whole

    def chunks(self, size: int) -> Iterator["Batch"]:
        """The batch in consecutive pieces of ``size`` rays; a part in the pieces that it holds of each ``size`` rays of the whole."""
        if self.part is None:
            for start in range(0, len(self), size):
                yield self._at(slice(start, start + size), None)
            return
        indices, whole = self.part.indices, self.part.whole
        for start in range(0, whole, size):
            first, last = torch.searchsorted(indices, torch.tensor([start, start + size])).tolist()
            if first < last:
                yield self._at(slice(first, last), Part(indices[first:last] - start, min(size, whole - start)))

    def shared(self, share: Share) -> "Batch":
        """The part of a whole batch that a device takes."""
        indices = share.indices(len(self))
        return self._at(indices, Part(indices, len(self)))

    def _at(self, piece: slice | Tensor, part: Part | None) -> "Batch":
        background = self.background
        return replace(
            self,
            background=background[piece] if isinstance(background, Tensor) and background.ndim == 2 else background,
            part=part,
            **{name: value[piece] for name in _PER_RAY if (value := getattr(self, name)) is not None},
        )

    def uniform(self, *shape: int) -> Tensor | None:
        """Uniform numbers in [0, 1) for training, the first axis along the rays; None in evaluation."""
        return self._random(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor | None:
        """Normal numbers for training, the first axis along the rays; None in evaluation."""
        return self._random(torch.randn, shape)

    def _random(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor | None:
        if self.generator is None:
            return None
        device = self.generator.device
        if self.part is None:
            return draw(shape, generator=self.generator, device=device)
        return draw((self.part.whole, *shape[1:]), generator=self.generator, device=device)[self.part.indices.to(device)]
