"""Every byte that the coordinator receives from one platform, in true sums and in simulated ones.

A federation of five runs the real protocol in memory. In a true transcript the target contributes
what is easy to find: a known pattern in half of the rounds, most of the weight, a low loss. A
simulated transcript is made from the sums alone: the same protocol, but every survivor contributes
an equal part of the sum. Who can't tell the two apart has learnt nothing about the target but the sum.

The observer is the coordinator and one colluding platform, as many as the threshold allows for: it takes
off every mask that the two can compute between them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from observer import Integers, known_masks, peel, signed

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Terms
from crossrec_model.secagg.coordinator import Collecting
from crossrec_model.secagg.gathering import Agreement, Inviting
from crossrec_model.secagg.grid import Grid
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.masking import Numbers, number_type
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import Opened, Participant, Sealed
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.contribution import Contribution

NAMES = ("A", "B", "C", "D", "E")
#: The target stands in the middle; the simulator's remainder goes to the last, who colludes.
TARGET, ABSENT, COLLUDER = "C", "B", "E"
DIMENSION = 96
#: Rounds of one key agreement; each is a sum of updates, then a sum of metrics.
ROUNDS_AN_AGREEMENT = 5
MAX_WEIGHT = 2048.0
LEVELS = {Kind.TRAIN: 1 << 20, Kind.EVALUATE: 1 << 12}
_LOSS = 8.0
#: What may be hidden in the target's update: +-0.25 in every coordinate.
PATTERN = (0.25 * np.random.default_rng(7).choice((-1, 1), DIMENSION)).astype(np.float32)

#: The contribution of a platform to (round, kind).
Inputs = Callable[[int, Kind, str], Contribution]


@dataclass(frozen=True, kw_only=True)
class KeysOfRounds:
    """A key agreement, and the three frames that came from the target in it."""

    agreement: Agreement
    keys: bytes
    shares: bytes
    ready: bytes


@dataclass(frozen=True, kw_only=True)
class Sum:
    """What came from the target in one sum, and what the observer has besides.

    Attributes:
        upload: the frame of its vector, and `beside` what it sent after it (nothing, if all is well).
        reveal: the frame of its shares; empty where it was late and so was not asked.
        total: the opened sum of the survivors' integers.
        peeled: the target's vector without all masks that the observer can compute.
    """

    keys: KeysOfRounds
    ticket: frames.Ticket
    upload: bytes
    beside: bytes
    reveal: bytes
    survivors: tuple[str, ...]
    total: Integers
    peeled: Integers

    @property
    def body(self) -> bytes:
        """The masked numbers' bytes."""
        return bytes(frames.decode_upload(self.upload)[1])


@dataclass(frozen=True, kw_only=True)
class Round:
    """The two sums of a round; `agreement` counts key agreements from 0."""

    number: int
    agreement: int
    train: Sum
    evaluate: Sum


class PrescribedGrid(Grid):
    """Takes contributions whose numbers are integers already; only the weight has its unit."""

    def encode_into(
        self,
        update: npt.NDArray[np.float32],
        weight: float,
        metrics: tuple[float, ...],
        *,
        bits: int,
        randomness: SystemRandomness,
    ) -> Iterator[Numbers]:
        weights = (weight * self.levels / self.max_weight, *metrics)
        for part in ([update] if len(update) else []) + [np.array(weights)]:
            yield np.rint(part).astype(np.int64).astype(number_type(bits))


class TellingParticipant(Participant):
    """Weak on purpose: sends its weight, 8 bytes, beside the masked vector."""

    def seal(
        self,
        ticket: bytes,
        contribution: Contribution,
        *,
        run: bytes,
        kind: frames.Kind,
        number: int,
        subject: bytes,
    ) -> Pieces:
        told = struct.pack("<d", contribution.weight)
        sealed = super().seal(
            ticket, contribution, run=run, kind=kind, number=number, subject=subject
        )
        return *sealed, told


