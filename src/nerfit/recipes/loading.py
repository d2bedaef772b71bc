"""Recipes by name or from files, merged with their parents."""

import os
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nerfit.config import flatten, read_settings
from nerfit.errors import ConfigError, nearest
from nerfit.files import read_text
from nerfit.recipes import legacy


@dataclass
class Recipe:
    """A recipe with its parents merged in; ``own`` are the dotted keys that its own file sets."""

    name: str
    values: dict[str, Any]
    method: str | None = None
    format: str | None = None
    description: str = ""
    own: set[str] = field(default_factory=set)
    source: str | None = None
    out: str | None = None
    notes: list[str] = field(default_factory=list)


_HEADER = ("parent", "method", "format", "description", "source", "out")
_FOLDER = files("nerfit") / "recipes"


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes in the package, with their descriptions."""
    return {name: load_recipe(name).description for name in _shipped_names()}


def _shipped_names() -> list[str]:
    named = {f.name.removesuffix(".yaml") for f in _FOLDER.iterdir() if f.name.endswith(".yaml")} - {"variants"}
    return sorted(named | _variants().keys())


@cache
def _variants() -> dict[str, dict[str, str]]:
    """The recipes that are nothing but another name for their parent."""
    return read_settings((_FOLDER / "variants.yaml").read_text(encoding="utf-8"), "the table of recipes")


def _shipped(name: str) -> dict[str, Any]:
    """The keys of a recipe in the package; ConfigError for an unknown name."""
    names = _shipped_names()
    if name not in names:
        raise ConfigError(f"there is no recipe '{name}'{nearest(name, names)} (`nerfit recipes` lists them).")
    return deepcopy(_variants()[name] if name in _variants() else _own_file(name))


@cache
def _own_file(name: str) -> dict[str, Any]:
    return read_settings((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}")


def load_recipe(name: str, beside: Path | None = None, children: tuple[Path, ...] = ()) -> Recipe:
    """A recipe by the name of a shipped one or the path of a YAML file or of an old ``key = value`` text config.

    The path of a parent starts from the folder ``beside`` of the recipe that names it; none of ``children``, the recipes
    on the way to it, may be its own ancestor.
    """
    path = Path(name) if beside is None or Path(name).is_absolute() else beside / name
    if os.path.isfile(path):  # a name that no file can have is not there
        if path.resolve() in children:
            raise ConfigError(f"recipe {name} is among its own parents: one of them must stand alone.")
        if legacy.is_legacy(path):
            return _translated(path)
        data, folder = read_settings(read_text(path), f"recipe {name}"), path.parent
    else:
        data, folder = _shipped(name), None
    for key in set(_HEADER) & data.keys():
        if not isinstance(data[key], str):
            raise ConfigError(f"recipe {name}: {key} must be a text, not {data[key]!r}.")
    values = {k: v for k, v in data.items() if k not in _HEADER}
    recipe = Recipe(Path(name).stem, values, data.get("method"), data.get("format"), data.get("description", ""))
    recipe.own = set(flatten(values))
    if "parent" in data:
        parent = load_recipe(str(data["parent"]), folder, (*children, path.resolve()))
        recipe.values = merge(parent.values, values)
        recipe.method, recipe.format = recipe.method or parent.method, recipe.format or parent.format
    return recipe


def _translated(path: Path) -> Recipe:
    values, notes = legacy.translate(path)
    header = {key: values.pop(key, None) for key in _HEADER}
    return Recipe(path.name, values, header["method"], header["format"], source=header["source"], out=header["out"], notes=notes)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries joined; ``above`` wins."""
    out = dict(below)
    for key, value in above.items():
        mine = out.get(key)
        out[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return out
