"""Ctrl-C and SIGTERM end a training after the step in hand."""

import signal
from typing import Any, Protocol


class Interruptible(Protocol):
    """What can be asked to stop: ``interrupted`` becomes the signal's number."""

    interrupted: int | None


class stop_on_signals:
    """While training, SIGINT and SIGTERM ask the trainer to stop after the step in hand; a second one stops at once."""

    def __init__(self, trainer: Interruptible) -> None:
        self._trainer = trainer

    def _stop(self, number: int, _frame: object) -> None:
        if self._trainer.interrupted is not None:
            raise KeyboardInterrupt
        self._trainer.interrupted = number

    def __enter__(self) -> None:
        self._old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._stop)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
