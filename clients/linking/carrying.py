"""Profiles to a linked platform and back, through the courier; goes on where an earlier attempt stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256

from clients.keys import write_file
from clients.linking.folder import LinkageFolder
from clients.linking.kept import Kept, Phase, load_kept
from clients.linking.line import Ask, Line, resumed_at
from clients.linking.session import MOST_ANEW, SETTLE_S, Show, Stepped, parties_with
from crossrec_model.errors import StateError
from crossrec_model.linkage.carried import (
    BEFORE,
    Accepted,
    Carrying,
    Offered,
    Opening,
    accept_profiles,
    offer_profiles,
)
from crossrec_model.linkage.channel import partner_key
from crossrec_model.linkage.errors import OtherSessionError
from crossrec_model.linkage.intersection import Side
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.post import ANY_THREAD, THREAD_BYTES
from crossrec_model.randomness import SystemRandomness

#: Gets the partner's whole batch before it is confirmed; again after an interruption.
Take = Callable[[bytes], object]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Which batch goes to whom, and what comes back for it goes to `take`."""

    side: Side
    partner: str
    batch: bytes = field(repr=False)
    take: Take
    folder: LinkageFolder
    ask: Ask
    patience_s: float = 600.0
    report: Callable[[str], None] = print
    show: Show = lambda done, total: None
    randomness: SystemRandomness = field(default_factory=SystemRandomness)
    settle_s: float = SETTLE_S


