"""Ctrl-C and SIGTERM end a training after the current step."""

import math
import os
import signal
import time
from dataclasses import dataclass
from typing import Any, Protocol


class Interruptible(Protocol):
    """Work that can be asked to stop: ``interrupted`` becomes the signal's number."""

    interrupted: int | None


@dataclass
class Signal:
    """A signal that one of several processes received, before they agree to stop."""

    interrupted: int | None = None


class stop_on_signals:
    """While training, SIGINT and SIGTERM ask the trainer to stop after the current step; a second signal stops it at once.

    torchrun passes on a signal that the terminal has sent to all processes already, so there a second one within seconds is the same.
    """

    def __init__(self, trainer: Interruptible) -> None:
        self._trainer, self._first = trainer, -math.inf
        self._same = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def _stop(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._trainer.interrupted is None:
            self._trainer.interrupted, self._first = number, now
        elif now >= self._first + self._same:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self._old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._stop)
            except ValueError:  # not in the main thread, which handles signals itself
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
