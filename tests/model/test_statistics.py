"""What platforms add up before they train: sketches and moments of several give those of all."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from tiny import MODEL, Row, histories, items

from crossrec_model.data.users import HistoryIndex
from crossrec_model.statistics import (
    POPULARITY_DAYS,
    UNIFORM_SHARE,
    Statistics,
    active_users,
    item_counts,
    log_popularity,
    measure,
    shared_log_popularity,
)

ITEMS, WIDE = 30, replace(MODEL, sketch_width=2**14)


def _rows(seed: int, users: int) -> list[Row]:
    random = np.random.default_rng(seed)
    return [
        Row(f"{seed}-{user}", f"i{min(int(random.exponential(6)), ITEMS - 1)}", float(day))
        for user in range(users)
        for day in random.uniform(0, 100, 8)
    ]


def _measured(rows: list[Row], day: float = 90.0, model=WIDE) -> Statistics:
    table = items(ITEMS, model)
    return measure(HistoryIndex(histories(rows, table)), table, day, model.sketch_width)


def test_each_user_counts_once_an_item_by_when_she_last_took_it() -> None:
    rows = [Row("a", "i1", 10.0), Row("a", "i1", 40.0), Row("b", "i1", 70.0), Row("b", "i2", 95.0)]
    counts = item_counts(histories(rows, items(4)), 4, 90.0)
    expected = exp(-50 / POPULARITY_DAYS) + exp(-20 / POPULARITY_DAYS)
    np.testing.assert_allclose(counts, [0, expected, 0, 0])


def test_popularity_is_a_distribution_with_a_uniform_part() -> None:
    found = np.exp(log_popularity(np.array([3.0, 1.0, 0.0, 0.0])))
    assert found.sum() == pytest.approx(1.0)
    assert found[0] == pytest.approx((1 - UNIFORM_SHARE) * 0.75 + UNIFORM_SHARE / 4)
    assert found[2] == pytest.approx(UNIFORM_SHARE / 4)
    np.testing.assert_allclose(log_popularity(np.zeros(5)), log(1 / 5))


def test_the_mean_of_two_platforms_sketches_is_the_mean_of_their_popularities() -> None:
    ours, theirs = _rows(1, 20), _rows(2, 10)
    sketches = [_measured(rows) for rows in (ours, theirs)]
    mean = replace(
        sketches[0], sketch=(2 * sketches[0].sketch + sketches[1].sketch).astype(np.float32) / 3
    )
    found = np.exp(shared_log_popularity(mean, items(ITEMS, WIDE)))
    shares = []
    for rows in (ours, theirs):
        counts = item_counts(histories(rows, items(ITEMS)), ITEMS, 90.0)
        shares.append(counts / counts.sum())
    expected = np.exp(log_popularity(2 * shares[0] + shares[1]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_moments_of_two_platforms_add_up_to_those_of_all_users() -> None:
    ours, theirs = _rows(1, 20), _rows(2, 10)
    parts = [_measured(rows) for rows in (ours, theirs)]
    everyone = _measured([*ours, *theirs])
    # Popularity is each platform's own; all other numbers come from a user's own rows alone.
    same = [n for n in range(14) if n != 7]
    for name in ("mean", "square"):
        mean = (2 * getattr(parts[0], name) + getattr(parts[1], name)) / 3
        np.testing.assert_allclose(mean[same], getattr(everyone, name)[same], rtol=1e-4, atol=1e-6)


def test_a_sketch_never_underestimates_and_each_row_sums_to_one() -> None:
    narrow = replace(MODEL, sketch_width=16)
    rows = _rows(3, 20)
    found = _measured(rows, model=narrow)
    np.testing.assert_allclose(found.sketch.reshape(2, 16).sum(axis=1), 1.0, rtol=1e-5)
    counts = item_counts(histories(rows, items(ITEMS)), ITEMS, 90.0)
    cells = found.sketch[items(ITEMS, narrow).sketch].min(axis=1)
    assert (cells >= counts / counts.sum() - 1e-6).all()


def test_nothing_at_or_after_the_day_enters() -> None:
    rows = _rows(4, 15)
    changed = [replace(r, item="i0", quantity=50.0) if r.day >= 60 else r for r in rows]
    one, two = _measured(rows, 60.0), _measured(changed, 60.0)
    for name in ("sketch", "mean", "square"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_no_users_and_no_shared_ids_give_zeros() -> None:
    found = _measured(_rows(1, 3), day=-5.0)
    for name in ("sketch", "mean", "square"):
        np.testing.assert_array_equal(getattr(found, name), 0.0)
    table = items(ITEMS, WIDE)
    np.testing.assert_allclose(shared_log_popularity(found, table), log(1 / ITEMS))


def test_active_users_have_an_event_before_the_day() -> None:
    index = HistoryIndex(histories([Row("a", "i0", 1.0), Row("b", "i0", 5.0)], items(1)))
    assert [active_users(index, d).tolist() for d in (1.0, 2.0, 5.5)] == [[], [0], [0, 1]]


def test_standardised_numbers_have_mean_0_and_deviation_1_and_are_bounded() -> None:
    numbers = np.random.default_rng(0).normal(3.0, 2.0, (500, 14)).astype(np.float32)
    statistics = Statistics(
        sketch=np.zeros(4, np.float32),
        mean=numbers.mean(axis=0),
        square=(numbers**2).mean(axis=0),
    )
    found = statistics.standardise(numbers)
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-2)
    np.testing.assert_allclose(found.std(axis=0), 1.0, atol=2e-2)
    flat = Statistics(
        sketch=np.zeros(4, np.float32), mean=np.ones(14, np.float32), square=np.ones(14, np.float32)
    )
    far = flat.standardise(np.full((1, 14), 1e9, dtype=np.float32))
    np.testing.assert_array_equal(far, 5.0)