class Carriage(Stepped):
    """Drives the states of `linkage.carried` over a line; each step is on disk before it counts.

    1. Make a frame, and keep it in the session's folder; keep what a frame brought there too.
    2. Write the state that counts on it.
    3. Only then may the frame leave.

    The own batch is not kept: it is made anew, and must be the same bytes as before, since one nonce
    seals one block.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._path = delivery.folder.session_path(delivery.partner, Purpose.PROFILES)
        self._path.mkdir(mode=0o700, exist_ok=True)
        self._kept = self._begin()
        self._line = Line(
            delivery.ask,
            self._path,
            delivery.partner,
            Purpose.PROFILES,
            thread=self._kept.thread,
            patience_s=delivery.patience_s,
            report=delivery.report,
        )
        resumed_at(self._line, self._path, self._kept.sent)

    @property
    def early(self) -> bool:
        """Whether nothing of the batch was sent yet."""
        return self._kept.phase in {Phase.NEW, Phase.OFFERED, Phase.ACCEPTED}

    def run(self) -> None:
        """Go on to the end: both batches are taken and confirmed.

        Raises:
            LinkageError: for every refusal by name; what is on disk then still holds.
        """
        state = self._state() or self._first()
        if isinstance(state, Offered):
            state, frame = state.accepted(self._receive())
            kept = self._kept.with_channel(state.channel, Phase.OPENING)
            self._step(replace(kept, secret=b"", offer=b""), frame, taken=True)
        if isinstance(state, Opening):
            carrying = state.announced(self._receive())
            self._step(self._carrying(carrying), None, taken=True)
        elif isinstance(state, Accepted):
            carrying, frame = state.announced(self._receive())
            self._step(self._carrying(carrying), frame, taken=True)
        else:
            carrying = state
        carrying = self._exchange(carrying)
        if self._kept.sent == BEFORE + carrying.blocks:
            theirs = self._theirs(carrying)
            receipt = carrying.receipt(theirs)
            self._delivery.take(theirs)
            self._step(self._kept, receipt, taken=False)
        if self._kept.taken == BEFORE + carrying.their_blocks:
            carrying.confirmed(self._receive())
            self._step(self._kept, None, taken=True)

    def settle(self) -> None:
        """Let the partner have what it still needs, then delete the session."""
        kept, delivery = self._kept, self._delivery
        if not self._line.settle(kept.taken, kept.sent, within_s=delivery.settle_s):
            delivery.report(
                f"{delivery.partner} has not fetched the last frames; if it did not finish, run this "
                "again on both sides"
            )
        delivery.folder.clear_session(delivery.partner, Purpose.PROFILES)

    def _begin(self) -> Kept:
        delivery, digest = self._delivery, sha256(self._delivery.batch).digest()
        own, roster = delivery.side.platform, delivery.side.roster
        key = partner_key(roster, own, delivery.partner)
        parties = parties_with(delivery.side, delivery.partner, Purpose.PROFILES)
        kept = load_kept(self._path)
        if kept is None:
            return Kept(
                parties=parties,
                partner=key.raw,
                time=int(time.time()),
                elements=digest,
                seed=b"",
                thread=delivery.randomness.bytes(THREAD_BYTES)
                if own == parties.initiator
                else ANY_THREAD,
            )
        if (kept.parties, kept.partner) != (parties, key.raw):
            raise StateError(
                f"the federation, or the key of {delivery.partner}, has changed since profiles were "
                "interrupted; begin anew with --restart"
            )
        if kept.elements != digest:
            raise StateError(
                f"the profiles for {delivery.partner} have changed since they were interrupted; begin "
                "anew with --restart"
            )
        delivery.report(f"going on with the interrupted profiles with {delivery.partner}")
        return kept

    def _state(self) -> Offered | Opening | Accepted | Carrying | None:
        """Make the state anew of what is on disk; None at the very beginning."""
        kept, delivery = self._kept, self._delivery
        batch = delivery.batch
        if kept.phase is Phase.NEW:
            return None
        if kept.phase is Phase.OFFERED:
            secret = self._offered(delivery.side, delivery.partner)
            return Offered(secret=secret, batch=batch)
        channel = kept.channel(delivery.side.platform)
        if kept.phase is Phase.ACCEPTED:
            return Accepted(channel=channel, batch=batch)
        if kept.phase is Phase.OPENING:
            return Opening(channel=channel, batch=batch)
        state = Carrying(channel=channel, batch=batch, their_size=kept.their_size)
        return replace(
            state,
            sent=min(kept.sent - BEFORE, state.blocks),
            taken=min(kept.taken - BEFORE, state.their_blocks),
        )

    def _first(self) -> Offered | Accepted:
        """Offer, or wait for the offer and accept it."""
        side, partner, batch = self._delivery.side, self._delivery.partner, self._delivery.batch
        randomness = self._delivery.randomness
        if self._kept.parties.initiator == side.platform:
            offered, frame = offer_profiles(side, partner, batch, randomness)
            secret = offered.secret.secret
            kept = replace(self._kept, phase=Phase.OFFERED, secret=secret, offer=frame)
            self._step(kept, frame, taken=False)
            return offered
        accepted, frame = accept_profiles(side, partner, self._receive(), batch, randomness)
        kept = replace(self._kept, thread=self._line.thread)
        self._step(kept.with_channel(accepted.channel, Phase.ACCEPTED), frame, taken=True)
        return accepted

    def _exchange(self, state: Carrying) -> Carrying:
        """One block out, one in; then what is left of the own ones."""
        total = state.blocks + state.their_blocks
        while state.taken < state.their_blocks:
            state = self._sent_next(state)
            state, plain = state.receive(self._receive())
            write_file(self._path / f"in-{state.taken - 1}", plain)
            self._step(self._kept, None, taken=True)
            self._delivery.show(state.sent + state.taken, total)
        while state.sent < state.blocks:
            state = self._sent_next(state)
        return state

    def _sent_next(self, state: Carrying) -> Carrying:
        following = state.next_block()
        if following is None:
            return state
        state, frame = following
        self._step(self._kept, frame, taken=False)
        return state

    def _theirs(self, state: Carrying) -> bytes:
        try:
            parts = [(self._path / f"in-{n}").read_bytes() for n in range(state.their_blocks)]
        except OSError as error:
            raise StateError(
                f"{error.filename} can't be read: {error.strerror}; begin anew with --restart"
            ) from None
        return b"".join(parts)

    def _carrying(self, state: Carrying) -> Kept:
        return replace(self._kept, phase=Phase.EXCHANGING, their_size=state.their_size)


def carry(delivery: Delivery) -> Carriage:
    """Run to the end; a session that the partner has left before anything was sent is begun anew."""
    anew = 0
    while True:
        carriage = Carriage(delivery)
        try:
            carriage.run()
            return carriage
        except OtherSessionError:
            if not carriage.early or anew == MOST_ANEW:
                raise
            anew += 1
            delivery.folder.clear_session(delivery.partner, Purpose.PROFILES)
            delivery.report(f"{delivery.partner} has begun anew; so does this side")
