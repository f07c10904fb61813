"""History rows and pairs of visits against loops over a user's events."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import Row, histories, items

from crossrec_model.data.users import HistoryIndex
from crossrec_model.history_rows import history_rows, visit_pairs

ROWS = [
    *(Row("a", "i0", 1.0), Row("a", "i1", 1.0), Row("a", "i2", 2.0), Row("a", "i0", 3.0)),
    *(Row("b", "i3", 1.0), Row("b", "i3", 5.0)),
    Row("c", "i1", 9.0),
]


@pytest.fixture
def index() -> HistoryIndex:
    return HistoryIndex(histories(ROWS, items(4)))


def test_plain_rows_are_what_was_taken_before_the_day(index: HistoryIndex) -> None:
    found = history_rows(index, np.array([0, 1, 2]), 3.0, 4).toarray()
    np.testing.assert_array_equal(found, [[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])


def test_an_item_fades_with_the_visits_after_its_last_taking(index: HistoryIndex) -> None:
    found = history_rows(index, np.array([1, 0]), 10.0, 4, fading=0.5).toarray()
    np.testing.assert_allclose(found, [[0, 0, 0, 1], [1, 0.25, 0.5, 0]])


def test_old_visits_are_dropped() -> None:
    rows = [Row("a", f"i{n}", float(n)) for n in range(12)]
    index = HistoryIndex(histories(rows, items(12)))
    found = history_rows(index, np.array([0]), 99.0, 12, fading=0.5).toarray()[0]
    np.testing.assert_allclose(found[-7:], 0.5 ** np.arange(6, -1, -1))
    assert not found[:-7].any()


def test_each_visit_but_the_first_stands_beside_what_came_before(index: HistoryIndex) -> None:
    before, after = (part.toarray() for part in visit_pairs(index, 10.0, 4, fading=0.7))
    np.testing.assert_allclose(before, [[1, 1, 0, 0], [0.7, 0.7, 1, 0], [0, 0, 0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(after, [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def test_nobody_who_came_twice_makes_no_pairs(index: HistoryIndex) -> None:
    before, after = visit_pairs(index, 1.5, 4, fading=0.7)
    assert before.shape == after.shape == (0, 4)
