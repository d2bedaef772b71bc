"""A device without float64, as Apple's GPUs are, played by the CPU: what lies on ``cpu:0`` is followed, and float64 is refused there."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FAKE = torch.device("cpu", 0)
"""Differs from the device "cpu", which tensors of the host have."""


class _Memory:
    """The storages that lie on the device, kept so that none of their addresses is used again."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}
        self.operations = 0

    def put(self, value: Any) -> Any:
        for t in _tensors(value):
            self.storages[t.untyped_storage()._cdata] = t.untyped_storage()
        return value

    def holds(self, value: Any) -> bool:
        return any(t.untyped_storage()._cdata in self.storages for t in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _refuse_float64(*values: Any) -> None:
    if any(t.dtype == torch.float64 for t in _tensors(values)) or any(value is torch.float64 for value in values):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")


class _Generator(torch.Generator):
    """One that remembers that its numbers are drawn on the device."""

    there = False

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls, device)  # pyright: ignore[reportCallIssue]
        made.there = torch.device(device) == FAKE
        return made

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return FAKE if self.there else torch.device("cpu")


class _Calls(TorchFunctionMode):
    """Follows tensors that are moved there, moved back, and made there."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, memory = getattr(func, "__name__", ""), self.memory
        if name == "__get__" and func == torch.Tensor.device.__get__:
            return FAKE if memory.holds(args[0]) else func(*args)
        if name in ("to", "cpu") and isinstance(args[0], Tensor):
            return self._move(func, name, args, kwargs)
        out = func(*args, **kwargs)
        if kwargs.get("device") == FAKE and isinstance(out, Tensor):
            _refuse_float64(out)
            memory.put(out)
        return out

    def _move(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        wishes = [torch.device("cpu")] if name == "cpu" else [*args[1:], *kwargs.values()]
        there = goal = self.memory.holds(args[0])
        for wish in wishes:
            if isinstance(wish, Tensor):
                goal = self.memory.holds(wish)
            elif isinstance(wish, str | torch.device):
                goal = torch.device(wish) == FAKE
        if there or goal:
            _refuse_float64(*wishes)
        out = func(*args, **kwargs)
        if goal == there:
            return out
        out = out.clone()
        if goal:
            _refuse_float64(out)
            return self.memory.put(out)
        self.memory.storages.pop(out.untyped_storage()._cdata, None)
        return out


class _Operations(TorchDispatchMode):
    """Follows results, and refuses them in float64."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler, which takes seconds

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = self.memory.holds([*args, *(kwargs or {}).values()])
        out = func(*args, **(kwargs or {}))
        if there:
            self.memory.operations += 1
            _refuse_float64(out)
            self.memory.put(out)
        return out


@contextlib.contextmanager
def without_float64() -> Iterator[_Memory]:
    """Meanwhile ``--device cpu:0`` is such a device; counts its operations."""
    memory, generator = _Memory(), torch.Generator
    torch.Generator = _Generator
    try:
        with _Calls(memory), _Operations(memory):
            yield memory
    finally:
        torch.Generator = generator
