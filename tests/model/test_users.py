"""User numbers and histories against a slow loop over each user's own events."""

from __future__ import annotations

from math import cos, log1p, pi, sin

import numpy as np
import pytest
from tiny import MODEL, Row, histories, items

from crossrec_model.data.features import bucket
from crossrec_model.data.histories import EVENT_WEIGHT
from crossrec_model.data.users import USER_NUMBERS, HistoryIndex

ITEMS = 12
POPULARITY = np.log(np.arange(1, ITEMS + 1) / 100)


def _random_rows(seed: int, users: int = 9) -> list[Row]:
    random = np.random.default_rng(seed)
    kinds = ["view", "cart", "purchase", "favourite"]
    rows = []
    for user in range(users):
        for _ in range(int(random.integers(1, 25))):
            # Days at a quarter are exact in a float: cut-offs may fall on an event.
            day = float(random.integers(0, 400)) / 4
            rows.append(
                Row(
                    f"u{user}",
                    f"i{random.integers(ITEMS)}",
                    day,
                    event=kinds[int(random.integers(4))],
                    quantity=float(random.integers(1, 5)),
                    price=[None, 1.5, 3.0][int(random.integers(3))],
                )
            )
    return rows


def _slow(rows: list[Row], user: str, day: float) -> list[float]:
    past = sorted((r for r in rows if r.user == user and r.day < day), key=lambda r: r.day)
    n = max(len(past), 1)

    def share(test) -> float:
        return sum(map(test, past)) / n

    def hour(row: Row) -> float:
        return 24 * (row.day % 1)

    span = max(day - past[0].day, 1.0) if past else 1.0
    season = 2 * pi * (day % 365.2425) / 365.2425
    return [
        log1p(len(past)),
        log1p(len({r.item for r in past})),
        log1p(sum(r.day >= day - 28 for r in past)),
        log1p(sum(r.day >= day - 7 for r in past)),
        log1p(day - past[-1].day) if past else log1p(365),
        len({int(r.day) for r in past}) / span,
        sum(log1p((r.quantity or 1) * (r.price or 0)) for r in past) / n,
        sum(float(POPULARITY[int(r.item[1:])]) for r in past) / n,
        share(lambda r: 5 <= hour(r) < 12),
        share(lambda r: 17 <= hour(r) < 23),
        share(lambda r: int(r.day) % 7 in {2, 3}),
        share(lambda r: r.event == "purchase"),
        sin(season),
        cos(season),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_numbers_equal_a_slow_loop(seed: int) -> None:
    rows = _random_rows(seed)
    table = histories(rows, items(ITEMS))
    index = HistoryIndex(table)
    for day in (-1.0, 0.0, 33.25, 60.0, 99.75, 500.0):
        users = np.arange(len(table))
        found = index.numbers(users, np.full(len(users), day), POPULARITY)
        expected = [_slow(rows, user, day) for user in table.user_ids]
        assert found.shape == (len(users), len(USER_NUMBERS))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_cut_offs_of_each_user_are_her_own() -> None:
    rows = _random_rows(7)
    table = histories(rows, items(ITEMS))
    days = np.linspace(5, 95, len(table)).round()
    found = HistoryIndex(table).numbers(np.arange(len(table)), days, POPULARITY)
    expected = [_slow(rows, u, d) for u, d in zip(table.user_ids, days.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_positions_and_events_on_exact_boundaries() -> None:
    rows = [Row("a", "i0", 1.0), Row("a", "i1", 2.0), Row("a", "i2", 2.0), Row("b", "i3", 2.0)]
    index = HistoryIndex(histories(rows, items(ITEMS)))
    users = np.array([0, 1])
    assert index.position(users, np.array([2.0, 2.0])).tolist() == [1, 3]
    assert index.position(users, np.array([2.5, 0.0])).tolist() == [3, 3]
    place, event = index.events(users, np.array([2.0, 2.0]), np.array([2.5, 2.5]))
    assert (place.tolist(), event.tolist()) == ([0, 0, 1], [1, 2, 3])
    # The end is left out, the start is not.
    place, event = index.events(users, np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    assert (place.tolist(), event.tolist()) == ([0], [0])


def test_histories_are_sorted_by_user_and_time() -> None:
    rows = _random_rows(1)
    table = histories(rows, items(ITEMS))
    for number, user in enumerate(table.user_ids):
        mine = slice(*table.offsets[number : number + 2])
        expected = sorted((r for r in rows if r.user == user), key=lambda r: (r.day, r.item))
        assert table.day[mine].tolist() == [r.day for r in expected]
        assert [f"i{i}" for i in table.item[mine].tolist()] == [r.item for r in expected]
        weights = [EVENT_WEIGHT[r.event] for r in expected]
        np.testing.assert_allclose(table.weight[mine], weights)
        spend = [(r.quantity or 0) * (r.price or 0) for r in expected]
        np.testing.assert_allclose(table.spend[mine], spend)
        assert table.bought[mine].tolist() == [r.event == "purchase" for r in expected]


def test_parts_of_histories_keep_all_users() -> None:
    table = histories(_random_rows(2), items(ITEMS))
    part = table.between(30.0, 60.0)
    assert part.user_ids == table.user_ids
    assert part.day.min() >= 30
    assert part.day.max() < 60
    kept = (table.day >= 30) & (table.day < 60)
    np.testing.assert_array_equal(part.user_of_event(), table.user_of_event()[kept])
    np.testing.assert_array_equal(part.item, table.item[kept])
    assert len(table.before(0.0).item) == 0


def test_context_is_the_latest_before_the_moment() -> None:
    def row(day: float, **more: str) -> Row:
        return Row("a", "i0", day, more={"context_device": more.get("d"), "context_region": "n"})

    table = histories([row(1.0, d="phone"), row(2.0, d="desk"), row(3.0)], items(1))
    index = HistoryIndex(table)

    def code(column: str, value: str) -> int:
        return bucket(f"user {column}|{value}", MODEL.buckets)

    region = code("context_region", "n")
    for day, device in ((1.0, 0), (1.5, code("context_device", "phone"))):
        shown = index.context(np.array([0]), np.array([day])).tolist()
        assert shown == [[0, device, region if day > 1 else 0]]
    at_2 = index.context(np.array([0]), np.array([2.5]))[0, 1]
    assert at_2 == code("context_device", "desk")
    # The last event says nothing of a device.
    assert index.context(np.array([0]), np.array([9.0]))[0].tolist() == [0, 0, region]
