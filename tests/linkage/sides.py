"""Two platforms that link in memory, step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from crossrec_model.linkage.compared import Compared
from crossrec_model.linkage.group import Cores, Rows
from crossrec_model.linkage.intersection import Exchanging, Side
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.policy import Past, Policy
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.roster import Roster

NOW = 1_800_000_000
SYSTEM = SystemRandomness()
KEYS = {name: IdentityKey.generate(SYSTEM) for name in "ABC"}
SIGNER = IdentityKey.generate(SYSTEM)
ROSTER = Roster(
    federation="north",
    version=1,
    members=tuple(Member(name, key.public) for name, key in KEYS.items()),
    signer=SIGNER.public,
)
#: Lets any set link at any time.
OPEN = Policy(least=0, most=1000, least_new=0)


@dataclass
class Remembered:
    """A memory that lies in memory."""

    kept: dict[tuple[str, Purpose], Past] = field(default_factory=dict)

    @property
    def times(self) -> dict[tuple[str, Purpose], tuple[int, ...]]:
        return {key: past.times for key, past in self.kept.items()}

    def past(self, partner: str, purpose: Purpose) -> Past:
        return self.kept.get((partner, purpose), Past())

    def record(self, partner: str, purpose: Purpose, past: Past) -> None:
        self.kept[partner, purpose] = past


def digests(words: Iterable[object]) -> Rows:
    raw = b"".join(hashlib.sha256(str(word).encode()).digest() for word in words)
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, 32)


def side(name: str) -> Side:
    return Side(roster=ROSTER, platform=name, key=KEYS[name])


def connect(
    one: Rows,
    other: Rows,
    policy: Policy = OPEN,
    memories: tuple[Remembered, Remembered] | None = None,
) -> tuple[Exchanging, Exchanging]:
    """Steps 1 and 2 of A and B."""
    memory = memories or (Remembered(), Remembered())
    to_b = policy.permit(memory[0], "B", Purpose.USERS, one, NOW)
    to_a = policy.permit(memory[1], "A", Purpose.USERS, other, NOW)
    offered, offer = side("A").offer(one, to_b, SYSTEM)
    accepted, accept = side("B").accept(offer, other, to_a, SYSTEM)
    opening, announcement = offered.accepted(accept)
    exchanging_b, announced = accepted.announced(announcement)
    return opening.announced(announced), exchanging_b


def nothing(_step: str, frame: bytes) -> bytes:
    return frame


def exchange(
    a: Exchanging,
    b: Exchanging,
    cores: Cores,
    courier: Callable[[str, bytes], bytes] = nothing,
) -> None:
    """Steps 3 and 4, a block at a time."""
    while not (a.over and b.over):
        for sender, receiver in ((a, b), (b, a)):
            block = sender.next_block(cores)
            if block is not None:
                answer = receiver.receive(courier("block", block), cores)
                assert answer is not None
                assert sender.receive(courier("answer", answer), cores) is None


def link(one: Rows, other: Rows, cores: Cores) -> tuple[Compared, Compared]:
    a, b = connect(one, other)
    exchange(a, b, cores)
    return a.compare(), b.compare()