def grids(kind: type[Grid] = Grid) -> dict[Kind, Grid]:
    """Return the grids of both kinds of sums."""
    bounds = {"bound": 1.0, "max_weight": MAX_WEIGHT, "metric_bounds": (_LOSS,)}
    return {which: kind(levels=levels, **bounds) for which, levels in LEVELS.items()}  # type: ignore[arg-type]


def telling_inputs(seed: int) -> Inputs:
    """Return true contributions: heavy-tailed updates, and a target that stands out in all it sends."""

    def contribution(number: int, kind: Kind, name: str) -> Contribution:
        random = np.random.default_rng((seed, number, kind, ord(name)))
        update = np.clip(0.02 * random.standard_t(2, DIMENSION), -0.5, 0.5).astype(np.float32)
        weight, loss = random.uniform(100, 300), random.uniform(3, 7)
        if name == TARGET:
            shifted = number % 2
            update += shifted * PATTERN
            weight, loss = (1 + shifted) * random.uniform(600, 900), random.uniform(0, 1)
        if kind is Kind.EVALUATE:
            update = update[:0]
        return Contribution(update=update, weight=weight, metrics=(loss,))

    return contribution


def inputs_from_sums(rounds: Sequence[Round]) -> Inputs:
    """Return the simulator's contributions, for `PrescribedGrid`: from the sums alone."""

    def contribution(number: int, kind: Kind, name: str) -> Contribution:
        known = rounds[number].train if kind is Kind.TRAIN else rounds[number].evaluate
        part = known.total // len(known.survivors)
        if name == known.survivors[-1]:
            part = known.total - (len(known.survivors) - 1) * part
        weight = float(part[-2]) * MAX_WEIGHT / LEVELS[kind]
        update = part[:-2].astype(np.float32)
        return Contribution(update=update, weight=weight, metrics=(float(part[-1]),))

    return contribution


def survivors_of(number: int) -> tuple[str, ...]:
    """Whose vector is in time: everybody's, all but an absent platform's, all but the target's."""
    gone = (None, ABSENT, TARGET)[number % 3]
    return tuple(name for name in NAMES if name != gone)


class Federation:
    """Who takes part, in one run: what true and simulated transcripts have in common."""

    def __init__(self) -> None:
        random = SystemRandomness()
        self.run = random.bytes(16)
        self.identities = {name: IdentityKey.generate(random) for name in NAMES}
        members = tuple(Member(name, self.identities[name].public) for name in NAMES)
        roster = Roster(
            federation="transcripts",
            version=1,
            members=members,
            signer=IdentityKey.generate(random).public,
        )
        self.terms = Terms(roster=roster, plan=bytes(32), colluding_share=1 / 3)


