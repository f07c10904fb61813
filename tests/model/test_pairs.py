"""Sums of pairs against loops, and what one user can change in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import MODEL, Row, histories, items

from crossrec_model.pairs import as_matrix, pair_count, places, popular_cells, summed_pairs
from crossrec_model.statistics import Statistics

WIDTH = MODEL.sketch_width


def _statistics(row: np.ndarray) -> Statistics:
    numbers = np.zeros(14, dtype=np.float32)
    sketch = np.concatenate([row, np.zeros(WIDTH)]).astype(np.float32)
    return Statistics(sketch=sketch, mean=numbers, square=numbers)


def test_popular_cells_are_the_largest_of_the_first_row_and_never_empty_ones() -> None:
    row = np.zeros(WIDTH)
    row[[3, 9, 4, 20]] = [0.2, 0.5, 0.2, -0.1]
    assert popular_cells(_statistics(row), WIDTH, 2).tolist() == [9, 3]
    assert popular_cells(_statistics(row), WIDTH, 10).tolist() == [9, 3, 4]


def test_an_items_place_is_that_of_its_cell() -> None:
    table = items(3)
    cells = np.array([7, 5])
    table = replace(table, sketch=np.array([[5, 40], [6, 41], [7, 42]]))
    assert places(table, cells, WIDTH).tolist() == [1, -1, 0]
    none = replace(table, sketch=np.full_like(table.sketch, -1))
    assert places(none, cells, WIDTH).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("norm", [1.0, 2.5, 100.0])
def test_pairs_are_added_up_user_by_user(norm: float) -> None:
    generator = np.random.default_rng(0)
    rows = [
        Row(f"u{generator.integers(8)}", f"i{generator.integers(6)}", float(generator.integers(9)))
        for _ in range(60)
    ]
    table = items(6)
    data, place = histories(rows, table), np.array([0, 1, -1, 2, 3, 3])
    expected = np.zeros((4, 4))
    for user in {row.user for row in rows}:
        mine = {place[int(row.item[1:])] for row in rows if row.user == user and row.day < 5}
        x = np.zeros(4)
        x[[p for p in mine if p >= 0]] = 1
        matrix = np.outer(x, x)
        expected += matrix * min(1.0, norm / max(np.linalg.norm(matrix), 1e-9))
    found = summed_pairs(data, place, 5.0, 4, norm)
    assert len(found) == pair_count(4) == 10
    np.testing.assert_allclose(as_matrix(found.astype(np.float32), 4), expected, rtol=1e-6)


def test_no_user_moves_the_sum_by_more_than_the_norm() -> None:
    rows = [Row("many", f"i{n}", 1.0) for n in range(9)] + [Row("few", "i0", 1.0)]
    table = items(9)
    place, norm = np.arange(9), 4.0
    whole = summed_pairs(histories(rows, table), place, 2.0, 9, norm)
    for user in ("many", "few"):
        left = [row for row in rows if row.user != user]
        moved = whole - summed_pairs(histories(left, table), place, 2.0, 9, norm)
        assert np.linalg.norm(moved) <= norm
        # Whoever has fewer items than the norm counts in full.
        assert moved.max() == pytest.approx(1.0 if user == "few" else norm / 9)
