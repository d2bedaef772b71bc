"""Which views of a capture train a field and which test it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nerfit.errors import SceneError
from nerfit.scenes.scene import SceneConfig

T = TypeVar("T")


@dataclass
class HoldoutConfig(SceneConfig):
    """Options of captures that come without a list of test views."""

    holdout: int = 8
    """Keep every Nth picture for testing, in the order of their names, from the first on; 0 = none. Unused where the files list splits."""


def held_out(count: int, every: int) -> list[int]:
    """The test views of ``count``: 0, every, 2·every, ...; none for 0."""
    return list(range(0, count, every)) if every else []


def make_splits(
    what: str, count: int, test: list[int], train_views: tuple[int, int, int], train: list[int] | None = None, val: list[int] | None = None
) -> dict[str, list[int]]:
    """The splits of ``count`` views; ``val`` is ``test`` unless given, ``train`` all other views, of which `pick` chooses.

    Raises SceneError, with ``what`` (a file or folder) in front, where no view is left to train on.
    """
    val = list(test) if val is None else val
    if train is None:
        train = sorted(set(range(count)) - {*test, *val})
    if not train:
        raise SceneError(f"{what}: of {count} pictures none is left to train on; change --scene.holdout or the list of test pictures.")
    return {"train": [train[i] for i in pick(len(train), train_views)], "val": val, "test": test}


def pick(count: int, views: tuple[int, int, int]) -> list[int]:
    """Indices chosen by (start, end, step) of ``count`` views; end -1 means all."""
    start, end, step = views
    if step < 1:
        raise SceneError(f"the step of a view selection must be at least 1, not {step}.")
    chosen = list(range(count))[start : None if end == -1 else end : step]
    if not chosen:
        raise SceneError(f"the view selection {start}, {end}, {step} leaves none of {count} views.")
    return chosen


def chosen_views(
    listed: Mapping[str, Sequence[T]], train_views: tuple[int, int, int], testskip: int
) -> tuple[list[T], dict[str, list[int]]]:
    """The views to use of those that files list for each split, one after another, and each split's indices into that list.

    Training views are chosen by `pick`, of val and test every ``testskip``-th is used.
    """
    views: list[T] = []
    splits: dict[str, list[int]] = {}
    for split, own in listed.items():
        chosen = pick(len(own), train_views if split == "train" else (0, -1, max(testskip, 1)))
        splits[split] = list(range(len(views), len(views) + len(chosen)))
        views += [own[i] for i in chosen]
    return views, splits
