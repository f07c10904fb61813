"""A coordinator that lies about who survived: which questions for shares get no answer.

`refuses` checks too that the platform forgets its keys. What a coordinator could compute from answers to
different lists is in test_collusion.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from federation_in_memory import Federation, Openings, refuses

from clients.opened import Opened as OpenedOnDisk
from clients.state import StateError
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.errors import (
    OldRoundError,
    OldSlotError,
    OtherListError,
    OutOfTurnError,
    SecureSumError,
    SurvivorsError,
    TooFewPlatformsError,
)
from crossrec_model.secagg.gathering import Agreement
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import RecordOpening, Sealed

A, B, C, D, E = "p01", "p02", "p03", "p04", "p05"


def _sealed(federation: Federation, number: int = 1) -> tuple[Agreement, frames.Ticket]:
    """Everybody has sent a vector; no list has been seen yet."""
    agreement = federation.agree()
    ticket = federation.ticket(agreement, number=number)
    for name in agreement.members:
        federation.seal(name, ticket, federation.part(name))
    return agreement, ticket


def _lists(ticket: frames.Ticket, survivors: str, dropped: str = "") -> frames.Unmask:
    """Lists of platforms by their last digits."""
    return frames.Unmask(
        epoch=ticket.epoch,
        slot=ticket.slot,
        survivors=tuple(f"p0{digit}" for digit in survivors),
        dropped=tuple(f"p0{digit}" for digit in dropped),
    )


@pytest.mark.parametrize(
    ("survivors", "dropped", "error", "match"),
    [
        ("12345", "5", SurvivorsError, "p05 is both"),
        ("12345", "12345", SurvivorsError, "p01 is both"),
        ("1234", "", SurvivorsError, "are not the members"),
        ("", "", SurvivorsError, "are not the members"),
        ("12345", "6", SurvivorsError, "are not the members"),
        ("123456", "", SurvivorsError, "are not the members"),
        ("1234", "6", SurvivorsError, "are not the members"),
        ("12354", "", SurvivorsError, "strictly sorted"),
        ("112345", "", SurvivorsError, "strictly sorted"),
        ("1234", "55", SurvivorsError, "strictly sorted"),
        ("2345", "1", SurvivorsError, "calls this platform dropped"),
        ("", "12345", SurvivorsError, "calls this platform dropped"),
        ("123", "45", TooFewPlatformsError, "too few platforms .*: 3 of 5, need 4; start"),
        ("1", "2345", TooFewPlatformsError, "too few platforms .*: 1 of 5, need 4; start"),
    ],
)
def test_lists_that_must_not_be_answered(
    survivors: str, dropped: str, error: type[SecureSumError], match: str
) -> None:
    federation = Federation()
    _, ticket = _sealed(federation)
    refuses(federation, A, _lists(ticket, survivors, dropped), error, match)


def test_every_platform_that_uploaded_refuses_to_be_dropped() -> None:
    federation = Federation()
    _, ticket = _sealed(federation)
    for digit in "12345":
        lists = _lists(ticket, "12345".replace(digit, ""), digit)
        refuses(federation, f"p0{digit}", lists, SurvivorsError, "but it has sent its vector")


def test_a_question_before_the_vector_or_for_another_sum() -> None:
    federation = Federation()
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    refuses(federation, A, _lists(ticket, "12345"), OutOfTurnError, "in Agreed")
    for name in (B, C, D, E):
        federation.seal(name, ticket, federation.part(name))
    later = replace(_lists(ticket, "12345"), slot=1)
    refuses(federation, B, later, OldSlotError, "slot 1 can't be opened")
    refuses(
        federation, C, replace(_lists(ticket, "12345"), epoch=bytes(16)), OldSlotError, "another"
    )


def test_a_question_for_an_older_slot() -> None:
    federation = Federation()
    agreement, ticket = _sealed(federation)
    federation.ask(A, _lists(ticket, "12345"), frames.Reveal)
    newer = federation.ticket(agreement, 1, number=2)
    for name in (A, B):
        federation.seal(name, newer, federation.part(name, 1))
        refuses(federation, name, _lists(ticket, "12345"), OldSlotError, "slot 0 can't be opened")
    newest = federation.ticket(agreement, 2, number=3)
    federation.seal(C, newest, federation.part(C, 2))
    federation.ask(C, _lists(newest, "12345"), frames.Reveal)
    refuses(federation, C, _lists(ticket, "12345"), OtherListError, "a second, different list")


def test_the_same_question_again_has_the_same_answer() -> None:
    federation = Federation()
    _, ticket = _sealed(federation)
    lists = _lists(ticket, "1234", "5")
    first = federation.ask(A, lists, frames.Reveal)
    assert federation.ask(A, lists, frames.Reveal) == first


def test_a_second_list_for_the_same_sum() -> None:
    federation = Federation()
    _, ticket = _sealed(federation)
    federation.ask(A, _lists(ticket, "12345"), frames.Reveal)
    federation.ask(B, _lists(ticket, "1234", "5"), frames.Reveal)
    refuses(federation, A, _lists(ticket, "1234", "5"), OtherListError, "second, different list")
    refuses(federation, B, _lists(ticket, "12345"), OtherListError, "second, different list")


@pytest.fixture(params=["in memory", "on disk"])
def record(request: pytest.FixtureRequest, tmp_path: Path) -> RecordOpening:
    """What platform A has opened."""
    if request.param == "in memory":
        return Openings()
    return OpenedOnDisk(tmp_path).check_and_record


def _records(record: RecordOpening) -> dict[str, RecordOpening]:
    return {A: record} | {name: Openings() for name in (B, C, D, E)}


@pytest.mark.parametrize("restarts", [False, True])
def test_a_second_list_for_the_same_round_under_new_keys(
    record: RecordOpening, restarts: bool
) -> None:
    federation = Federation(records=_records(record))
    _, ticket = _sealed(federation)
    federation.ask(A, _lists(ticket, "12345"), frames.Reveal)
    if restarts:
        federation.restart(A)
    _, ticket = _sealed(federation)
    refuses(federation, A, _lists(ticket, "1234", "5"), OtherListError, "opened over")
    _, ticket = _sealed(federation)
    federation.ask(A, _lists(ticket, "12345"), frames.Reveal)


def test_a_second_cohort_for_the_same_round(record: RecordOpening) -> None:
    """Without E in the key agreement, so that nobody need be called dropped."""
    federation = Federation(records=_records(record))
    _, ticket = _sealed(federation)
    federation.ask(A, _lists(ticket, "12345"), frames.Reveal)
    agreement = federation.agree((A, B, C, D))
    ticket = federation.ticket(agreement)
    federation.seal(A, ticket, federation.part(A))
    refuses(federation, A, _lists(ticket, "1234"), OtherListError, "opened over")


def test_a_round_that_was_left_behind(record: RecordOpening) -> None:
    federation = Federation(records=_records(record))
    _, ticket = _sealed(federation, number=7)
    federation.ask(A, _lists(ticket, "12345"), frames.Reveal)
    _, ticket = _sealed(federation, number=6)
    refuses(federation, A, _lists(ticket, "12345"), OldRoundError, "7 was opened")


def test_the_other_kind_of_sum_has_rounds_of_its_own(record: RecordOpening) -> None:
    federation = Federation(records=_records(record))
    _, ticket = _sealed(federation, number=7)
    federation.ask(A, _lists(ticket, "12345"), frames.Reveal)
    ticket = federation.ticket(federation.agree(), kind=Kind.EVALUATE, number=7)
    federation.seal(A, ticket, federation.part(A))
    federation.ask(A, _lists(ticket, "1234", "5"), frames.Reveal)


def test_no_share_leaves_before_the_opening_is_on_disk(tmp_path: Path) -> None:
    record = OpenedOnDisk(tmp_path)
    federation = Federation(records=_records(record.check_and_record))
    _, ticket = _sealed(federation)
    (tmp_path / "opened.json").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(StateError, match="damaged"):
            federation.ask(A, _lists(ticket, "12345"), frames.Reveal)
        assert isinstance(federation.platforms[A].state, Sealed)
