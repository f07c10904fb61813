"""How the coordinator gets a sum from its platforms, whatever hides the single contributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from crossrec_model.errors import FederationError, WireError
from crossrec_model.secagg.messages import Kind
from crossrec_model.wire.contribution import Mean
from crossrec_model.wire.messages import SumReply, decode_as
from server.courier import Lost, NodeId, Payload


class CohortTooSmallError(FederationError):
    """Fewer platforms answered than a sum needs; the model stays as it was."""

    def __init__(self, why: str, lost: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{platform}: {reason}" for platform, reason in sorted(lost.items()))
        super().__init__(why + (f" ({reasons})" if reasons else ""))
        self.lost = tuple(sorted(lost))


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every platform: contributions to one sum.

    `request` returns the frame to send for a ticket, and `subject` is `secagg.sums.subject_of` it.
    `dimension` is the length of the update, and
    `metrics` are the names of what follows the weight.
    """

    kind: Kind
    run: bytes
    round: int
    dimension: int
    metrics: tuple[str, ...]
    subject: bytes
    request: Callable[[bytes], bytes]

    @property
    def length(self) -> int:
        """How many numbers a contribution has."""
        return self.dimension + 1 + len(self.metrics)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """The mean over the contributors, and why every other platform is not among them."""

    mean: Mean
    contributors: tuple[str, ...]
    lost: dict[str, str]


class Aggregation(Protocol):
    """Asks platforms a question and returns the mean of their answers."""

    @property
    def least(self) -> int:
        """The fewest platforms that a sum needs."""

    @property
    def most(self) -> int:
        """The most platforms that there can be."""

    def objection(self, platform: str) -> str | None:
        """Return why a platform can't take part, None if it can."""

    def gather(self, question: Question, seats: Mapping[str, NodeId]) -> Gathered:
        """Ask every seated platform.

        Raises:
            CohortTooSmallError: if too few answer; nothing was learnt about any of them.
        """


def part_of(question: Question, answer: Payload | Lost) -> bytes | memoryview | str:
    """Return the body of a platform's answer to a question, or why it is none."""
    if isinstance(answer, Lost):
        return str(answer.loss)
    try:
        reply = decode_as(SumReply, answer)
    except WireError as error:
        return str(error)
    if (reply.run, reply.round) != (question.run, question.round):
        return f"it answered for round {reply.round}, not {question.round}"
    return reply.body[0]
