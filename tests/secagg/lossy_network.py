"""The secure sum over a network that does its worst, as a machine for hypothesis.

The machine is a coordinator that follows the protocol, platforms that follow it, and between them a
network that drops, doubles, delays, reorders, replays and changes frames in every step, while
platforms stop and start anew. Every part is known exactly and has a coordinate of its own.

One change is not noticed, and need not be: a masked vector carries no tag, so whoever can change its
numbers on the way adds something to the sum, as a dishonest platform could. (TLS is against that.)
The machine makes such changes too, and expects exactly the addition. What it never does is to put the
head of the present sum on the vector of another one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, cast

from federation_in_memory import (
    LEVELS_OF_WIDTH,
    RUN,
    SUBJECT,
    Federation,
    Part,
    modulo,
    plain_sum,
)
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from crossrec_model.errors import WireError
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.coordinator import Collecting, Unmasking
from crossrec_model.secagg.errors import SecureSumError, TooFewPlatformsError
from crossrec_model.secagg.gathering import Agreement, Delivering, Inviting, Listing
from crossrec_model.secagg.messages import Kind

SLOTS: Final = 2
#: Types of frames, by number.
NUMBERS: Final = {frames.Ticket: 7, frames.Upload: 8, frames.Unmask: 9}
#: Bytes before the numbers of a masked vector.
_HEAD: Final = len(frames.encode(frames.Upload(epoch=bytes(16), slot=0, bits=16, length=1)))
#: Bytes up to the end of epoch and slot.
_SUM: Final = 21
_PICK: Final = st.integers(0, 1 << 16)

Phase = Inviting | Listing | Delivering | Agreement | Collecting | Unmasking | None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Bytes between a platform and the coordinator, and what they were before any change."""

    platform: str
    inbound: bool
    data: bytes
    genuine: bytes


