"""What one sum is, and the keys of its masks: the part that both sides compute alike."""

from __future__ import annotations

from dataclasses import dataclass

from crossrec_model.secagg.derive import derive
from crossrec_model.secagg.messages import Ticket


@dataclass(frozen=True, kw_only=True)
class SumDomain:
    """All that a sum's masks depend on besides the secrets."""

    run: bytes
    transcript: bytes
    ticket: Ticket

    def _parts(self) -> tuple[bytes | int, ...]:
        t = self.ticket
        numbers = (t.slot, int(t.kind), t.round, t.bits, t.levels, t.length)
        return (self.run, self.transcript, *numbers)

    def pair_key(self, secret: bytes, one: str, other: str) -> bytes:
        """The key of the mask between two platforms, from their X25519 secret of the slot."""
        low, high = sorted((one, other))
        return derive(secret, "pair mask", *self._parts(), low, high)

    def self_key(self, seed: bytes, platform: str) -> bytes:
        """The key of a platform's self mask, from its seed of the slot."""
        return derive(seed, "self mask", *self._parts(), platform)
