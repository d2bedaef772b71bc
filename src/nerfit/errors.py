"""The errors that a user may meet: one readable sentence each, printed by the command line without a traceback."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

_LONGEST = 1000
"""Most characters of a message; a damaged file may name a file of millions."""


BLANK = 3
"""Exit code of a training that went to its end and shows no more than one colour."""


class NerfitError(Exception):
    """Something the user can put right; the message is one sentence that says what and how, on one line whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text without line breaks and other characters that can't be printed, its middle left out where it is very long."""
    if not text.isprintable():
        text = re.sub("\0+", " ", "".join(c if c.isprintable() else "\0" for c in text))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class SceneError(NerfitError):
    """A scene on disk that is missing, damaged or contradicts itself."""


class PoseError(SceneError):
    """Photographs whose camera poses can't be estimated."""


class ConfigError(NerfitError):
    """A key or value that means nothing here."""


class RunError(NerfitError):
    """A run folder or checkpoint that can't be used, or a training that can't go on."""


def require_min(prefix: str, config: Any, **least: float) -> None:
    """Raise ConfigError if a number of a config, which may be None, is below the minimum.

    It is called by ``prefix`` and its key.
    """
    for key, value in least.items():
        given = getattr(config, key)
        if given is not None and given < value:
            raise ConfigError(f"{prefix}{key} must be at least {value}, not {given}.")


def require_above(prefix: str, config: Any, **limits: float) -> None:
    """Raise ConfigError where a number of a config is not above its limit; ``prefix`` as in `require_min`."""
    for key, limit in limits.items():
        if not getattr(config, key) > limit:
            raise ConfigError(f"{prefix}{key} must be above {limit:g}, not {getattr(config, key):g}.")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``, did you mean 'depth'?``, or nothing when no known word is close."""
    tails = {k: k.rsplit(".", 1)[-1].lstrip("-") for k in known}
    tail = word.rsplit(".", 1)[-1].lstrip("-")
    close = [k for k, own in tails.items() if own == tail] or difflib.get_close_matches(word, tails, n=1, cutoff=0.6)
    close = close or [k for k, own in tails.items() if difflib.SequenceMatcher(None, own, tail).ratio() > 0.75]
    return f", did you mean '{close[0]}'?" if close else ""


def one_of(word: str, command: str, kinds: Iterable[str]) -> str:
    """The word, if it is one of a command's kinds, else ConfigError."""
    known = list(kinds)
    if word not in known:
        raise ConfigError(f"{command} what? One of {', '.join(known)}{nearest(word, known)}.")
    return word
