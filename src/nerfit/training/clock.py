"""The training clock."""

import time
import warnings

import torch

LONGEST_STEP = 300.0
"""Seconds above which a step a hundred times as long as any before means that the machine slept or the process was stopped."""


class Clock:
    """Seconds of training, and rays per second; pictures, callbacks and a sleeping machine do not count."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        """``seconds`` of training are spent already."""
        self._device, self._last, self._longest = device, time.perf_counter(), 0.0
        self._rays, self._since = 0, seconds

    def lap(self, step: int) -> float:
        """Seconds since the last reading that count as training, up to ``step``."""
        if self._device.type == "cuda" and step % 100 == 0:
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        if self._longest > 0 and seconds > max(LONGEST_STEP, 100 * self._longest):
            warnings.warn(f"step {step} took {seconds:.0f} s, as if the machine had slept: they are not counted.", stacklevel=2)
            return self._longest
        self._longest = max(self._longest, seconds)
        return seconds

    def skip(self) -> None:
        """Leave out the time since the last reading."""
        self._last = time.perf_counter()

    def count(self, rays: int) -> None:
        """Add the rays of a step."""
        self._rays += rays

    def rate(self, seconds: float) -> float:
        """Rays per second since the last call; ``seconds`` of training are spent now."""
        rate = self._rays / max(seconds - self._since, 1e-9)
        self._rays, self._since = 0, seconds
        return rate
