"""Profiles: where they come from, what bounds them, and what a curious receiver can tell."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import beta

from crossrec_model.errors import ConfigError, DataError
from crossrec_model.linkage.profile import (
    ProfileTerms,
    from_document,
    noised,
    profiles,
    shared_basis,
    to_document,
    translation,
)
from crossrec_model.linkage.profile_batch import ProfileBatch
from crossrec_model.privacy.events import GaussianRelease
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.privacy.unit import for_person
from crossrec_model.randomness import SystemRandomness

DELTA = 1e-5
CELLS, WIDTH = 40, 6
RELEASES = 20_000


def _pairs(seed: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).random((200, CELLS)) < 0.2
    gram = rows.T.astype(np.float32) @ rows.astype(np.float32)
    return gram[np.triu_indices(CELLS)]


@pytest.fixture(scope="module")
def basis() -> np.ndarray:
    return shared_basis(_pairs(), CELLS, WIDTH)


@pytest.fixture
def source() -> NoiseSource:
    return NoiseSource(SystemRandomness())


def _history(seed: int, items: int = 12) -> sp.csr_matrix:
    random = np.random.default_rng(seed)
    row = np.zeros((1, CELLS), dtype=np.float32)
    row[0, random.choice(CELLS, items, replace=False)] = np.log1p(random.integers(1, 6, items))
    return sp.csr_matrix(row)


def least_epsilon(first: np.ndarray, second: np.ndarray, deviation: float) -> float:
    """What a distinguisher of two histories has shown of epsilon, from releases [n, D] of each.

    It projects on the line between the means, which is optimal for this noise; over a few thresholds
    that are fixed beforehand, by Clopper & Pearson's intervals at 1e-4 each.
    """
    apart = first.mean(axis=0) - second.mean(axis=0)
    length = max(float(np.linalg.norm(apart)), 1e-12)
    ahead, behind = first @ apart / length, second @ apart / length
    middle, shown = (ahead.mean() + behind.mean()) / 2, 0.0
    for step in (0.0, 0.5, 1.0, 1.5, 2.0):
        hits, false = ((x > middle + step * deviation).sum() for x in (ahead, behind))
        n = len(ahead)
        low = beta.ppf(1e-4, hits, n - hits + 1) if hits else 0.0
        high = beta.ppf(1 - 1e-4, false + 1, n - false) if false < n else 1.0
        if low > DELTA:
            shown = max(shown, math.log((low - DELTA) / high))
    return shown


@pytest.mark.parametrize("claimed", [4.0, 2.0])
def test_a_receiver_can_not_tell_two_histories_apart_better_than_epsilon_allows(
    claimed: float, source: NoiseSource
) -> None:
    terms = ProfileTerms.for_epsilon(claimed, DELTA, dimension=WIDTH, clip=1.5)
    # The two histories that lie furthest apart, at both ends of the ball.
    end = np.zeros((1, WIDTH), dtype=np.float32)
    end[0, 2] = 1.5
    one, other = (noised(np.repeat(x, RELEASES, 0), terms, source) for x in (end, -end))
    shown = least_epsilon(one, other, terms.deviation)
    assert 0.3 * claimed < shown <= claimed
    # The same distinguisher finds it out where the noise is missing, or a quarter of what it should be.
    bare = replace(terms, multiplier=0.0)
    one, other = (noised(np.repeat(x, RELEASES, 0), bare, source) for x in (end, -end))
    assert least_epsilon(one, other, 0.0) > 1.5 * claimed
    weak = replace(terms, multiplier=terms.multiplier / 4)
    one, other = (noised(np.repeat(x, RELEASES, 0), weak, source) for x in (end, -end))
    assert least_epsilon(one, other, weak.deviation) > claimed


def test_a_receiver_can_not_tell_whether_one_item_was_in_the_history(
    basis: np.ndarray, source: NoiseSource
) -> None:
    terms = ProfileTerms.for_epsilon(2.0, DELTA, dimension=WIDTH, clip=2.0)
    without = _history(3).tolil()
    item = int(np.flatnonzero(without.toarray()[0] == 0)[0])
    with_it = without.copy()
    with_it[0, item] = np.log1p(5)
    clean = [profiles(sp.csr_matrix(x), basis, terms.clip) for x in (without, with_it)]
    assert np.linalg.norm(clean[0] - clean[1]) > 1e-3
    one, other = (noised(np.repeat(x, RELEASES, 0), terms, source) for x in clean)
    assert least_epsilon(one, other, terms.deviation) <= 2.0
    assert least_epsilon(*(np.repeat(x, RELEASES, 0) for x in clean), 0.0) > 2.0


def test_no_history_makes_a_vector_longer_than_the_clip(basis: np.ndarray) -> None:
    rows = sp.vstack([_history(seed, items) for seed, items in ((1, 3), (2, 40), (3, 1))], "csr")
    rows[2] *= 1e30
    short = profiles(rows, basis, 0.7)
    assert np.linalg.norm(short, axis=1) == pytest.approx([0.7, 0.7, 0.7], rel=1e-5)
    assert ProfileTerms(clip=0.7).sensitivity == 1.4
    # A short one is left as it is, an empty one is zeros, and one that is not finite too.
    assert profiles(_history(1), basis, 1e6) == pytest.approx(
        _history(1).toarray() @ basis, abs=1e-5
    )
    rows.data[0] = np.inf
    assert not profiles(rows, basis, 0.7)[0].any()
    assert not profiles(sp.csr_matrix((1, CELLS), dtype=np.float32), basis, 0.7).any()


def test_a_users_vector_depends_on_her_own_row_alone(basis: np.ndarray) -> None:
    mine, other, another = _history(1), _history(2), _history(3)
    first = profiles(sp.vstack([mine, other], "csr"), basis, 1.0)[0]
    assert np.array_equal(first, profiles(sp.vstack([mine, another], "csr"), basis, 1.0)[0])


@pytest.mark.parametrize("wanted", [8.0, 2.0])
def test_the_price_is_what_was_asked_for(wanted: float) -> None:
    event = ProfileTerms.for_epsilon(wanted, DELTA, dimension=8, clip=3.0).event
    assert isinstance(event, GaussianRelease)
    assert 0.98 * wanted < epsilon([event], DELTA) <= wanted
    # A person on three platforms is released by each of them.
    assert for_person([event], 3) == (event,) * 3
    assert ProfileTerms.for_epsilon(math.inf, DELTA, dimension=8, clip=3.0).event is None


def test_noise_is_in_every_coordinate_and_never_the_same(source: NoiseSource) -> None:
    terms = ProfileTerms(dimension=WIDTH, clip=2.0, multiplier=0.5)
    zero = np.zeros((RELEASES, WIDTH), dtype=np.float32)
    noise = noised(zero, terms, source)
    assert noise.std(axis=0) == pytest.approx(terms.deviation, rel=0.05)
    assert np.abs(np.corrcoef(noise.T) - np.eye(WIDTH)).max() < 0.05
    assert not np.array_equal(noise, noised(zero, terms, source))


@pytest.mark.parametrize("value", [np.nan, np.inf, 5.0])
def test_what_is_beyond_the_clip_is_not_released(value: float, source: NoiseSource) -> None:
    long = np.full((1, WIDTH), value, dtype=np.float32)
    with pytest.raises(ConfigError, match="longer than its clip"):
        noised(long, ProfileTerms(dimension=WIDTH, clip=2.0, multiplier=1.0), source)
    with pytest.raises(ConfigError, match="shape"):
        noised(long[:, 1:], ProfileTerms(dimension=WIDTH, clip=2.0), source)


@pytest.mark.parametrize(
    "values",
    [
        {"dimension": 0},
        {"dimension": 2.0},
        {"dimension": 5000},
        {"clip": 0.0},
        {"clip": math.nan},
        {"multiplier": -1.0},
        {"multiplier": 1e-9},
        {"multiplier": "1"},
    ],
)
def test_terms_outside_their_bounds_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ProfileTerms(**values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        from_document({"dimension": 4, "clip": 1.0})
    terms = ProfileTerms(dimension=4, clip=2, multiplier=3)
    assert from_document(to_document(terms)) == terms


def test_the_basis_spans_the_strongest_directions(basis: np.ndarray) -> None:
    matrix = np.zeros((CELLS, CELLS))
    matrix[np.triu_indices(CELLS)] = _pairs()
    matrix += np.triu(matrix, 1).T
    values = np.linalg.eigvalsh(matrix)[::-1][:WIDTH]
    assert np.einsum("cd,ce,ed->d", basis, matrix, basis) == pytest.approx(values, rel=1e-4)
    # Two machines may find other signs and turned directions: the same vector is meant all the same.
    turned = basis @ np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]
    turned = turned.astype(np.float32)
    here, there = (profiles(_history(4), b, 1e6) for b in (basis, turned))
    assert there @ translation(turned, basis) == pytest.approx(here, rel=1e-3, abs=1e-4)
    with pytest.raises(DataError, match="no pairs"):
        shared_basis(np.zeros_like(_pairs()), CELLS, WIDTH)
    with pytest.raises(DataError, match="fewer"):
        shared_basis(_pairs(), CELLS, CELLS)


def _batch(common: np.ndarray, **values: object) -> ProfileBatch:
    good: dict[str, object] = {
        "sender": "B",
        "period": "2026-10",
        "day": 20_000.5,
        "terms": ProfileTerms(dimension=WIDTH, clip=2.0, multiplier=1.0),
        "cells": tuple(range(0, 2 * CELLS, 2)),
        "basis": common,
        "links": ("0" * 32, "a" * 32),
        "vectors": np.ones((2, WIDTH), dtype=np.float32),
    }
    return ProfileBatch(**(good | values))  # type: ignore[arg-type]


def test_a_batch_comes_back_and_every_changed_byte_is_noticed(basis: np.ndarray) -> None:
    batch = _batch(basis)
    data = batch.to_bytes()
    again = ProfileBatch.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.links, again.terms) == (batch.links, batch.terms)
    for place in range(0, len(data), 7):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(DataError):
            ProfileBatch.from_bytes(bytes(broken))
    for cut in (0, 3, 40, len(data) - 1):
        with pytest.raises(DataError):
            ProfileBatch.from_bytes(data[:cut])
    with pytest.raises(DataError):
        ProfileBatch.from_bytes(data + b"\0")


@pytest.mark.parametrize(
    "values",
    [
        {"links": ("a" * 32, "0" * 32)},
        {"links": ("0" * 32, "0" * 32)},
        {"links": ("0" * 32, "A" * 32)},
        {"links": ("0" * 32,)},
        {"sender": "../B"},
        {"period": "../x"},
        {"period": ""},
        {"day": math.nan},
        {"cells": (1,) * CELLS},
        {"cells": (-1, *range(1, CELLS))},
        {"cells": (0.0, *range(1, CELLS))},
        {"vectors": np.full((2, WIDTH), np.nan, dtype=np.float32)},
        {"basis": np.ones((CELLS, WIDTH), dtype=np.float32)},
        {"basis": np.full((CELLS, WIDTH), np.nan, dtype=np.float32)},
        {"basis": np.eye(CELLS, WIDTH + 1, dtype=np.float32)},
    ],
)
def test_a_batch_that_does_not_belong_together_is_refused(
    values: dict[str, object], basis: np.ndarray
) -> None:
    with pytest.raises(DataError):
        _batch(basis, **values)
