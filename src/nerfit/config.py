"""How a configuration is read: defaults < recipe (with its parents) < command line, one strict parser for all three.

A recipe is a YAML file of the same keys as the command line, by section. It is turned into the arguments that a user
would have typed, put before the user's own, and parsed with them; so types, names and errors are the same everywhere.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

import tyro
import yaml

from nerfit.errors import ConfigError, nearest

T = TypeVar("T")


_MOST = 1 << 16
"""Characters of the longest text of settings; those of a run take about 3000."""


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, of which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses an alias (*), which settings can do without")
        return super().compose_node(parent, index)


def read_settings(text: str, what: str) -> dict[str, Any]:
    """The keys in a YAML text: sections of numbers, words and lists of these, and nothing else; ConfigError for any other text."""
    if len(text) > _MOST:
        raise ConfigError(f"{what} has {len(text)} characters, more than the {_MOST} that are allowed.")
    try:
        data = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{what} holds no keys.")
    _check_plain(data, what)
    return data


def _check_plain(values: dict[Any, Any], what: str) -> None:
    for key, value in values.items():
        if not isinstance(key, str) or not re.fullmatch(r"\w[\w-]*", key):
            raise ConfigError(f"{what}: {str(key)[:80]!r} is no name of a key.")
        if isinstance(value, dict):
            _check_plain(value, what)
            continue
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, str | int | float | None) or (isinstance(part, str) and part.startswith("-")):
                raise ConfigError(f"{what}: {key} can't be {str(part)[:80]!r}.")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def arguments(values: dict[str, Any]) -> list[str]:
    """The command line that says the same as nested values."""
    out: list[str] = []
    for key, value in flatten(values).items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            section, _, name = flag[2:].rpartition(".")
            out.append(flag if value else "--" + (section + "." if section else "") + "no-" + name)
        elif isinstance(value, list | tuple):
            out += [flag, *map(str, value)]
        else:
            out += [flag, str(value)]
    return out


def keys_of(config_type: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values of a dataclass instance and of the dataclasses inside it."""
    for f in dataclasses.fields(config_type):
        value = getattr(config_type, f.name)
        if dataclasses.is_dataclass(value):
            yield from keys_of(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name


def typed_values(words: Sequence[str]) -> dict[str, list[str]]:
    """The dotted keys that a command line sets, each with its values; ``--no-key`` sets ``key``."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            key = flag.replace("-", "_")
            values = [value] if equals else []
            found |= dict.fromkeys((key, key.replace(".no_", ".").removeprefix("no_")), values)
        else:
            values.append(word)
    return found


def own_words(config_type: Any, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line in two: the flags of a dataclass and all words before the first flag, and the other flags."""
    keys = [f.name.replace("_", "-") for f in dataclasses.fields(config_type)]
    mine = {"-h", "--help", *(f"--{key}" for key in keys), *(f"--no-{key}" for key in keys)}
    own: list[str] = []
    others: list[str] = []
    into = own
    for word in words:
        if word.startswith("--") or word == "-h":
            into = own if word.partition("=")[0].replace("_", "-") in mine else others
        into.append(word)
    return own, others


def _spelled_out(default: Any, argv: list[str]) -> list[str]:
    """A command line with ``--x True`` and ``--x False`` for the ``--x`` and ``--no-x`` of values that may also be none."""
    switches = {"--" + key.replace("_", "-") for key in _switches(default)}
    out: list[str] = []
    for word, following in itertools.pairwise([*argv, ""]):
        flag = word.replace("_", "-")
        positive = re.sub(r"(--|\.)no-(?=[^.]*$)", r"\1", flag)
        if flag in switches and following not in ("True", "False", "None"):
            out += [flag, "True"]
        elif positive != flag and positive in switches:
            out += [positive, "False"]
        else:
            out.append(word)
    return out


def _switches(config: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _switches(value, f"{prefix}{f.name}.")
        elif hints[f.name] == bool | None:
            yield prefix + f.name


def parse(
    config_type: type[T], argv: list[str], default: T | None = None, prog: str = "nerfit", description: str = "", others: Any = None
) -> T:
    """A dataclass from a command line; anything wrong with it is a ConfigError of one sentence.

    The hint for an unknown flag may also name one of the dataclass ``others``, which was parsed before.
    """
    printed = io.StringIO()
    wants_help = "-h" in argv or "--help" in argv
    argv = argv if default is None else _spelled_out(default, argv)
    try:
        with contextlib.nullcontext() if wants_help else contextlib.redirect_stderr(printed):
            given: dict[str, Any] = {} if default is None else {"default": default}
            value, unknown = tyro.cli(config_type, args=argv, prog=prog, description=description, return_unknown_args=True, **given)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise ConfigError(_sentence(printed.getvalue())) from None
    if unknown:
        word = next((u for u in unknown if u.startswith("-")), unknown[0])
        known = ["--" + key.replace("_", "-") for config in (value, others) if config is not None for key in keys_of(config)]
        if not word.startswith("-"):
            raise ConfigError(f"'{word}' is one value or argument too many.")
        raise ConfigError(f"there is no option {word.split('=')[0]} here{nearest(word.split('=')[0], known) or '.'}")
    return value


def _sentence(box: str) -> str:
    """The message inside a box that tyro prints."""
    lines = [line.strip(" │╭╮╰╯─-") for line in box.splitlines()]
    lines = [line for line in lines if line]
    body = [line for line in lines[1:] if not line.startswith(("Argument helptext", "For full helptext"))]
    end = next((i for i, line in enumerate(body) if line.startswith("--") or line.endswith(".")), 0)
    text = " ".join(body[: end + 1]) if body else "the command line can't be understood"
    text = re.sub(r"^Missing value for argument '(.+?)'\..*", r"\1 needs a value.", text)
    return text if text.endswith(".") else text + "."


def unused_keys(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys without effect beside the others, with the reason, as each section's ``unused()`` says."""
    out: dict[str, str] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out |= unused_keys(value, f"{prefix}{f.name}.")
    if hasattr(config, "unused"):
        out |= {prefix + key: why for key, why in config.unused().items()}
    return out


_OPTIM_ABOVE_ZERO = ("lr", "lr_final", "decay_rate", "decay_steps", "eps", "clip_value", "clip_norm")
_ABOVE_ZERO = {"steps", "epochs", "seconds", "chunk", "threads", "log.image_pixels", *(f"optim.{key}" for key in _OPTIM_ABOVE_ZERO)}


def check(config: Any, explicit: set[str]) -> None:
    """Refuse explicit keys that would change nothing, and numbers that can't be meant."""
    for key, why in unused_keys(config).items():
        if key in explicit:
            raise ConfigError(f"{key} has no effect here: {why}.")
    for key, value in flatten(to_dict(config)).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{key} is too large a number.")
        if not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number, but is {value}.")
        if value <= 0 and key in _ABOVE_ZERO:
            raise ConfigError(f"{key} must be above 0, but is {value}.")
        if key == "optim.beta2" and not 0 <= value < 1:
            raise ConfigError(f"{key} must be at least 0 and below 1, but is {value}.")
        if value < 0 and (isinstance(value, int) or key.startswith(("optim.", "log."))):
            raise ConfigError(f"{key} must not be negative, but is {value}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested data, ready for YAML: a copy, with lists for tuples."""
    return _untupled(dataclasses.asdict(config))


def _untupled(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untupled(v) for k, v in value.items()}
    return [_untupled(v) for v in value] if isinstance(value, list | tuple) else value
