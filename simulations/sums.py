"""How an experiment adds up contributions: securely as in reality, or in the open for comparison."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass

from clients.opened import Opening
from clients.sealing import SealerFor, secure_sealer
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.roster import FEWEST, Roster, SignedRoster, sign
from server.aggregation import Aggregation
from server.courier import Courier
from server.openings import Openings
from server.securesum import SecureSum
from simulations.plain import PlainSealer, PlainSum

Note = Callable[[str], None]
WARNING = (
    "warning: secure aggregation is off, the coordinator sees every platform's contribution; "
    "only simulations can do this"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """Both sides of an aggregation: what seals for each platform, and what adds up.

    `honest` gives in how many platforms of each sum the noise is known to nobody else.
    """

    sealers: Mapping[str, SealerFor]
    aggregation: Callable[[Courier, Plan, Note], Aggregation]
    honest: Callable[[Plan], int]


def secure_sums(platforms: Iterable[str]) -> Sums:
    """Fresh identities for all platforms, and the real protocol between them.

    Raises:
        ConfigError: for fewer than three platforms.
    """
    return sums_under(*identities_for(platforms))


def sums_under(identities: Mapping[str, IdentityKey], signed: SignedRoster) -> Sums:
    """The real protocol between platforms of these identities."""
    return Sums(
        sealers={
            name: secure_sealer(name, identity, signed.roster, OpenedInMemory())
            for name, identity in identities.items()
        },
        aggregation=functools.partial(_secure, signed.roster),
        honest=lambda plan: signed.roster.honest(plan.aggregation.colluding_share),
    )


def plain_sums(platforms: Iterable[str]) -> Sums:
    """No protection: everything in the open."""
    return Sums(
        sealers=dict.fromkeys(platforms, PlainSealer),
        aggregation=lambda courier, plan, _note: PlainSum(courier, plan),
        # Each share of noise is whole: nothing hides one platform's among the others'.
        honest=lambda _plan: 1,
    )


def check_enough(platforms: Sized) -> None:
    """Raise ConfigError for too few platforms for a secure sum."""
    if len(platforms) < FEWEST:
        raise ConfigError(
            f"{len(platforms)} platforms are too few for secure aggregation, which needs {FEWEST}; "
            "name more, or add --no-secure-aggregation"
        )


def identities_for(platforms: Iterable[str]) -> tuple[dict[str, IdentityKey], SignedRoster]:
    """Fresh identities, and a roster of them by a signer of its own.

    Raises:
        ConfigError: for fewer than three platforms.
    """
    source, names = SystemRandomness(), sorted(platforms)
    check_enough(names)
    identities = {name: IdentityKey.generate(source) for name in names}
    signer = IdentityKey.generate(source)
    roster = Roster(
        federation="simulation",
        version=1,
        members=tuple(Member(name, key.public) for name, key in identities.items()),
        signer=signer.public,
    )
    return identities, sign(roster, signer)


class OpenedInMemory:
    """What a platform has opened: a simulation does not outlive its process."""

    def __init__(self) -> None:
        self._latest: dict[tuple[bytes, int], Opening] = {}

    def __call__(self, run: bytes, kind: int, number: int, survivors: tuple[str, ...]) -> None:
        """As `clients.opened.Opened.check_and_record`."""
        asked = Opening(run=run, kind=kind, round=number, survivors=survivors)
        if before := self._latest.get((run, kind)):
            asked.check_after(before)
        self._latest[run, kind] = asked


def _secure(roster: Roster, courier: Courier, plan: Plan, note: Note) -> Aggregation:
    # In memory, and so of one run only: its id is not needed.
    return SecureSum(courier, plan, roster, Openings(b""), note)
