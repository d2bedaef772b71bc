"""Configs of the original NeRF programs (bmild/nerf, yenchenlin/nerf-pytorch) as recipes.

Their text is configargparse's: ``key = value``, ``key: value`` or ``key value``, a bare ``key`` for True, ``#`` and ``;``
comments, optional quotes; their ``args.txt``, which lists every flag, is the same. A flag that is not in the file has the
default it had there, so a translated config trains as it did, pixel corners, initial weights and all.
"""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nerfit.errors import ConfigError, nearest

Old = dict[str, Any]
"""Every old flag with its value, the defaults filled in."""


class Flag(NamedTuple):
    """One old flag: its type and its default there, the dotted key ``to`` which its value goes (or a function of all old
    values that gives {dotted key: value}), the scene formats it ``only`` speaks about, a ``note`` for those who gave it, or,
    where any value but the default is refused, what to use ``instead``."""

    kind: Callable[[str], Any]
    default: Any
    to: str | Callable[[Old], dict[str, Any]] = ""
    only: tuple[str, ...] = ()
    note: str = ""
    instead: str = ""


FORMATS = ("llff", "blender", "deepvoxels", "linemod")
"""The values of dataset_type, LINEMOD in lower case."""


def _llff(old: Old) -> bool:
    return old["dataset_type"] == "llff"


def _ndc(old: Old) -> bool:
    return _llff(old) and not old["no_ndc"] and not old["spherify"]


def _format(old: Old) -> dict[str, Any]:
    """The format; LLFF's placing; and 0.5 where K, like OpenCV's, has pixel centres on whole numbers, so that rays went through them."""
    own = {"llff": {"scene.recentre": True, "scene.bd_factor": 0.75}, "linemod": {"scene.pixel_offset": 0.5}}
    return {"format": old["dataset_type"]} | own.get(old["dataset_type"], {})


def _decay(old: Old) -> dict[str, Any]:
    if old["lrate_decay"] <= 0:
        return {"optim.schedule": "constant"}
    return {"optim.schedule": "exponential", "optim.decay_rate": 0.1, "optim.decay_steps": old["lrate_decay"] * 1000}


def _out(old: Old) -> dict[str, Any]:
    return {"out": (Path(old["basedir"]) / old["expname"]).as_posix()} if old["expname"] else {}


def _octaves(flag: str, key: str) -> Callable[[Old], dict[str, Any]]:
    return lambda old: {key: 0 if old["i_embed"] == -1 else old[flag]}


FLAGS: dict[str, Flag] = {
    "config": Flag(str, None, note="is not followed: what that file says must stand in this one"),
    "expname": Flag(str, None, _out),
    "basedir": Flag(str, "./logs/"),
    "datadir": Flag(str, None, "source"),
    "netdepth": Flag(int, 8, "model.depth"),
    "netwidth": Flag(int, 256, "model.width"),
    "netdepth_fine": Flag(int, 8, "model.fine_depth"),
    "netwidth_fine": Flag(int, 256, "model.fine_width"),
    "N_rand": Flag(int, 4096, "model.rays"),
    "N_iters": Flag(int, 200_000, "steps"),
    "lrate": Flag(float, 5e-4, "optim.lr"),
    "lrate_decay": Flag(int, 250, _decay),
    "chunk": Flag(int, None, note="is not needed: how many rays are worked on at once is chosen from the free memory"),
    "netchunk": Flag(int, None, note="is not needed: how many points go through a network at once is chosen automatically"),
    "netchunk_per_gpu": Flag(int, None, note="is not needed: how many points go through a network at once is chosen automatically"),
    "no_batching": Flag(bool, False, lambda old: {"model.batching": "image" if old["no_batching"] else "all"}),
    "no_reload": Flag(bool, False, instead="a training starts afresh unless `--resume` or `--init RUN` is given, so leave it out"),
    "ft_path": Flag(str, None, instead="use `--resume` to go on with a run or `--init RUN` to start from its weights"),
    "random_seed": Flag(int, None, "seed"),
    "precrop_iters": Flag(int, 0, lambda old: {"model.precrop_steps": max(old["precrop_iters"], 0) if old["no_batching"] else 0}),
    "precrop_frac": Flag(float, 0.5, "model.precrop_fraction"),
    "N_samples": Flag(int, 64, "model.samples"),
    "N_importance": Flag(int, 0, "model.fine_samples"),
    "perturb": Flag(float, 1.0, lambda old: {"model.jitter": old["perturb"] > 0}),
    "use_viewdirs": Flag(bool, False, "model.viewdirs"),
    "i_embed": Flag(int, 0),
    "multires": Flag(int, 10, _octaves("multires", "model.frequencies")),
    "multires_views": Flag(int, 4, _octaves("multires_views", "model.view_frequencies")),
    "raw_noise_std": Flag(float, 0.0, "model.raw_noise"),
    "render_only": Flag(bool, False, instead="a config describes a training, use `nerfit render RUN` on a trained run"),
    "render_test": Flag(bool, False, instead="use `nerfit render RUN --path test` on a trained run"),
    "render_factor": Flag(int, 0, instead="use `nerfit render RUN --factor N` on a trained run"),
    "dataset_type": Flag(str, "llff", _format),
    "testskip": Flag(int, 8, lambda old: {"scene.testskip": max(old["testskip"], 1)}, only=FORMATS[1:]),
    "shape": Flag(str, "greek", "scene.shape", only=("deepvoxels",)),
    "white_bkgd": Flag(bool, False, lambda old: {"scene.background": "white" if old["white_bkgd"] else "black"}),
    "half_res": Flag(bool, False, lambda old: {"scene.factor": 2 if old["half_res"] else 1}, only=("blender", "linemod")),
    "factor": Flag(int, 8, "scene.factor", only=("llff",)),
    "no_ndc": Flag(bool, False, lambda old: {"scene.ndc": _ndc(old)}, only=("llff",)),
    "lindisp": Flag(bool, False, lambda old: {"model.lindisp": old["lindisp"] and not _ndc(old)}),
    "spherify": Flag(bool, False, "scene.spherify", only=("llff",)),
    "llffhold": Flag(int, 8, "scene.holdout", only=("llff",)),
    "i_print": Flag(int, 100, "log.print_every"),
    "i_img": Flag(int, 500, "log.image_every"),
    "i_weights": Flag(int, 10_000, "log.save_every"),
    "i_testset": Flag(int, 50_000, "log.test_every"),
    "i_video": Flag(int, 50_000, "log.video_every"),
}

