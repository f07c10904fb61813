"""What one sum is, and the keys of its masks: the part that both sides compute alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes

from crossrec_model.secagg.derive import derive, domain
from crossrec_model.secagg.messages import Kind, Ticket


def subject_of(kind: Kind, run: bytes, number: int, parameters: npt.NDArray[np.float32]) -> bytes:
    """Return the digest of what a platform is asked to work on, 32 bytes: all of the request.

    `parameters` float32 [d] is the model sent. The plan is in the transcript.
    """
    hasher = hashes.Hash(hashes.SHA256())
    hasher.update(domain("subject", int(kind), run, number, len(parameters)))
    hasher.update(np.ascontiguousarray(parameters, dtype="<f4").view(np.uint8).data)
    return hasher.finalize()


@dataclass(frozen=True, kw_only=True)
class SumDomain:
    """All that a sum's masks depend on besides the secrets.

    `subject` is the digest of the request that each platform answered. Platforms that were sent
    different models have masks that don't cancel: else a coordinator could send one of them a model
    to learn from, and the others one that gives no update (Pasquini et al. 2022).
    """

    run: bytes
    transcript: bytes
    ticket: Ticket
    subject: bytes

    def _parts(self) -> tuple[bytes | int, ...]:
        t = self.ticket
        numbers = (t.slot, int(t.kind), t.round, t.bits, t.levels, t.length)
        return (self.run, self.transcript, self.subject, *numbers)

    def pair_key(self, secret: bytes, one: str, other: str) -> bytes:
        """The key of the mask between two platforms, from their X25519 secret of the slot."""
        low, high = sorted((one, other))
        return derive(secret, "pair mask", *self._parts(), low, high)

    def self_key(self, seed: bytes, platform: str) -> bytes:
        """The key of a platform's self mask, from its seed of the slot."""
        return derive(seed, "self mask", *self._parts(), platform)
