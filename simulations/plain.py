"""Sums without protection, for experiments alone: the coordinator sees every contribution.

Nothing in `clients` or `server` imports this; an import contract keeps it so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from crossrec_model.config import Plan
from crossrec_model.errors import FederationError, WireError
from crossrec_model.secagg.errors import NotFiniteError, OutOfTurnError
from crossrec_model.secagg.messages import MAX_PLATFORMS, Kind
from crossrec_model.wire.codec import FloatVector, Pieces, Reader, Vector
from crossrec_model.wire.contribution import Contribution, Mean
from server.aggregation import CohortTooSmallError, Gathered, Question, part_of
from server.courier import Courier, NodeId

_VECTOR = Vector("contribution")


def pack(contribution: Contribution) -> FloatVector:
    """Return the vector [weight · update, weight, weight · metrics], float32 [d + 1 + m].

    Raises:
        NotFiniteError: for a weight below 0, or a number that is NaN or too large for float32.
    """
    if not (np.isfinite(contribution.weight) and contribution.weight >= 0):
        raise NotFiniteError(f"weight is {contribution.weight}; at least 0 is needed")
    tail = np.array([1.0, *contribution.metrics], dtype=np.float64)
    whole = np.concatenate([contribution.update.astype(np.float64), tail]) * contribution.weight
    if not (np.abs(whole) <= np.finfo(np.float32).max).all():
        raise NotFiniteError("the update holds NaN, an infinity or a number beyond float32")
    return whole.astype(np.float32)


def mean_of(total: npt.NDArray[np.float64], dimension: int) -> Mean:
    """Return the weighted mean in a sum of vectors, float64 [dimension + 1 + m].

    Raises:
        FederationError: if the total weight is not above 0.
    """
    weight = float(total[dimension])
    if not weight > 0:
        raise FederationError(f"the cohort's total weight is {weight}; it must be above 0")
    scaled = total / weight
    return Mean(update=scaled[:dimension], weight=weight, metrics=scaled[dimension + 1 :])


class PlainSealer:
    """Sends contributions as they are."""

    def __init__(self, _plan: Plan) -> None:
        pass

    def answer(self, frame: bytes) -> bytes:
        """There is nothing to agree on."""
        raise OutOfTurnError(f"a frame of {len(frame)} bytes came, but sums are not secure here")

    def check(self, ticket: bytes, dimension: int, *, run: bytes, kind: Kind, number: int) -> None:
        """Every sum is fine here."""

    def seal(
        self,
        ticket: bytes,
        contribution: Contribution,
        *,
        run: bytes,
        kind: Kind,
        number: int,
        subject: bytes,
    ) -> Pieces:
        """Return the contribution's vector."""
        return _VECTOR.pieces(pack(contribution))


class PlainSum:
    """Adds up vectors in sorted order of platform id, so that a sum has one value."""

    most = MAX_PLATFORMS

    def __init__(self, courier: Courier, plan: Plan, *, least: int = 1) -> None:
        self._courier, self.least = courier, least
        self._timeout_s = plan.federation.round_timeout_s

    def objection(self, platform: str) -> str | None:
        """Anybody may take part."""
        return None

    def gather(self, question: Question, seats: Mapping[str, NodeId]) -> Gathered:
        """See `Aggregation.gather`."""
        names = {node: platform for platform, node in seats.items()}
        payload = question.request(b"")
        lost: dict[str, str] = {}
        vectors: dict[str, FloatVector] = {}
        for node, answer in self._courier.exchange(
            dict.fromkeys(names, payload), timeout_s=self._timeout_s
        ):
            body = part_of(question, answer)
            found = body if isinstance(body, str) else _vector(body, question.length)
            if isinstance(found, str):
                lost[names[node]] = found
            else:
                vectors[names[node]] = found
        if len(vectors) < self.least:
            why = f"{len(vectors)} platforms answered, at least {self.least} are needed"
            raise CohortTooSmallError(why, lost)
        total = np.zeros(question.length, dtype=np.float64)
        for platform in sorted(vectors):
            total += vectors[platform]
        mean = mean_of(total, question.dimension)
        return Gathered(mean=mean, contributors=tuple(sorted(vectors)), lost=lost)


def _vector(body: bytes | memoryview, length: int) -> FloatVector | str:
    """Return the vector in a body, or what is wrong with it."""
    reader = Reader(body)
    try:
        vector = _VECTOR.read(reader)
        reader.end()
    except WireError as error:
        return str(error)
    if len(vector) != length:
        return f"its vector has {len(vector)} numbers, not {length}"
    return vector
