"""Messages and progress while a command works, on stderr; answers go to stdout."""

import sys


def say(text: str) -> None:
    """Print a line for the person who watches."""
    print(text, file=sys.stderr)


def tick(done: int, of: int, what: str, last: bool | None = None) -> None:
    """Print how many of how many are done: on one line of a terminal, elsewhere only the ``last`` (none = when all are)."""
    last = done == of if last is None else last
    if sys.stderr.isatty() or last:
        print(f"\r{done}/{of} {what}", end="\n" if last else "", file=sys.stderr, flush=True)