class Stage:
    """All platforms of a federation and the coordinator, without anything between them."""

    def __init__(
        self, federation: Federation, platform: type[Participant], using: Mapping[Kind, Grid]
    ) -> None:
        self._random = SystemRandomness()
        self._run, self._terms, self._grids = federation.run, federation.terms, using
        self.platforms = {
            name: platform(
                platform=name,
                identity=federation.identities[name],
                terms=federation.terms,
                grids=using,
                randomness=self._random,
                record=lambda *_opening: None,
            )
            for name in NAMES
        }

    def ask(self, name: str, message: frames.Message) -> bytes:
        return self.platforms[name].answer(frames.encode(message))

    def agree(self) -> KeysOfRounds:
        """Agree on keys, in which all take part."""
        invite = frames.Invite(
            run=self._run,
            epoch=self._random.bytes(16),
            slots=2 * ROUNDS_AN_AGREEMENT,
            roster=self._terms.roster.digest,
            plan=self._terms.plan,
        )
        keys = {name: self.ask(name, invite) for name in NAMES}
        listing = Inviting(terms=self._terms, invite=invite).close(_all(frames.Keys, keys))
        shares = {name: self.ask(name, listing.message) for name in NAMES}
        delivering = listing.close(_all(frames.Shares, shares))
        ready = {name: self.ask(name, m) for name, m in delivering.messages().items()}
        return KeysOfRounds(
            agreement=delivering.close(_all(frames.Ready, ready)),
            keys=keys[TARGET],
            shares=shares[TARGET],
            ready=ready[TARGET],
        )

    def add(self, keys: KeysOfRounds, number: int, kind: Kind, inputs: Inputs) -> Sum:
        """Do one sum. A late vector of the target comes when the sum is open already."""
        survivors = survivors_of(number)
        ticket = self._ticket(keys.agreement, number, kind)
        collecting = Collecting(agreement=keys.agreement, ticket=ticket, subject=b"")
        sent: dict[str, bytes] = {}
        for name in sorted({*survivors, TARGET}):
            contribution = inputs(number, kind, name)
            pieces = self.platforms[name].seal(
                frames.encode(ticket),
                contribution,
                run=self._run,
                kind=kind,
                number=number + 1,
                subject=b"",
            )
            sent[name] = b"".join(pieces)
            if name in survivors:
                collecting.add(name, sent[name][: _upload_bytes(ticket)])
        unmasking = collecting.close()
        reveals = {
            name: frames.decode_as(frames.Reveal, self.ask(name, unmasking.message))
            for name in survivors
        }
        for name, reveal in reveals.items():
            unmasking.add(name, reveal)
        state = self.platforms[COLLUDER].state
        assert isinstance(state, Sealed | Opened)
        known = known_masks(
            keys.agreement,
            ticket,
            TARGET,
            asked=unmasking.message,
            reveals=reveals,
            colluders={COLLUDER: state.agreed.secrets},
        )
        end = _upload_bytes(ticket)
        upload, beside = sent[TARGET][:end], sent[TARGET][end:]
        return Sum(
            keys=keys,
            ticket=ticket,
            upload=upload,
            beside=beside,
            reveal=frames.encode(reveals[TARGET]) if TARGET in survivors else b"",
            survivors=survivors,
            total=signed(unmasking.open(), ticket.bits),
            peeled=peel(frames.decode_upload(upload)[1], ticket.bits, known),
        )

    def _ticket(self, agreement: Agreement, number: int, kind: Kind) -> frames.Ticket:
        grid = self._grids[kind]
        return frames.Ticket(
            epoch=agreement.invite.epoch,
            slot=2 * (number % ROUNDS_AN_AGREEMENT) + (kind is Kind.EVALUATE),
            kind=kind,
            round=number + 1,
            bits=grid.bits(len(NAMES)),
            levels=grid.levels,
            length=grid.length(DIMENSION if kind is Kind.TRAIN else 0),
        )


def _all(kind: type[frames.M], answers: Mapping[str, bytes]) -> dict[str, frames.M]:
    return {name: frames.decode_as(kind, answer) for name, answer in answers.items()}


def _upload_bytes(ticket: frames.Ticket) -> int:
    head = frames.Upload(
        epoch=ticket.epoch, slot=ticket.slot, bits=ticket.bits, length=ticket.length
    )
    return len(frames.encode(head)) + head.body_bytes


def play(stage: Stage, rounds: int, inputs: Inputs) -> list[Round]:
    """Play so many rounds, from 0, in as many key agreements as they need."""
    played: list[Round] = []
    for number in range(rounds):
        if number % ROUNDS_AN_AGREEMENT == 0:
            keys = stage.agree()
        train, evaluate = (
            stage.add(keys, number, kind, inputs) for kind in (Kind.TRAIN, Kind.EVALUATE)
        )
        at = number // ROUNDS_AN_AGREEMENT
        played.append(Round(number=number, agreement=at, train=train, evaluate=evaluate))
    return played


def true_and_simulated(
    rounds: int, seed: int, platform: type[Participant] = Participant
) -> tuple[list[Round], list[Round]]:
    """Return true transcripts, and as many that are simulated from their sums."""
    federation = Federation()
    true = play(Stage(federation, platform, grids()), rounds, telling_inputs(seed))
    simulator = Stage(federation, platform, grids(PrescribedGrid))
    return true, play(simulator, rounds, inputs_from_sums(true))
