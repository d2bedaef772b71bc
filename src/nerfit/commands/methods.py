"""nerfit methods: the methods that can be trained."""

from nerfit.commands.options import Common
from nerfit.plugins import about, method_names


class Options(Common):
    """nerfit methods: the methods that can be trained."""


def run(options: Options) -> dict[str, str]:
    """Each method, and what it is."""
    return {name: about(name) for name in method_names()}


def text(known: dict[str, str]) -> str:
    """A line for each method."""
    return "\n".join(f"{name:18} {what}" for name, what in known.items())
