"""How small, how often, how little changed, and how exact a size may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sides import NOW, Remembered, digests

from crossrec_model.errors import ConfigError
from crossrec_model.linkage.errors import (
    LargeSetError,
    SmallChangeError,
    SmallSetError,
    TooOftenError,
)
from crossrec_model.linkage.messages import MAX_ELEMENTS, Purpose
from crossrec_model.linkage.policy import DAY_S, SMALLEST_PADDED, Permit, Policy, padded_size

POLICY = Policy(least=50, most=3, period_s=10 * DAY_S, least_new=10)


def _ask(memory: Remembered, words: range, *, now: int = NOW, partner: str = "B") -> Permit:
    return POLICY.permit(memory, partner, Purpose.USERS, digests(words), now)


@given(st.integers(0, MAX_ELEMENTS))
def test_a_size_is_shown_in_steps(elements: int) -> None:
    size = padded_size(elements)
    assert max(elements, SMALLEST_PADDED) <= size <= max(SMALLEST_PADDED, elements * 17 / 16 + 1)
    assert bin(size).rstrip("0").count("1") <= 5
    assert len(bin(size).rstrip("0")) <= 2 + 5
    assert padded_size(size) == size


def test_too_many_elements_are_refused() -> None:
    assert padded_size(1_000_000) == 1_015_808
    with pytest.raises(LargeSetError):
        padded_size(MAX_ELEMENTS + 1)


def test_a_small_set_is_refused_and_recorded_nowhere() -> None:
    memory = Remembered()
    with pytest.raises(SmallSetError, match="49"):
        _ask(memory, range(49))
    _ask(memory, range(50))
    assert not memory.times


def test_asking_too_often_is_refused_until_time_has_passed() -> None:
    memory = Remembered()
    for day in range(3):
        _ask(memory, range(100), now=NOW + day * DAY_S).use()
    for now in (NOW + 3 * DAY_S, NOW + 10 * DAY_S - 1, NOW - 400 * DAY_S):
        with pytest.raises(TooOftenError, match="wait"):
            _ask(memory, range(100), now=now)
    # Another partner, or another purpose, counts for itself.
    _ask(memory, range(100), now=NOW + 3 * DAY_S, partner="C")
    POLICY.permit(memory, "B", Purpose.ITEMS, digests(range(100)), NOW)
    _ask(memory, range(100), now=NOW + 10 * DAY_S).use()
    with pytest.raises(TooOftenError):
        _ask(memory, range(100), now=NOW + 10 * DAY_S)


def test_a_permit_that_is_not_used_counts_for_nothing() -> None:
    memory = Remembered()
    for _ in range(9):
        _ask(memory, range(100))


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (range(100), True),
        (range(101), False),
        (range(109), False),
        (range(110), True),
        (range(60), True),
        # Forty went and five came: the five would be told apart.
        (range(40, 105), False),
    ],
)
def test_few_new_users_are_refused_and_revocations_never(words: range, allowed: bool) -> None:
    memory = Remembered()
    _ask(memory, range(100)).use()
    if allowed:
        _ask(memory, words)
    else:
        with pytest.raises(SmallChangeError):
            _ask(memory, words)
    assert len(memory.times["B", Purpose.USERS]) == 1


@pytest.mark.parametrize("wrong", [{"least": -1}, {"most": 0}, {"period_s": 0}, {"least_new": -1}])
def test_a_policy_outside_its_bounds_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Policy(**wrong)


def test_a_set_taken_away_and_back_hides_nobody() -> None:
    memory = Remembered()
    _ask(memory, range(100)).use()
    _ask(memory, range(50)).use()
    # 51 are new since the last one, but one only since the first.
    with pytest.raises(SmallChangeError):
        _ask(memory, range(101))
    # After the period only the last set is remembered.
    late = NOW + 11 * DAY_S
    _ask(memory, range(50), now=late).use()
    assert memory.times["B", Purpose.USERS] == (late,)
    with pytest.raises(SmallChangeError):
        _ask(memory, range(51), now=late + 11 * DAY_S)
    _ask(memory, range(101), now=late)
