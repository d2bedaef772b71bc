"""The size of the next picture, the browser that gets it, and when training waits for it."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nerfit.viewer.drawing import Frame, Viewpoint, Wish

MOVING = 0.12
"""Seconds that a picture may take while its browser moves."""
LEAST_PIXELS = 32 * 24
TRAINING_SHARE = 0.03
"""Share of the time that training gives up to browsers that stand still, and"""
MOVING_SHARE = 0.5
"""to those that were moved and have no sharp picture yet."""


class Pace:
    """Pixels drawn per second, learned from the pictures so far."""

    def __init__(self, rate: float = 20_000.0) -> None:
        self.rate = rate

    def pixels(self, seconds: float) -> int:
        """Number of pixels likely to be drawn in that time."""
        return max(LEAST_PIXELS, int(self.rate * seconds))

    def learn(self, pixels: int, seconds: float) -> None:
        """Take note of a picture; the rate goes a third of the way (of its logarithm) to that picture's."""
        self.rate *= (pixels / max(seconds, 1e-6) / self.rate) ** (1 / 3)


@dataclass(eq=False)
class Sight:
    """The picture that a browser wants, and how sharp it has been drawn so far: ``drawn`` pixels, of ``most``."""

    viewpoint: Viewpoint
    wish: Wish = field(default_factory=Wish)
    most: int = 512 * 512
    seconds: float = 5.0
    """Time limit of its sharpest picture."""
    drawn: int = 0
    version: int = 0
    frame: Frame | None = None
    served: float = 0.0
    """When it last got a picture."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def change(self, **values: object) -> None:
        """Another viewpoint, wish or limit: the picture has to be drawn again, coarsely first."""
        with self._lock:
            if any(getattr(self, name) != value for name, value in values.items()):
                for name, value in values.items():
                    setattr(self, name, value)
                self.drawn, self.version = 0, self.version + 1

    def asked(self) -> tuple[Viewpoint, Wish, int]:
        """A consistent copy of what to draw, and its version."""
        with self._lock:
            return self.viewpoint, self.wish, self.version

    def take(self, frame: Frame, version: int, now: float) -> None:
        """A picture of what was asked for at ``version``; if that has changed since, the next is coarse again."""
        with self._lock:
            self.frame, self.served = frame, now
            if version == self.version:
                self.drawn = frame.depth.size

    def next_size(self, pace: Pace, seconds: float | None = None) -> int | None:
        """Pixels of the picture to draw next, None if there is no sharper one to be had in ``seconds`` (its own limit if None).

        First what `MOVING` allows, then four times as many each time.
        """
        if self.drawn == 0:
            return min(self.most, pace.pixels(MOVING))
        target = self.sharpest(pace, seconds)
        if 1.5 * self.drawn >= target:
            return None
        return target if 8 * self.drawn > target else 4 * self.drawn

    def sharpest(self, pace: Pace, seconds: float | None = None) -> int:
        """Pixels of the largest picture that is drawn in ``seconds`` (its own limit if None)."""
        return min(self.most, pace.pixels(self.seconds if seconds is None else seconds))


def most_in_need(sights: Iterable[Sight], paces: Mapping[str, Pace], seconds: float | None = None) -> tuple[Sight, int] | None:
    """The least sharp sight, of equals that which waited longest, and the size to draw it in; None if all are as sharp as they get."""
    sizes = ((sight, sight.next_size(paces[sight.wish.quantity], seconds)) for sight in sights)
    waiting = [(sight, size) for sight, size in sizes if size is not None]
    return min(waiting, key=lambda found: (found[0].drawn, found[0].served)) if waiting else None


@dataclass
class Ration:
    """When drawing may interrupt training again: so long after the last picture that its share of the time is kept."""

    started: float = 0.0
    ended: float = 0.0

    def allows(self, now: float, share: float) -> bool:
        """Whether drawing has taken no more than ``share`` of the time since the last picture was begun."""
        return self.ended - self.started <= share * (now - self.started)

    def spent(self, started: float, ended: float) -> None:
        """Take note of a picture."""
        self.started, self.ended = started, ended