class Network(RuleBasedStateMachine):
    """See the module. `events` counts, over all examples, how they ended."""

    events: ClassVar[Counter[str]] = Counter()
    count, width, share = 6, 24, 0.2

    def __init__(self) -> None:
        super().__init__()
        self.federation = Federation(
            self.count, levels=LEVELS_OF_WIDTH[self.width], share=self.share
        )
        self.flying: list[Frame] = []
        self.past: list[Frame] = []
        self.held: list[Frame] = []
        self.phase: Phase = None
        self.answers: dict[str, Any] = {}
        self.agreement: Agreement | None = None
        self.slot, self.number, self.seed = 0, 0, 0
        #: What left each platform in a sum, by (epoch, slot, platform).
        self.sealed: dict[tuple[bytes, int, str], Part] = {}
        #: What changes on the way added to the numbers of those whose vector came.
        self.additions: dict[str, list[int]] = {}
        #: The round of each sum, and the list that a platform answered for each round.
        self.numbers: dict[tuple[bytes, int], int] = {}
        self.opened: dict[tuple[str, int], tuple[str, ...]] = {}
        #: (epoch, slot, owner, whether of its key) -> the platforms that revealed that share.
        self.revealed: dict[tuple[bytes, int, str, bool], set[str]] = {}

    # The coordinator.

    @initialize()
    def begin_whole(self) -> None:
        """Most examples shall come beyond the first step."""
        self._invite(self.federation.names)

    @rule(pick=_PICK)
    def begin(self, pick: int) -> None:
        """Begin a key agreement between some of the platforms, whatever was under way."""
        # Bits of both halves, so that mostly few are missing.
        here = pick | pick >> 8
        names = enumerate(self.federation.names)
        self._invite(tuple(name for at, name in names if here >> at & 1))

    @precondition(lambda self: self.phase is not None and not self.flying)
    @rule()
    def close(self) -> None:
        """Go on with the answers that came, or end this attempt with a named error."""
        before = type(self.phase).__name__
        try:
            match self.phase:
                case Inviting() as inviting:
                    self._list(inviting.close(self.answers))
                case Listing() as listing:
                    self._deliver(listing.close(self.answers))
                case Delivering() as delivering:
                    self.phase = self.agreement = delivering.close(self.answers)
                    self.slot = 0
                case Agreement():
                    self._ask_for_vectors(again=False)
                case Collecting() as collecting:
                    self._ask_for_shares(collecting.close())
                case Unmasking() as unmasking:
                    self._open(unmasking)
        except SecureSumError as error:
            self._ended(error)
            self.events[f"{before}: {type(error).__name__}"] += 1

    @precondition(lambda self: isinstance(self.phase, Agreement))
    @rule()
    def repeat_the_round(self) -> None:
        """Ask once more for the round before, under another slot or agreement."""
        self._ask_for_vectors(again=True)

    # The network.

    @precondition(lambda self: self.flying)
    @rule(pick=_PICK, stays=st.booleans())
    def arrive(self, pick: int, stays: bool) -> None:
        """Any frame under way arrives, and perhaps once more later."""
        frame = self._picked(pick)
        if not stays:
            self.flying.remove(frame)
        self._arrive(frame)

    @rule(
        steps=st.integers(2, 12),
        calm=st.integers(0, 12),
        order=st.randoms(use_true_random=False),
    )
    def steps(self, steps: int, calm: int, order: Any) -> None:
        """Some steps of the protocol; after the first `calm` ones with a mishap now and then."""
        mishaps = (
            *(self.lose, self.hold, self.restart, self.replay_any, self.double),
            *(self.change_any, self.change_vector, self.change_list),
        )
        for at in range(steps):
            if self.phase is None:
                self._invite(self.federation.names)
            while self.flying:
                if at >= calm and order.randrange(15) == 0:
                    order.choice(mishaps)(order.randrange(1 << 16))
                elif frame := self._picked(order.randrange(1 << 16)):
                    self.flying.remove(frame)
                    self._arrive(frame)
            self.flying, self.held = self.held, []
            self.close()

    @precondition(lambda self: self.flying)
    @rule(pick=_PICK)
    def lose(self, pick: int) -> None:
        """A frame never arrives."""
        self.flying.remove(self._picked(pick))

    @precondition(lambda self: self.past)
    @rule(pick=_PICK, whose=_PICK)
    def replay(self, pick: int, whose: int) -> None:
        """A frame of any time comes again, to whom it was for or to another platform."""
        frame = self.past[-1 - pick % len(self.past)]
        if not frame.inbound and whose % 3 == 0:
            names = self.federation.names
            frame = replace(frame, platform=names[whose % len(names)])
        self.flying.append(frame)

    @precondition(lambda self: self.flying)
    @rule(
        pick=_PICK, at=_PICK, flip=st.integers(1, 255), how=st.sampled_from(("flip", "cut", "add"))
    )
    def change(self, pick: int, at: int, flip: int, how: str) -> None:
        """Bytes of a frame are changed, left out or added; of a vector, its numbers too."""
        frame = self._picked(pick)
        self.flying.remove(frame)
        data = bytearray(frame.data)
        if how == "cut":
            del data[len(data) - 1 - at % 7 :]
        elif how == "add":
            data += bytes((flip,))
        elif data:
            data[at % len(data)] ^= flip
        self.flying.append(replace(frame, data=bytes(data)))

    def replay_any(self, pick: int) -> None:
        """One of `replay`."""
        if self.past:
            self.replay(pick, pick >> 8)

    def change_any(self, pick: int) -> None:
        """One of `change`."""
        self.change(pick, pick >> 3, 1 + pick % 255, ("flip", "flip", "cut", "add")[pick % 4])

    def change_list(self, pick: int) -> None:
        """A list of survivors is changed, where one is under way."""
        if any(_undamaged(frames.Unmask, frame) for frame in self.flying):
            self.change_survivors(pick >> 8, pick)

    def change_vector(self, pick: int) -> None:
        """Numbers of a vector are changed, where one is under way."""
        found = [at for at, f in enumerate(self.flying) if _undamaged(frames.Upload, f)]
        if found:
            chosen = found[pick % len(found)]
            length = len(self.flying[chosen].data) - _HEAD
            self.change(chosen, _HEAD + pick % length, 1 + pick % 255, "flip")

    def double(self, pick: int) -> None:
        """A frame arrives, and will once more."""
        self._arrive(self._picked(pick))

    def hold(self, pick: int) -> None:
        """A frame comes a step too late."""
        frame = self._picked(pick)
        self.flying.remove(frame)
        self.held.append(frame)

    @precondition(lambda self: any(_undamaged(frames.Unmask, frame) for frame in self.flying))
    @rule(pick=_PICK, name=_PICK)
    def change_survivors(self, pick: int, name: int) -> None:
        """A well-formed, wrong list of survivors goes to one platform."""
        found = [frame for frame in self.flying if _undamaged(frames.Unmask, frame)]
        self._change_survivors(found[pick % len(found)], name)

    def _change_survivors(self, frame: Frame, name: int) -> None:
        asked = frames.decode_as(frames.Unmask, frame.data)
        # Half of the time the platform that is asked.
        moved = {frame.platform if name % 2 else self.federation.names[name // 2 % self.count]}
        survivors = tuple(sorted(set(asked.survivors) ^ moved))
        dropped = tuple(sorted(set(asked.dropped) ^ moved))
        self.flying.remove(frame)
        other = replace(asked, survivors=survivors, dropped=dropped)
        self.flying.append(replace(frame, data=frames.encode(other)))

    # The platforms.

    @rule(pick=_PICK)
    def restart(self, pick: int) -> None:
        """A platform stops, forgets its keys, and is back."""
        self.federation.restart(self.federation.names[pick % self.count])

    # What must hold.

    @invariant()
    def no_platform_is_shown(self) -> None:
        """Never are there enough shares of both secrets of a platform (nobody colludes here)."""
        least = self.federation.terms.threshold
        for (epoch, slot, owner, of_key), holders in self.revealed.items():
            if of_key:
                seeds = self.revealed.get((epoch, slot, owner, False), set())
                assert len(holders) < least or len(seeds) < least
                assert not holders & seeds

    def _open(self, unmasking: Unmasking) -> None:
        total = modulo(unmasking.open(), unmasking.ticket.bits)
        bits, ticket = unmasking.ticket.bits, unmasking.ticket
        parts = [self.sealed[ticket.epoch, ticket.slot, name] for name in unmasking.survivors]
        expected = plain_sum(parts, bits)
        added = [sum(column) for column in zip(*self.additions.values(), strict=True)]
        assert total == [(e + a) % (1 << bits) for e, a in zip(expected, added, strict=True)]
        assert tuple(sorted(self.additions)) == unmasking.survivors
        if not any(added):
            counted = [bool(number) for number in total[: self.count]]
            assert counted == [name in unmasking.survivors for name in self.federation.names]
        assert len(unmasking.survivors) >= self.federation.terms.threshold
        self.events["opened"] += 1
        self.events["opened without all"] += bool(unmasking.dropped)
        self.events["opened with an addition"] += any(added)
        self.phase = self.agreement

    def _ended(self, error: SecureSumError) -> None:
        if isinstance(error, TooFewPlatformsError):
            least = self.federation.terms.threshold
            text = rf"too few platforms.*: \d+ of {self.count}, need {least}; "
            assert re.match(text, str(error))
            assert error.here < error.needed == least
        self.phase, self.answers = None, {}

    def _invite(self, names: tuple[str, ...]) -> None:
        invite = self.federation.invite(slots=SLOTS)
        self._next(
            Inviting(terms=self.federation.terms, invite=invite), dict.fromkeys(names, invite)
        )

    def _list(self, listing: Listing) -> None:
        self._next(listing, dict.fromkeys(listing.members, listing.message))

    def _deliver(self, delivering: Delivering) -> None:
        self._next(delivering, delivering.messages())

    def _ask_for_vectors(self, *, again: bool) -> None:
        agreement = cast(Agreement, self.agreement)
        if self.slot == SLOTS:
            self._invite(tuple(agreement.members))
            return
        self.number = max(1, self.number) if again else self.number + 1
        ticket = self.federation.ticket(agreement, self.slot, number=self.number)
        self.numbers[ticket.epoch, ticket.slot] = ticket.round
        self.slot, self.additions = self.slot + 1, {}
        collecting = Collecting(agreement=agreement, ticket=ticket, subject=SUBJECT)
        self._next(collecting, dict.fromkeys(agreement.members, ticket))

    def _ask_for_shares(self, unmasking: Unmasking) -> None:
        self._next(unmasking, dict.fromkeys(unmasking.survivors, unmasking.message))

    def _next(self, phase: Phase, messages: Mapping[str, frames.Message]) -> None:
        self.phase, self.answers = phase, {}
        self.flying += [
            _fresh(name, frames.encode(message), inbound=False)
            for name, message in messages.items()
        ]

    def _picked(self, pick: int) -> Frame:
        return self.flying[pick % len(self.flying)]

    def _arrive(self, frame: Frame) -> None:
        self.past.append(frame)
        self.past = self.past[-60:]
        try:
            if frame.inbound:
                self._to_coordinator(frame)
            else:
                data = self._to_platform(frame.platform, frame.data)
                self.flying.append(_fresh(frame.platform, data, inbound=True))
        except (SecureSumError, WireError) as error:
            side = "coordinator" if frame.inbound else "platform"
            self.events[f"{side}: {type(error).__name__}"] += 1

    def _to_platform(self, name: str, data: bytes) -> bytes:
        if data[2:3] != bytes((NUMBERS[frames.Ticket],)):
            answer = self.federation.platforms[name].answer(data)
            message = frames.decode(data)
            if isinstance(message, frames.Unmask):
                self._note_shares(name, message)
            return answer
        # A ticket travels inside a request, which names the round too. Here it can't be changed.
        self.seed += 1
        part = self.federation.part(name, self.seed)
        platform = self.federation.platforms[name]
        pieces = platform.seal(
            data, part.contribution, run=RUN, kind=Kind.TRAIN, number=self.number, subject=SUBJECT
        )
        ticket = frames.decode_as(frames.Ticket, data)
        key = (ticket.epoch, ticket.slot, name)
        assert key not in self.sealed
        self.sealed[key] = part
        return b"".join(pieces)

    def _note_shares(self, name: str, asked: frames.Unmask) -> None:
        """Check that a platform may have answered, and note what it has shown."""
        assert name in asked.survivors
        assert len(asked.survivors) >= self.federation.terms.threshold
        assert (asked.epoch, asked.slot, name) in self.sealed
        number = self.numbers[asked.epoch, asked.slot]
        assert self.opened.setdefault((name, number), asked.survivors) == asked.survivors
        for of_key, owners in ((False, asked.survivors), (True, asked.dropped)):
            for owner in owners:
                key = (asked.epoch, asked.slot, owner, of_key)
                self.revealed.setdefault(key, set()).add(name)

    def _to_coordinator(self, frame: Frame) -> None:
        name, data = frame.platform, frame.data
        match self.phase:
            case Inviting() as inviting:
                keys = frames.decode_as(frames.Keys, data)
                inviting.check(name, keys)
                self.answers[name] = keys
            case Listing():
                self.answers[name] = frames.decode_as(frames.Shares, data)
            case Delivering():
                self.answers[name] = frames.decode_as(frames.Ready, data)
            case Collecting() as collecting:
                self._to_sum(collecting, frame)
            case Unmasking() as unmasking:
                unmasking.add(name, frames.decode_as(frames.Reveal, data))
            case _:
                raise WireError("nothing is due")

    def _to_sum(self, collecting: Collecting, frame: Frame) -> None:
        kept = frame.data[3:_SUM] == frame.genuine[3:_SUM]
        asked = (collecting.ticket.epoch, collecting.ticket.slot)
        if not kept and asked == (frame.data[3:19], int.from_bytes(frame.data[19:_SUM], "little")):
            raise WireError("the machine must not do this; see above")
        collecting.add(frame.platform, frame.data)
        came, sent = _numbers(frame.data, self.width), _numbers(frame.genuine, self.width)
        self.additions[frame.platform] = [c - s for c, s in zip(came, sent, strict=True)]


def _fresh(platform: str, data: bytes, *, inbound: bool) -> Frame:
    return Frame(platform=platform, inbound=inbound, data=data, genuine=data)


def _numbers(upload: bytes, bits: int) -> list[int]:
    size = bits // 8
    starts = range(_HEAD, len(upload), size)
    return [int.from_bytes(upload[at : at + size], "little") for at in starts]


def _undamaged(kind: type[frames.Message], frame: Frame) -> bool:
    """Whether a frame is of a kind, and was not changed."""
    return frame.data == frame.genuine and frame.data[2] == NUMBERS[kind]
