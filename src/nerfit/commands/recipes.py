"""nerfit recipes: the recipes of the package."""

from nerfit.commands.options import Common
from nerfit.recipes.loading import shipped_recipes


class Options(Common):
    """nerfit recipes: the recipes of the package, which nerfit train takes with --recipe."""


def run(options: Options) -> dict[str, str]:
    """Each recipe, and what it is for."""
    return shipped_recipes()


def text(known: dict[str, str]) -> str:
    """A line for each recipe."""
    return "\n".join(f"{name:20} {what}" for name, what in known.items())
