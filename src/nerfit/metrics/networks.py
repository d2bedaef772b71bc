"""What every network that judges pictures has: a loss between two of them, and weights from a file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from nerfit.errors import RunError


class PictureMetric(nn.Module, ABC):
    """A fixed network that measures the difference of two pictures."""

    smallest: int
    """Smallest side of a picture, in pixels."""

    @abstractmethod
    def difference(self, a: Float[Tensor, "height width 3"], b: Float[Tensor, "rows columns 3"], aligned: bool = True) -> Float[Tensor, ""]:
        """How much two pictures in [0, 1] differ, 0 for equal ones; differentiable.

        ``aligned`` ones show the same from the same place, pixel by pixel; else only what they show counts, not where.
        """


Network = TypeVar("Network", bound=nn.Module)


def read_weights(path: Path, what: str, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose names begin with one of ``prefixes``, in float32; a RunError where it can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
    except Exception as error:  # safetensors has its own exception class besides OSError, ValueError and KeyError
        raise RunError(f"{path} can't be read as {what} weights: {str(error).rstrip('.')}.") from error


def with_weights(model: Network, weights: Mapping[str, Tensor], path: str, what: str) -> Network:
    """A network made on the meta device, with its weights and without gradients; a RunError where they don't fit it."""
    expected = model.state_dict()
    for name, value in expected.items():
        if name not in weights or weights[name].shape != value.shape:
            found = f"is {list(weights[name].shape)}" if name in weights else "is missing"
            raise RunError(f"{path} doesn't hold the {what}: {name} {found}, expected {list(value.shape)}.")
        if not weights[name].isfinite().all():
            raise RunError(f"{path} is damaged: {name} holds values that are not finite; fetch the file again.")
    model.load_state_dict({name: weights[name] for name in expected}, assign=True)
    return model.eval().requires_grad_(False)
