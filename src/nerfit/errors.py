"""The errors that a user may meet: one readable sentence each, printed by the command line without a traceback."""

import difflib
from collections.abc import Iterable


class NerfitError(Exception):
    """Something the user can put right; the message is one sentence that says what and how."""


class SceneError(NerfitError):
    """A scene on disk that is missing, damaged or contradicts itself."""


class ConfigError(NerfitError):
    """A key or value that means nothing here."""


class RunError(NerfitError):
    """A run folder or checkpoint that can't be used, or a training that can't go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``, did you mean 'depth'?``, or nothing when no known word is close."""
    tail = word.rsplit(".", 1)[-1]
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    close = close or [k for k in known if difflib.SequenceMatcher(None, k.rsplit(".", 1)[-1], tail).ratio() > 0.75][:1]
    return f", did you mean '{close[0]}'?" if close else ""
