"""Pairs of photographs that look alike: parts against plain loops, and all true neighbours of a ring of made-up views."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nerfit.scenes.posing.retrieval import BESIDE, NEAREST, nearest_pairs, similar_pairs, vlad, vocabulary

VIEWS, POINTS, SEEN, NEIGHBOURS = 300, 3000, 200, 10


def ring(rng: np.random.Generator) -> list[np.ndarray]:
    """Features of views around a place, each of which sees SEEN of its POINTS, next to each other, and as much that is nowhere else.

    A point's 128 numbers differ from view to view as SIFT's do; VIEWS / POINTS · SEEN views on either side see some of the same.
    """
    points = rng.gamma(0.7, 1.0, (POINTS, 128))
    views = []
    for view in range(VIEWS):
        seen = (np.arange(SEEN) + view * POINTS // VIEWS) % POINTS
        features = np.concatenate([points[seen] + 0.3 * rng.normal(size=(SEEN, 128)), rng.gamma(0.7, 1.0, (SEEN, 128))]).clip(0)
        views.append(
            rng.permutation(np.rint(512 * features / np.linalg.norm(features, axis=1, keepdims=True)).clip(0, 255).astype(np.uint8))
        )
    return views


def test_all_neighbours_in_a_ring_are_found_though_names_say_nothing() -> None:
    rng = np.random.default_rng(0)
    views, order = ring(rng), rng.permutation(VIEWS)
    pairs = similar_pairs(lambda i: views[order[i]], VIEWS)
    place = np.argsort(order)
    near = {(view, (view + step) % VIEWS) for view in range(VIEWS) for step in range(1, NEIGHBOURS + 1)}
    true = {(min(a, b), max(a, b)) for a, b in ((int(place[i]), int(place[j])) for i, j in near)}
    assert true <= set(pairs) and len(true) == VIEWS * NEIGHBOURS
    assert all(0 <= i < j < VIEWS for i, j in pairs) and len(pairs) == len(set(pairs)) < VIEWS * (NEAREST + BESIDE)
    assert {(i, i + step) for step in range(1, BESIDE + 1) for i in range(VIEWS - step)} <= set(pairs)
    assert pairs == similar_pairs(lambda i: views[order[i]], VIEWS)


def test_pictures_without_features_and_few_pictures() -> None:
    nothing = np.empty((0, 128), np.uint8)
    assert similar_pairs(lambda i: nothing, 3) == [(0, 1), (0, 2), (1, 2)]
    some = np.random.default_rng(0).integers(0, 255, (9, 128), dtype=np.uint8)
    assert similar_pairs(lambda i: some if i else nothing, 2) == [(0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_a_vocabulary_is_the_means_of_clusters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = 10 * np.eye(3, 8) * [[1], [2], [3]]
    sample = (means[np.arange(60) % 3] + 0.1 * rng.normal(size=(60, 8))).astype(np.float32)
    sample[::3] = np.rint(sample[::3])
    words = vocabulary(sample, 20, 30)
    nearest = ((sample[:, None] - words) ** 2).sum(-1).argmin(1)
    for word in range(20):
        mine = sample[nearest == word]
        assert len(mine) == 0 or np.abs(words[word] - mine.mean(0)).max() < 1e-5
    assert len(vocabulary(sample[:4], 20, 3)) <= 4


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 5))
def test_vlad_follows_its_twin(seed: int, count: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    features, words = rng.integers(0, 256, (count, 6), dtype=np.uint8), (255 * rng.random((number, 6))).astype(np.float32)
    parts = [np.zeros(6) for _ in range(number)]
    for feature in features.astype(float):
        nearest = min(range(number), key=lambda w: float(((feature - words[w].astype(float)) ** 2).sum()))
        parts[nearest] += feature - words[nearest]
    parts = [part / np.linalg.norm(part) if part.any() else part for part in parts]
    whole = np.concatenate(parts)
    expected = whole / np.linalg.norm(whole) if whole.any() else whole
    assert np.abs(vlad(features, words) - expected).max() < 1e-4


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 4))
def test_nearest_pairs_follow_their_twin(seed: int, count: int, nearest: int) -> None:
    looks = np.random.default_rng(seed).normal(size=(count, 5))
    expected = set()
    for i in range(count):
        others = sorted((j for j in range(count) if j != i), key=lambda j: -float(looks[i] @ looks[j]))
        expected |= {(min(i, j), max(i, j)) for j in others[:nearest]}
    assert nearest_pairs(looks, nearest) == expected