_NOTES: list[tuple[str, Callable[[Old], bool]]] = [
    ("'lindisp' is ignored, as it was there, because NDC is on", lambda old: old["lindisp"] and _ndc(old)),
    ("'spherify' implies 'no_ndc' here: NDC spoiled such captures there", lambda old: old["spherify"] and _llff(old) and not old["no_ndc"]),
    ("'precrop_iters' acts only with 'no_batching', as it did there", lambda old: old["precrop_iters"] > 0 and not old["no_batching"]),
    ("'i_embed' turns the encoding off only at -1, there and here: it stays on", lambda old: old["i_embed"] not in (0, -1)),
    ("without 'white_bkgd' alpha was dropped there; here it counts, over black", lambda old: not (old["white_bkgd"] or _llff(old))),
]

_LINE = re.compile(r"""(?:--)?([^:=#;\s]+)(?:\s*([=:])|\s)?\s*(?:"([^"]*)"|'([^']*)'|((?:[^#;\s].*?)?))\s*(?:\s[#;].*)?""")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False"}


def is_legacy(path: Path) -> bool:
    """Whether a file is an old program's config: its first line is ``key = value`` or begins with one of their flags."""
    first = next((_LINE.fullmatch(line) for _, line in _lines(path)), None)
    return first is not None and (first[2] == "=" or first[1] in FLAGS.keys() - {"chunk"})


def translate(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The recipe that an old config amounts to, and sentences on what a user should know about it.

    ``source`` (datadir) and ``out`` (basedir/expname) are top-level keys when the config gives them. A flag that can't be
    honoured, an unknown flag or a value of the wrong kind raises ConfigError.
    """
    given = _values(path)
    old: Old = {key: flag.default for key, flag in FLAGS.items()} | given
    form = old["dataset_type"] = old["dataset_type"].lower()
    if form not in FORMATS:
        raise ConfigError(f"{path}: dataset_type '{form}' is none of {', '.join(FORMATS)}.")
    notes = [sentence for sentence, applies in _NOTES if applies(old)]
    if "N_iters" not in given:
        notes.append("the old programs fixed the number of steps in their source: 200000 are taken, --steps changes it")
    recipe = yaml.safe_load((files("nerfit") / "recipes" / "nerf.yaml").read_text(encoding="utf-8"))
    recipe["description"] = f"translated from {path.name}"
    for key, flag in FLAGS.items():
        if flag.only and form not in flag.only:
            if old[key] != flag.default:
                notes.append(f"'{key}' says nothing about {form} scenes and is ignored, as it was there")
            continue
        if flag.note and key in given:
            notes.append(f"'{key}' {flag.note}")
        targets = flag.to(old) if callable(flag.to) else {flag.to: old[key]} if flag.to else {}
        for dotted, value in targets.items():
            if value is not None:
                section, _, name = dotted.rpartition(".")
                (recipe.setdefault(section, {}) if section else recipe)[name] = value
    from nerfit.methods.nerf import NerfConfig

    for key in NerfConfig(**recipe["model"]).unused():
        recipe["model"].pop(key, None)
    return recipe, notes


def _values(path: Path) -> Old:
    """The flags a config gives, converted and checked one by one; a later line wins over an earlier one."""
    given: Old = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{where}: '{line}' is not of the form 'key = value'.")
        key, separator, *texts = match.groups()
        text = next((t for t in texts if t), "" if separator else "true")
        if key not in FLAGS:
            raise ConfigError(f"{where}: the original NeRF programs have no flag '{key}'{nearest(key, FLAGS)}.")
        flag = FLAGS[key]
        if text == "None" or (text == "" and flag.kind is str):
            continue
        try:
            value = _WORDS[text.lower()] if flag.kind is bool else flag.kind(text)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{where}: '{key}' needs {_KINDS[flag.kind]}, not '{text}'.") from error
        if flag.instead and value != flag.default:
            raise ConfigError(f"{where}: '{key} = {text}' has no place here: {flag.instead}.")
        given[key] = value
    return given


def _lines(path: Path) -> list[tuple[int, str]]:
    """A config's lines with their numbers, without blank ones, comments and headings."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config {path} can't be read: {error}.") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line and line[0] not in "#;[" and not line.startswith("---")]
