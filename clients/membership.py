"""What a platform is to a federation: a stranger, a member, or one whose run is finished."""

from __future__ import annotations

from dataclasses import dataclass, replace

from clients.dataset import Dataset
from clients.sealing import Sealer
from clients.validation import Validation
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.parameters import Layout, Vector
from crossrec_model.statistics import Statistics


@dataclass(frozen=True, kw_only=True, eq=False)
class Received:
    """What the federation has given this platform so far.

    `vector` float32 [d] is the latest shared model, as of the end of round `round`; `validation`
    are the statistics that were shared as of the validation weeks, None until a request after the
    first round has brought them; `finished` tells whether the vector is the run's final one.
    """

    plan: Plan
    run: bytes
    round: int
    vector: Vector
    validation: Statistics | None
    finished: bool


@dataclass(frozen=True)
class Stranger:
    """Not yet welcomed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """Welcomed with a plan; `received` is None until the first request of the run."""

    plan: Plan
    layout: Layout
    dataset: Dataset
    check: Validation
    sealer: Sealer
    #: As many platforms of the sealer's roster share out distributed noise, see `Guard.honest`.
    honest: int
    received: Received | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """The run is over."""

    received: Received


State = Stranger | Member | Finished


def check_same_run(earlier: Received, run: bytes, plan: Plan) -> None:
    """Refuse to begin anew what was not finished: sums of two runs could be subtracted.

    The same run may go on, and be given more rounds before its last one was asked for.

    Raises:
        ConfigError: for another run, or another plan of the same one.
    """
    if earlier.finished:
        return
    if earlier.run != run:
        raise ConfigError(
            f"the coordinator begins another run though the last one stopped in round "
            f"{earlier.round + 1} of {earlier.plan.federation.rounds}; sums of both could be "
            "subtracted: ask its operator why, then add --new-run"
        )
    if earlier.plan == plan:
        return
    longer = replace(
        earlier.plan,
        federation=replace(earlier.plan.federation, rounds=plan.federation.rounds),
    )
    if longer != plan or earlier.round + 1 >= earlier.plan.federation.rounds:
        raise ConfigError(
            "the coordinator goes on with another plan than the run began with; "
            "ask its operator why, then add --new-run"
        )
