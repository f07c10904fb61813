"""Sums that were begun to be opened: over the same platforms again, after a restart too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from crossrec_model.config import Plan
from crossrec_model.errors import FederationError
from crossrec_model.secagg.messages import Kind
from server.aggregation import CohortTooSmallError, Question
from server.courier import Arrivals, Frame, Loss, Lost, NodeId
from server.openings import Openings
from server.securesum import SecureSum
from simulations.sums import identities_for

RUN, OTHER_RUN = bytes(range(16)), bytes(16)
SEATS = {name: NodeId(at) for at, name in enumerate("ABCD", start=1)}


def test_an_opening_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "openings.json"
    openings = Openings(RUN, path)
    assert openings.of(Kind.TRAIN, 3) is None
    openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))
    openings.begin(Kind.EVALUATE, 2, ("A", "B", "C", "D"))
    again = Openings(RUN, path)
    assert again.of(Kind.TRAIN, 3) == ("A", "B", "C")
    assert again.of(Kind.EVALUATE, 2) == ("A", "B", "C", "D")
    assert again.of(Kind.TRAIN, 2) is again.of(Kind.EVALUATE, 3) is None
    # Another run opens sums of its own.
    assert Openings(OTHER_RUN, path).of(Kind.TRAIN, 3) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": 5}', b"\xff"])
def test_a_damaged_file_is_never_taken_for_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "openings.json"
    Openings(RUN, path).begin(Kind.TRAIN, 3, ("A", "B", "C"))
    path.write_bytes(content)
    with pytest.raises(FederationError, match=r"openings.json is damaged .*; move it away"):
        Openings(RUN, path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    openings = Openings(RUN, tmp_path / "none" / "openings.json")
    with pytest.raises(FederationError, match=r"can't write .*openings.json: No such file"):
        openings.begin(Kind.TRAIN, 1, ("A", "B", "C"))


class Asked:
    """A courier of whom nobody answers; it keeps who was asked."""

    def __init__(self) -> None:
        self.first: set[NodeId] | None = None

    def owner(self, node: NodeId) -> str | None:
        return None

    def nodes(self) -> dict[NodeId, float]:
        return dict.fromkeys(SEATS.values(), 1.0)

    def exchange(self, payloads: Mapping[NodeId, Frame], *, timeout_s: float) -> Arrivals:
        self.first = self.first or set(payloads)
        yield from ((node, Lost(Loss.GONE)) for node in payloads)


def _gather(openings: Openings, seats: Mapping[str, NodeId]) -> tuple[Asked, str]:
    courier = Asked()
    roster = identities_for("ABCD")[1].roster
    aggregation = SecureSum(courier, Plan(), roster, openings, lambda _line: None)
    question = Question(
        kind=Kind.TRAIN,
        run=RUN,
        round=3,
        dimension=4,
        metrics=("loss",),
        subject=bytes(32),
        request=lambda ticket: ticket,
    )
    with pytest.raises(CohortTooSmallError) as caught:
        aggregation.gather(question, seats)
    return courier, str(caught.value)


def test_a_begun_round_asks_the_same_platforms_and_nobody_else() -> None:
    openings = Openings(RUN)
    assert _gather(openings, SEATS)[0].first == set(SEATS.values())
    openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))
    assert _gather(openings, SEATS)[0].first == {SEATS[name] for name in "ABC"}


def test_a_begun_round_waits_for_whoever_is_missing() -> None:
    openings = Openings(RUN)
    openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))
    courier, why = _gather(openings, {name: SEATS[name] for name in "ABD"})
    assert courier.first is None
    assert why == (
        "round 3 was begun to be opened over A, B, C and can be opened over nobody else; "
        "start C again"
    )
