"""Refusals are bounded in lines and memory, whatever strangers send, and none goes uncounted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from server.flood import (
    MOST_ALIKE,
    MOST_KINDS,
    MOST_OF_A_KIND,
    NOT_WRITTEN,
    WINDOW,
    Event,
    Flood,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def _refused(**fields: str | int) -> Event:
    return Event("refused", fields)


def test_few_that_are_alike_are_written_and_then_their_number() -> None:
    flood, event = Flood(), _refused(reason="no-pass", address="192.0.2.1")
    admitted = [flood.admits(event, NOON) for _ in range(50)]
    assert admitted == [True] * MOST_ALIKE + [False] * (50 - MOST_ALIKE)
    assert flood.due(NOON + WINDOW - timedelta(microseconds=1)) == []
    after = flood.due(NOON + WINDOW)
    assert after == [_refused(**event.fields, **{NOT_WRITTEN: 50 - MOST_ALIKE})]
    # A new minute, with nothing left over.
    assert flood.due(NOON + 2 * WINDOW) == []
    assert flood.admits(event, NOON + WINDOW)


def test_what_differs_in_one_field_is_bounded_by_its_reason() -> None:
    flood = Flood()
    events = [_refused(reason="no-pass", address=f"192.0.2.{n}") for n in range(200)]
    assert sum(flood.admits(event, NOON) for event in events) == MOST_OF_A_KIND
    # Another reason is not drowned by it.
    assert flood.admits(_refused(reason="not-on-roster", platform="B"), NOON)
    assert flood.due(NOON, all=True) == [
        _refused(reason="no-pass", **{NOT_WRITTEN: 200 - MOST_OF_A_KIND})
    ]


def test_what_differs_in_its_reason_is_bounded_too() -> None:
    flood, count = Flood(), 10_000
    admitted = sum(flood.admits(_refused(reason=f"r{n}"), NOON) for n in range(count))
    assert admitted == MOST_KINDS + MOST_OF_A_KIND
    assert [event.fields[NOT_WRITTEN] for event in flood.due(NOON, all=True)] == [count - admitted]


def test_anything_but_refusals_is_always_written() -> None:
    flood = Flood()
    assert all(flood.admits(Event("admitted", {"platform": "A"}), NOON) for _ in range(1000))
    assert flood.due(NOON, all=True) == []


def test_a_clock_that_was_set_back_ends_the_minute() -> None:
    flood = Flood()
    for _ in range(10):
        flood.admits(_refused(), NOON)
    (count,) = flood.due(NOON - timedelta(days=1))
    assert count == _refused(**{NOT_WRITTEN: 10 - MOST_ALIKE})


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["refused", "refused-twice"]),
            st.integers(0, 60),
            st.integers(0, 3),
            st.integers(-5, 90),
        ),
        max_size=400,
    )
)
def test_every_refusal_is_written_or_counted(steps: list[tuple[str, int, int, int]]) -> None:
    flood, now, written, counted = Flood(), NOON, 0, 0
    for name, reason, address, seconds in steps:
        now += timedelta(seconds=seconds)
        due = flood.due(now)
        counted += sum(int(event.fields[NOT_WRITTEN]) for event in due)
        written += flood.admits(Event(name, {"reason": f"r{reason}", "address": address}), now)
    counted += sum(int(event.fields[NOT_WRITTEN]) for event in flood.due(now, all=True))
    assert written + counted == len(steps)
