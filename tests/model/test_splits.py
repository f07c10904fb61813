"""Time splits and who may take part."""

from __future__ import annotations

import pytest
from tiny import Row, histories, items

from crossrec_model.data.splits import check_split, split_by_weeks
from crossrec_model.errors import DataError


def test_weeks_are_counted_back_from_the_last_event() -> None:
    split = split_by_weeks(365.0, validation_weeks=8, test_weeks=4)
    assert (split.validation, split.test) == (365 - 56, 365 - 28)
    assert 365 < split.end < 365.001
    assert split.describe() == "validation from 1970-11-06, test from 1970-12-04 to 1971-01-01"


@pytest.mark.parametrize(
    ("validation", "test"), [(4, 4), (4, 8), (8, 0), (8, -1), (8, float("nan"))]
)
def test_weeks_out_of_order_are_refused(validation, test) -> None:
    with pytest.raises(DataError, match="test_weeks"):
        split_by_weeks(365.0, validation_weeks=validation, test_weeks=test)


def test_too_few_users_before_the_validation_weeks() -> None:
    rows = [Row("u1", "i0", 10.0), Row("u2", "i0", 10.0), Row("u3", "i1", 99.0)]
    table = histories(rows, items(2))
    split = split_by_weeks(100.0)
    check_split(table, split, min_users=2)
    with pytest.raises(DataError, match=r"2 users have events .*; at least 3 are needed"):
        check_split(table, split, min_users=3)
