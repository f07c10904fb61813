"""The secure sum's two sides, which get frames in every state, and the arithmetic behind them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from targets import OF_BYTES, Check, Cost, Target, same
from targets_keys import key
from targets_wire import in_part, join, split

from crossrec_model.errors import WireError
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.coordinator import Collecting
from crossrec_model.secagg.errors import SharesError
from crossrec_model.secagg.gathering import Agreement, Delivering, Inviting, Listing
from crossrec_model.secagg.masking import number_type
from crossrec_model.secagg.messages import SHARE_BYTES
from crossrec_model.secagg.participant import State
from crossrec_model.secagg.shamir import combine_many, share_many

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "secagg"))
from federation_in_memory import DIMENSION, RUN, SUBJECT, Federation, grid_of

_EPOCH: Final = bytes(range(16, 32))
_NAMES: Final = ("p01", "p02", "p03", "p04")


class _Same:
    """The same draws in the same order each time, so that a saved input can be tried again."""

    def __init__(self, name: str) -> None:
        self._stream, self._count = name, 0

    def bytes(self, count: int) -> bytes:
        """The next draw."""
        self._count += 1
        return hashlib.shake_256(f"{self._stream}/{self._count}".encode()).digest(count)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Session:
    """A sum of four platforms, as far as three of them uploaded; every state and frame of p01's."""

    federation: Federation
    states: tuple[State, ...]
    asked: tuple[bytes, ...]
    inviting: Inviting
    listing: Listing
    delivering: Delivering
    agreement: Agreement
    ticket: frames.Ticket
    answers: tuple[bytes, ...]


@cache
def _session() -> _Session:
    federation = Federation(4, identities={name: key(name) for name in _NAMES}, signer=key("s"))
    for name in _NAMES:
        federation.platforms[name] = federation.made(name, _Same(name))  # type: ignore[arg-type]
    first = federation.platforms["p01"]
    states, asked, answers = [first.state], [], []
    invite = frames.Invite(
        run=RUN,
        epoch=_EPOCH,
        slots=2,
        roster=federation.roster.digest,
        plan=federation.terms.plan,
    )
    listing = federation.listing(invite=invite)
    asked.append(frames.encode(invite))
    answers.append(frames.encode(listing.members["p01"]))
    states.append(first.state)
    delivering = federation.delivering(listing)
    asked.append(frames.encode(listing.message))
    answers.append(frames.encode(delivering.shares["p01"]))
    states.append(first.state)
    agreement = delivering.close({
        name: federation.ask(name, delivery, frames.Ready)
        for name, delivery in delivering.messages().items()
    })  # fmt: skip
    asked.append(frames.encode(delivering.messages()["p01"]))
    answers.append(frames.encode(frames.Ready(epoch=_EPOCH, transcript=agreement.transcript)))
    states.append(first.state)
    ticket = federation.ticket(agreement)
    asked.append(frames.encode(ticket))
    collecting = Collecting(agreement=agreement, ticket=ticket, subject=SUBJECT)
    for name in _NAMES[:3]:
        sealed = federation.seal(name, ticket, federation.part(name))
        collecting.add(name, sealed)
        if name == "p01":
            answers.append(sealed)
    states.append(first.state)
    unmasking = collecting.close()
    asked.append(frames.encode(unmasking.message))
    answers += [
        frames.encode(federation.ask(name, unmasking.message, frames.Reveal)) for name in _NAMES[:3]
    ]
    states.append(first.state)
    return _Session(
        federation=federation,
        states=tuple(states),
        asked=tuple(asked),
        inviting=Inviting(terms=federation.terms, invite=invite),
        listing=listing,
        delivering=delivering,
        agreement=agreement,
        ticket=ticket,
        answers=tuple(answers),
    )


def _participant(_folder: Path) -> Check:
    """The first byte picks p01's state; the rest is what the coordinator sends."""
    session = _session()
    platform = session.federation.made("p01", _Same("again"))  # type: ignore[arg-type]

    def check(data: bytes) -> None:
        if not data:
            raise WireError("no state")
        platform.state = session.states[(data[0] & 0x7F) % len(session.states)]
        platform._seen.clear()
        if data[0] >= 0x80:
            platform.check(data[1:], DIMENSION, run=RUN, kind=frames.Kind.TRAIN, number=1)
        else:
            frames.decode(platform.answer(data[1:]))

    return check


