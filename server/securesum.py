"""The coordinator's side of the secure sum: the protocol of docs/secagg.md over a courier."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from crossrec_model.config import Plan
from crossrec_model.errors import WireError
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Terms
from crossrec_model.secagg.coordinator import Collecting, Unmasking
from crossrec_model.secagg.errors import SecureSumError, SurvivorsError
from crossrec_model.secagg.gathering import Agreement, Inviting
from crossrec_model.secagg.grid import Grid
from crossrec_model.secagg.masking import Numbers
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire.messages import Secure, decode_as, encode
from server.aggregation import CohortTooSmallError, Gathered, Question, part_of
from server.courier import Courier, Lost, NodeId
from server.openings import KeptOpenings

#: Agreeing on keys and revealing shares is a moment's work for an idle platform.
SHORT_TRIP_S: Final = 60.0
M = TypeVar("M", bound=frames.Message)


class _MissingError(Exception):
    """Members that did not take the step; the key agreement begins anew without them."""

    def __init__(self, lost: dict[str, str]) -> None:
        super().__init__(str(lost))
        self.lost = lost


@dataclass(frozen=True, kw_only=True, eq=False)
class _Epoch:
    """A key agreement between the platforms at these seats."""

    agreement: Agreement
    seats: Mapping[str, NodeId]


class SecureSum:
    """An `Aggregation` that shows sums over at least the threshold of platforms, and nothing else.

    Keys are agreed when the run begins, and again when other platforms are here than before, one was
    lost, or the slots are used up.

    Raises:
        ConfigError: for a plan whose grid can't hold the roster's platforms in 32 bits.
    """

    def __init__(
        self,
        courier: Courier,
        plan: Plan,
        roster: Roster,
        openings: KeptOpenings,
        note: Callable[[str], None],
    ) -> None:
        self._courier, self._limits, self._note = courier, plan.aggregation, note
        self._timeout_s = plan.federation.round_timeout_s
        self._terms = Terms.of(roster, plan)
        Grid.of(self._limits, ()).bits(len(roster.members))
        self._epoch: _Epoch | None = None
        self._slot = 0
        self._openings = openings

    @property
    def least(self) -> int:
        """The threshold of the roster."""
        return self._terms.threshold

    @property
    def most(self) -> int:
        """All platforms of the roster."""
        return len(self._terms.roster.members)

    def objection(self, platform: str) -> str | None:
        """Only platforms of the roster take part."""
        if platform in self._terms.roster.platforms:
            return None
        return f"it is not on the roster of {self._terms.roster.federation}; admit it first"

    def gather(self, question: Question, seats: Mapping[str, NodeId]) -> Gathered:
        """Ask every seated platform, and open the sum of those that answered.

        1. Agree on keys, unless the present ones are of exactly these seats.
        2. Send the question with the ticket of a slot that was never used; add each masked vector
           as it comes.
        3. Ask the survivors for the shares that open the sum over them.
        4. Decode the mean and its worst rounding error.

        Raises:
            CohortTooSmallError: in each step, for fewer platforms than the threshold.
        """
        lost: dict[str, str] = {}
        try:
            epoch = self._agreed(question, self._allowed(question, seats), lost)
            unmasking = self._collect(question, epoch, lost)
            total = self._open(unmasking, epoch, lost)
            mean = Grid.of(self._limits, question.metrics).decode(
                total,
                question.dimension,
                bits=unmasking.ticket.bits,
                members=len(unmasking.survivors),
            )
        except SecureSumError as error:
            self._epoch = None
            raise CohortTooSmallError(str(error), lost) from None
        if lost:
            self._epoch = None
        return Gathered(mean=mean, contributors=unmasking.survivors, lost=lost)

    def _allowed(self, question: Question, seats: Mapping[str, NodeId]) -> Mapping[str, NodeId]:
        """Return who may be in this sum: the same as before where it was begun to be opened."""
        same = self._openings.of(question.kind, question.round)
        if same is None:
            return seats
        if missing := [platform for platform in same if platform not in seats]:
            raise CohortTooSmallError(
                f"round {question.round} was begun to be opened over {', '.join(same)} and can be "
                f"opened over nobody else; start {', '.join(missing)} again",
                {},
            )
        return {platform: seats[platform] for platform in same}

    def _agreed(
        self, question: Question, seats: Mapping[str, NodeId], lost: dict[str, str]
    ) -> _Epoch:
        """Step 1: keys of the seated platforms, without those that fail on the way."""
        here = dict(seats)
        epoch = self._epoch
        if epoch is not None and epoch.seats == here and self._slot < self._limits.slots:
            return epoch
        while True:
            if len(here) < self.least:
                raise self._terms.too_few(len(here), "for keys")
            try:
                agreement = self._agree(question.run, here)
            except _MissingError as missing:
                lost |= missing.lost
                here = {p: node for p, node in here.items() if p not in missing.lost}
                continue
            self._epoch, self._slot = _Epoch(agreement=agreement, seats=here), 0
            self._note(f"keys agreed between {', '.join(here)}")
            return self._epoch

    def _agree(self, run: bytes, seats: Mapping[str, NodeId]) -> Agreement:
        """One key agreement, three short trips; _MissingError names who did not take part."""
        invite = frames.Invite(
            run=run,
            epoch=secrets.token_bytes(16),
            slots=self._limits.slots,
            roster=self._terms.roster.digest,
            plan=self._terms.plan,
        )
        inviting = Inviting(terms=self._terms, invite=invite)
        keys = self._all(seats, dict.fromkeys(seats, invite), frames.Keys)
        try:
            listing = inviting.close(keys)
            shares = self._all(seats, dict.fromkeys(seats, listing.message), frames.Shares)
            delivering = listing.close(shares)
            ready = self._all(seats, delivering.messages(), frames.Ready)
            return delivering.close(ready)
        except SecureSumError as error:
            if error.platform is None:
                raise
            raise _MissingError({error.platform: str(error)}) from None

    def _collect(self, question: Question, epoch: _Epoch, lost: dict[str, str]) -> Unmasking:
        """Step 2: one masked vector of each member, added as it comes."""
        ticket = frames.Ticket(
            epoch=epoch.agreement.invite.epoch,
            slot=self._slot,
            kind=question.kind,
            round=question.round,
            bits=Grid.of(self._limits, question.metrics).bits(len(epoch.seats)),
            levels=self._limits.levels,
            length=question.length,
        )
        self._slot += 1
        collecting = Collecting(agreement=epoch.agreement, ticket=ticket, subject=question.subject)
        names = {node: platform for platform, node in epoch.seats.items()}
        payload = question.request(frames.encode(ticket))
        answers = self._courier.exchange(dict.fromkeys(names, payload), timeout_s=self._timeout_s)
        for node, answer in answers:
            body = part_of(question, answer)
            if isinstance(body, str):
                lost[names[node]] = body
                continue
            try:
                collecting.add(names[node], body)
            except (SecureSumError, WireError) as error:
                lost[names[node]] = str(error)
            # Else this vector would stay in memory until the next one has come.
            del answer, body
        return collecting.close()

    def _open(self, unmasking: Unmasking, epoch: _Epoch, lost: dict[str, str]) -> Numbers:
        """Step 3: shares of every survivor, then the sum."""
        seats = {platform: epoch.seats[platform] for platform in unmasking.survivors}
        kind, number = unmasking.ticket.kind, unmasking.ticket.round
        before = self._openings.of(kind, number)
        if before is not None and before != unmasking.survivors:
            raise SurvivorsError(
                f"round {number} was begun to be opened over {', '.join(before)} and can be opened "
                "over nobody else"
            )
        self._openings.begin(kind, number, unmasking.survivors)
        asked = dict.fromkeys(seats, unmasking.message)
        for platform, reveal in self._ask(seats, asked, frames.Reveal).items():
            if isinstance(reveal, str):
                lost[platform] = f"while unmasking: {reveal}"
                continue
            try:
                unmasking.add(platform, reveal)
            except SecureSumError as error:
                lost[platform] = str(error)
        return unmasking.open()

    def _all(
        self, seats: Mapping[str, NodeId], messages: Mapping[str, frames.Message], kind: type[M]
    ) -> dict[str, M]:
        """Return every platform's answer; _MissingError if one has none."""
        answers = self._ask(seats, messages, kind)
        found = {p: answer for p, answer in answers.items() if not isinstance(answer, str)}
        if lost := {p: answer for p, answer in answers.items() if isinstance(answer, str)}:
            raise _MissingError(lost)
        return found

    def _ask(
        self, seats: Mapping[str, NodeId], messages: Mapping[str, frames.Message], kind: type[M]
    ) -> dict[str, M | str]:
        """Return each platform's answer, or why it is none, in order of platform id."""
        names = {node: platform for platform, node in seats.items()}
        # One frame for equal messages: a broadcast is encoded once.
        encoded = {id(m): encode(Secure(frame=frames.encode(m))) for m in messages.values()}
        payloads = {node: encoded[id(messages[platform])] for node, platform in names.items()}
        answers: dict[str, M | str] = {}
        for node, answer in self._courier.exchange(payloads, timeout_s=SHORT_TRIP_S):
            if isinstance(answer, Lost):
                answers[names[node]] = str(answer.loss)
                continue
            try:
                answers[names[node]] = frames.decode_as(kind, decode_as(Secure, answer).frame)
            except WireError as error:
                answers[names[node]] = str(error)
        return dict(sorted(answers.items()))
