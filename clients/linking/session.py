"""One linkage from its first frame to the links file, going on where an earlier attempt stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from clients.linking.folder import LinkageFolder
from clients.linking.kept import Kept, Phase, load_kept, on_disk, save_kept
from clients.linking.line import Ask, Line, resumed_at
from crossrec_model.errors import StateError
from crossrec_model.linkage.blinding import SEED_BYTES, Blinding
from crossrec_model.linkage.channel import OfferSecret, Parties, partner_key
from crossrec_model.linkage.compared import Compared
from crossrec_model.linkage.elements import Elements
from crossrec_model.linkage.errors import OtherSessionError
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.intersection import (
    WINDOW,
    Accepted,
    Counters,
    Exchanging,
    Offered,
    Opening,
    Side,
)
from crossrec_model.linkage.messages import Offer, Purpose, decode_as
from crossrec_model.linkage.policy import Permit, Policy, marks_of
from crossrec_model.linkage.post import ANY_THREAD, THREAD_BYTES
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.node_pass import federation_of

#: How long the end is told to a partner that may still need it, in seconds.
SETTLE_S: Final = 60.0
#: How often a session is begun anew because the partner, or so the courier says, has done so.
MOST_ANEW: Final = 100
#: Blocks done, of all.
Show = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be linked, by whom, under which policy."""

    side: Side
    partner: str
    purpose: Purpose
    elements: Elements
    policy: Policy
    folder: LinkageFolder
    ask: Ask
    patience_s: float = 600.0
    report: Callable[[str], None] = print
    show: Show = lambda done, total: None
    randomness: SystemRandomness = field(default_factory=SystemRandomness)
    settle_s: float = SETTLE_S


def parties_with(side: Side, partner: str, purpose: Purpose) -> Parties:
    """Who takes part; the first by name begins."""
    first, second = sorted((side.platform, partner))
    return Parties(
        federation=federation_of(side.roster),
        initiator=first,
        responder=second,
        purpose=purpose,
    )


class Stepped:
    """A session whose every step is on disk before it counts: the frame, then the state, then it leaves."""

    _path: Path
    _kept: Kept
    _line: Line

    def _receive(self) -> bytes:
        return self._line.receive(self._kept.taken, self._kept.sent)

    def _flush(self) -> None:
        """Bring to the disk whatever else the next state counts on."""

    def _step(self, kept: Kept, frame: bytes | None, *, taken: bool) -> None:
        if frame is not None:
            self._line.put(kept.sent, frame)
            kept = replace(kept, sent=kept.sent + 1)
        kept = replace(kept, taken=kept.taken + int(taken))
        self._flush()
        save_kept(self._path, kept)
        self._kept = kept

    def _offered(self, side: Side, partner: str) -> OfferSecret:
        """The secret of the offer that was made."""
        return OfferSecret(
            parties=self._kept.parties,
            offer=decode_as(Offer, self._kept.offer),
            partner=partner_key(side.roster, side.platform, partner),
            secret=self._kept.secret,
        )