def _participant_seeds() -> list[bytes]:
    session = _session()
    tickets = [b"\x83" + session.asked[3]]
    return tickets + [bytes((state,)) + session.asked[state] for state in (0, 1, 2, 4)]


def _reveal(session: _Session, data: bytes) -> None:
    collecting = Collecting(agreement=session.agreement, ticket=session.ticket, subject=SUBJECT)
    for name in _NAMES[:3]:
        # Only the shares are judged here, so that any vector will do.
        collecting._added.add(name)
    unmasking = collecting.close()
    for name, own in zip(_NAMES[1:3], session.answers[5:], strict=False):
        unmasking.add(name, frames.decode_as(frames.Reveal, own))
    unmasking.add("p01", frames.decode_as(frames.Reveal, data))
    unmasking.open()


def _coordinator(_folder: Path) -> Check:
    """The first byte picks the coordinator's step; the rest is what platform p01 sends."""
    session = _session()
    names = session.listing.members

    def keys(data: bytes) -> None:
        answers = {**names, "p01": frames.decode_as(frames.Keys, data)}
        session.inviting.close(answers)

    def shares(data: bytes) -> None:
        own = {**session.delivering.shares, "p01": frames.decode_as(frames.Shares, data)}
        session.listing.close(own).messages()

    def ready(data: bytes) -> None:
        answer = frames.decode_as(frames.Ready, data)
        session.delivering.close(dict.fromkeys(names, answer))

    def upload(data: bytes) -> None:
        Collecting(agreement=session.agreement, ticket=session.ticket, subject=SUBJECT).add(
            "p01", data
        )

    steps: list[Callable[[bytes], None]] = [keys, shares, ready, upload]
    steps.append(lambda data: _reveal(session, data))

    def check(data: bytes) -> None:
        if not data:
            raise WireError("no step")
        steps[data[0] % len(steps)](data[1:])

    return check


def _coordinator_seeds() -> list[bytes]:
    return [bytes((step,)) + frame for step, frame in enumerate(_session().answers[:6])][:5]


def _shares(data: bytes) -> None:
    """A threshold, then for each holder its number in a byte, then its joined shares."""
    first, *rest = [*split(data), b""]
    found = {part[0]: part[1:] for part in rest if part}
    secrets = combine_many(found, threshold=int.from_bytes(first[:1], "little"))
    same({len(secret) for secret in secrets} <= {32}, True, "length of the secrets")


def _share_seeds() -> list[bytes]:
    randomness: Any = _Same("shares")
    secrets = [bytes(range(at, at + 32)) for at in range(2)]
    shares = share_many(secrets, threshold=3, holders=5, randomness=randomness)
    return [
        join([b"\3", *(bytes((x,)) + one for x, one in enumerate(shares[:count], start=1))])
        for count in (3, 4)
    ] + [join([b"\1", b"\1" + bytes(SHARE_BYTES)])]


def _grid(data: bytes) -> None:
    """The width's index, the number of members, then the sum's numbers in memory order."""
    if len(data) < 2:
        raise SharesError("no sum")
    bits, members = (16, 24, 32)[data[0] % 3], 1 + data[1] % 100
    kind, grid = number_type(bits), grid_of(1 << (12, 16, 24)[data[0] % 3])
    total = np.frombuffer(data[2 : 2 + (len(data) - 2) // 4 * 4], dtype=kind)
    if len(total) < 2:
        raise SharesError("no sum")
    mean = grid.decode(total, len(total) - 2, bits=bits, members=members)
    same(bool(np.isfinite(mean.update).all() and np.isfinite(mean.metrics).all()), True, "finite")


def _grid_seeds() -> list[bytes]:
    made = []
    for at, bits in enumerate((16, 24, 32)):
        numbers = np.array([5, -7, 0, 9, 256, 12], dtype=np.int64) % (1 << bits)
        made.append(bytes((at, 2)) + numbers.astype(number_type(bits)).tobytes())
    return made


TARGETS: Final = (
    Target(
        name="secagg.participant",
        seeds=_participant_seeds,
        check=_participant,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="secagg.coordinator",
        seeds=_coordinator_seeds,
        check=_coordinator,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="secagg.shares",
        seeds=_share_seeds,
        check=lambda _: _shares,
        changes=(*OF_BYTES, in_part, in_part),
    ),
    Target(name="secagg.grid", seeds=_grid_seeds, check=lambda _: _grid),
)
