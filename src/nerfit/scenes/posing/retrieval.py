"""Which of many photographs may show the same things, from their features: VLAD (Jégou et al. 2010).

Its vocabulary is made of the photographs' own features, so that nothing has to be downloaded.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

NEAREST, BESIDE = 40, 5
"""Partners of a view: those that look most like it, and those beside it in order of names."""

_WORDS, _ROUNDS, _SAMPLE = 64, 10, 100_000
"""Words of the vocabulary, rounds in which it is made, and features that it is made of."""


def similar_pairs(descriptors: Callable[[int], Shaped[np.ndarray, "n d"]], count: int) -> list[tuple[int, int]]:
    """Pairs i < j of ``count`` views that look alike, or stand side by side in their order.

    ``descriptors`` gives the features of a view; it is asked twice for each, so that they need not all be in memory.
    """
    rng = np.random.default_rng(0)
    sample = np.concatenate([_some(descriptors(view), -(-_SAMPLE // count), rng) for view in range(count)])
    words = vocabulary(sample.astype(np.float32), _WORDS, _ROUNDS)
    vectors = np.stack([vlad(descriptors(view), words) for view in range(count)])
    return sorted(nearest_pairs(vectors, NEAREST) | {(i, j) for i in range(count) for j in range(i + 1, min(i + BESIDE + 1, count))})


def vocabulary(sample: Float[np.ndarray, "n d"], words: int, rounds: int) -> Float[np.ndarray, "words d"]:
    """Centres of ``words`` clusters by Lloyd's k-means from distinct samples; fewer words where there are fewer samples."""
    distinct = np.unique(sample, axis=0) if len(sample) else np.zeros((1, sample.shape[1]), np.float32)
    centres = _some(distinct, words, np.random.default_rng(0))
    for _ in range(rounds):
        members = _members(sample, centres)
        counts = members.sum(0)[:, None]
        centres = np.where(counts > 0, members.T @ sample / np.maximum(counts, 1), centres)
    return centres


def vlad(descriptors: Shaped[np.ndarray, "n d"], words: Float[np.ndarray, "words d"]) -> Float[np.ndarray, "words*d"]:
    """The descriptor of a whole picture: for each word the sum of its features' differences from it, as a unit vector; all of length 1.

    The unit vectors keep a word that a pattern repeats from drowning the others (Arandjelović and Zisserman 2013).
    """
    features = descriptors.astype(np.float32)
    members = _members(features, words)
    return _unit(_unit(members.T @ features - members.sum(0)[:, None] * words).ravel())


def nearest_pairs(descriptors: Float[np.ndarray, "views d"], nearest: int) -> set[tuple[int, int]]:
    """Pairs i < j of which one is among the ``nearest`` of the other, by their scalar product."""
    similarity = descriptors @ descriptors.T
    np.fill_diagonal(similarity, -np.inf)
    best = np.argsort(-similarity, axis=1, kind="stable")[:, : min(nearest, len(descriptors) - 1)]
    return {(min(i, j), max(i, j)) for i, row in enumerate(best.tolist()) for j in row}


def _members(features: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "words d"]) -> Float[np.ndarray, "n words"]:
    """1 for the centre that is next to a feature, 0 for the others."""
    nearest = np.argmin((centres**2).sum(1) - 2 * features @ centres.T, axis=1)
    return np.eye(len(centres), dtype=np.float32)[nearest]


def _some(rows: Shaped[np.ndarray, "n d"], most: int, rng: np.random.Generator) -> Shaped[np.ndarray, "m d"]:
    return rows[rng.permutation(len(rows))[:most]]


def _unit(vectors: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Vectors of length 1; zeros stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