class Session(Stepped):
    """Drives the states of `linkage.intersection` over a line; each step is on disk before it counts.

    1. Make a frame, and keep it in the session's folder.
    2. Write the state that counts on it, the arrays first.
    3. Only then may the frame leave.
    """

    def __init__(self, task: Task, cores: Cores) -> None:
        self._task, self._cores = task, cores
        self._path = task.folder.session_path(task.partner, task.purpose)
        self._path.mkdir(mode=0o700, exist_ok=True)
        self._storage, self._flush_arrays = on_disk(self._path)
        self._kept = self._begin()
        self._line = Line(
            task.ask,
            self._path,
            task.partner,
            task.purpose,
            thread=self._kept.thread,
            patience_s=task.patience_s,
            report=task.report,
        )
        resumed_at(self._line, self._path, self._kept.sent)

    @property
    def id(self) -> bytes:
        """The session's id, once its channel is open."""
        return self._kept.session

    def run(self) -> Compared:
        """Go on to the end.

        Raises:
            LinkageError: for every refusal by name; what is on disk then still holds.
        """
        state = self._state()
        if state is None:
            state = self._first()
        if isinstance(state, Offered):
            state, frame = state.accepted(self._receive())
            kept = self._kept.with_channel(state.channel, Phase.OPENING)
            self._step(replace(kept, secret=b"", offer=b""), frame, taken=True)
        if isinstance(state, Opening):
            exchanging = state.announced(self._receive(), self._storage)
            self._step(self._exchanging(exchanging), None, taken=True)
        elif isinstance(state, Accepted):
            exchanging, frame = state.announced(self._receive(), self._storage)
            self._step(self._exchanging(exchanging), frame, taken=True)
        else:
            exchanging = state
        self._exchange(exchanging)
        return exchanging.compare()

    def settle(self) -> None:
        """Let the partner have what it still needs, then delete the session."""
        kept = self._kept
        if not self._line.settle(kept.taken, kept.sent, within_s=self._task.settle_s):
            self._task.report(
                f"{self._task.partner} has not fetched its last frames; if it did not finish, link again"
            )
        self._task.folder.clear_session(self._task.partner, self._task.purpose)

    def _begin(self) -> Kept:
        task, digest = self._task, sha256(self._task.elements.digests.tobytes()).digest()
        own, roster = task.side.platform, task.side.roster
        key = partner_key(roster, own, task.partner)
        parties = parties_with(task.side, task.partner, task.purpose)
        kept = load_kept(self._path)
        if kept is None:
            self._permit()
            return Kept(
                parties=parties,
                partner=key.raw,
                time=int(time.time()),
                elements=digest,
                seed=task.randomness.bytes(SEED_BYTES),
                thread=task.randomness.bytes(THREAD_BYTES)
                if own == parties.initiator
                else ANY_THREAD,
            )
        if (kept.parties, kept.partner) != (parties, key.raw):
            raise StateError(
                f"the federation, or the key of {task.partner}, has changed since the linkage was "
                "interrupted; begin anew with --restart"
            )
        if kept.elements != digest:
            raise StateError(
                f"the rows have changed since the linkage with {task.partner} was interrupted; bring "
                "them back, or begin anew with --restart"
            )
        task.report(f"going on with the interrupted linkage with {task.partner}")
        times = task.folder.past(task.partner, task.purpose).times
        if kept.phase in {Phase.OFFERED, Phase.ACCEPTED} and kept.time not in times:
            # It was not counted yet: it counts as of now, and is allowed now or not at all.
            self._permit()
            kept = replace(kept, time=int(time.time()))
            save_kept(self._path, kept)
        return kept

    def _permit(self) -> Permit:
        task = self._task
        return task.policy.permit(
            task.folder, task.partner, task.purpose, task.elements.digests, int(time.time())
        )

    def _given(self) -> Permit:
        """The permit that this session was given when it began."""
        task = self._task
        return Permit(
            policy=task.policy,
            memory=task.folder,
            partner=task.partner,
            purpose=task.purpose,
            time=self._kept.time,
            marks=marks_of(task.elements.digests),
        )

    def _state(self) -> Offered | Opening | Accepted | Exchanging | None:
        """Make the state anew of what is on disk; None at the very beginning."""
        kept, task = self._kept, self._task
        digests, permit = task.elements.digests, self._given()
        if kept.phase is Phase.NEW:
            return None
        if kept.phase is Phase.OFFERED:
            secret = self._offered(task.side, task.partner)
            return Offered(secret=secret, digests=digests, seed=kept.seed, permit=permit)
        channel = kept.channel(task.side.platform)
        if kept.phase is Phase.ACCEPTED:
            return Accepted(channel=channel, digests=digests, seed=kept.seed, permit=permit)
        blinding = Blinding(digests, kept.seed)
        if kept.phase is Phase.OPENING:
            return Opening(channel=channel, blinding=blinding, permit=permit)
        return Exchanging.begin(channel, blinding, kept.their_size, self._storage, kept.counters)

    def _first(self) -> Offered | Accepted:
        """Offer, or wait for the offer and accept it."""
        task, digests, permit = self._task, self._task.elements.digests, self._given()
        if self._kept.parties.initiator == task.side.platform:
            offered, frame = task.side.offer(digests, permit, task.randomness)
            kept = replace(
                self._kept,
                phase=Phase.OFFERED,
                seed=offered.seed,
                secret=offered.secret.secret,
                offer=frame,
            )
            self._step(kept, frame, taken=False)
            return offered
        accepted, frame = task.side.accept(self._receive(), digests, permit, task.randomness)
        kept = replace(self._kept, seed=accepted.seed, thread=self._line.thread)
        self._step(kept.with_channel(accepted.channel, Phase.ACCEPTED), frame, taken=True)
        return accepted

    def _exchange(self, state: Exchanging) -> None:
        total = 2 * state.blinding.blocks + state.their_blocks
        while not state.over:
            while state.counters.sent - state.counters.returned < WINDOW:
                block = state.next_block(self._cores)
                if block is None:
                    break
                self._step(self._exchanging(state), block, taken=False)
            answer = state.receive(self._receive(), self._cores)
            self._step(self._exchanging(state), answer, taken=True)
            done: Counters = state.counters
            self._task.show(done.sent + done.returned + done.taken, total)

    def _exchanging(self, state: Exchanging) -> Kept:
        kept = replace(self._kept, phase=Phase.EXCHANGING, counters=state.counters)
        return replace(kept, their_size=state.their_size)

    def _flush(self) -> None:
        self._flush_arrays()


def run_session(task: Task, cores: Cores) -> tuple[Session, Compared]:
    """Run a session; one that the partner has left before anything was sent is begun anew."""
    anew = 0
    while True:
        session = Session(task, cores)
        try:
            return session, session.run()
        except OtherSessionError:
            early = session._kept.phase in {Phase.NEW, Phase.OFFERED, Phase.ACCEPTED}
            if not early or anew == MOST_ANEW:
                raise
            anew += 1
            task.folder.clear_session(task.partner, task.purpose)
            task.report(f"{task.partner} has begun anew; so does this side")
