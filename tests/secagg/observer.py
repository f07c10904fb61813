"""What the coordinator and one colluding platform can take off a masked vector: all masks they know.

Beside honest means there is a search: if a platform's secrets came from few seeds, its public commitments
would give them away, and with them every mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Secrets, commitment, exchange
from crossrec_model.secagg.derive import derive
from crossrec_model.secagg.gathering import Agreement
from crossrec_model.secagg.masking import Masker, Numbers, pack, unpack
from crossrec_model.secagg.messages import SHARE_BYTES
from crossrec_model.secagg.shamir import combine_many
from crossrec_model.secagg.sums import SumDomain

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Keys of masks, by what their platform did with them; an empty key is no mask."""

    added: Sequence[bytes]
    subtracted: Sequence[bytes]


def all_masks(agreement: Agreement, ticket: frames.Ticket, target: str, secrets: Secrets) -> Masks:
    """Return all masks of a platform, for whoever has its secrets."""
    domain = _domain(agreement, ticket)
    others = {
        name: (secrets.pair(ticket.slot), name) for name in agreement.members if name != target
    }
    own = domain.self_key(secrets.mask(ticket.slot), target)
    return _masks(target, own, _pair_keys(agreement, ticket, target, others))


def known_masks(
    agreement: Agreement,
    ticket: frames.Ticket,
    target: str,
    *,
    asked: frames.Unmask,
    reveals: Mapping[str, frames.Reveal],
    colluders: Mapping[str, Secrets],
) -> Masks:
    """Return the masks of a platform that follow from the reveals and the colluders' secrets."""
    threshold = agreement.terms.threshold
    at = {name: x for x, name in enumerate(agreement.members, start=1)}
    private = {name: secrets.pair(ticket.slot) for name, secrets in colluders.items()}
    if asked.dropped:
        keys = {at[name]: reveal.keys for name, reveal in reveals.items()}
        private |= zip(asked.dropped, combine_many(keys, threshold=threshold), strict=True)
    if target in private:
        others = {name: (private[target], name) for name in agreement.members if name != target}
    else:
        others = {name: (key, target) for name, key in private.items()}
    own = b""
    if target in asked.survivors:
        place = SHARE_BYTES * asked.survivors.index(target)
        seeds = {at[n]: reveal.seeds[place : place + SHARE_BYTES] for n, reveal in reveals.items()}
        seed = combine_many(seeds, threshold=threshold)[0]
        own = _domain(agreement, ticket).self_key(seed, target)
    return _masks(target, own, _pair_keys(agreement, ticket, target, others))


def peel(body: bytes | memoryview, bits: int, masks: Masks) -> Integers:
    """Return a vector's integers without these masks."""
    numbers = unpack(body, bits)
    # What was added is subtracted, and the other way round.
    add, subtract = ([key for key in keys if key] for keys in (masks.subtracted, masks.added))
    Masker(bits, add=add, subtract=subtract).apply(numbers)
    return signed(numbers, bits)


def signed(numbers: Numbers, bits: int) -> Integers:
    """Return the integers from -2^(bits-1) to 2^(bits-1) - 1 that are equal modulo 2^bits."""
    packed = memoryview(bytearray(len(numbers) * bits // 8))
    pack(numbers, bits, packed)
    whole = unpack(packed, bits).astype(np.int64)
    return np.where(whole >= 1 << (bits - 1), whole - (1 << bits), whole)


def _domain(agreement: Agreement, ticket: frames.Ticket) -> SumDomain:
    return SumDomain(
        run=agreement.invite.run, transcript=agreement.transcript, ticket=ticket, subject=b""
    )


def _pair_keys(
    agreement: Agreement,
    ticket: frames.Ticket,
    target: str,
    others: Mapping[str, tuple[bytes, str]],
) -> dict[str, bytes]:
    """Keys of pair masks, from one side's private key and the name of the other side."""
    domain = _domain(agreement, ticket)
    keys: dict[str, bytes] = {}
    for name, (private, other) in others.items():
        public = agreement.members[other].pair(ticket.slot)
        keys[name] = domain.pair_key(exchange(private, public, other), target, name)
    return keys


def _masks(target: str, own: bytes, pairs: Mapping[str, bytes]) -> Masks:
    return Masks(
        added=(own, *(key for name, key in pairs.items() if name > target)),
        subtracted=tuple(key for name, key in pairs.items() if name < target),
    )


def seed_of(number: int) -> bytes:
    """The 32-byte seed that a weak source makes of a small number."""
    return derive(number.to_bytes(4, "little"), "weak seed")


class SeedSearch:
    """All seeds of a weak source, by the commitment that a platform would give to its first slot.

    The commitment depends on nothing but the seed, the platform and the slot, so one pass serves all
    key agreements. The work doubles with each bit: the same pass over 32 bits is offline work.
    """

    def __init__(self, platform: str, bits: int) -> None:
        self._platform = platform
        self._found: dict[bytes, Secrets] = {}
        for number in range(1 << bits):
            secrets = Secrets(seed=seed_of(number))
            self._found[commitment(secrets.mask(0), platform, 0)] = secrets

    def secrets(self, agreement: Agreement) -> Secrets | None:
        """The platform's secrets in a key agreement, if its seed is among those searched."""
        return self._found.get(agreement.members[self._platform].commitment(0))


@contextmanager
def few_seeds(bits: int) -> Iterator[None]:
    """Weak on purpose: all secrets of a platform, and so its masks, come from 2^bits seeds."""

    def fresh(randomness: SystemRandomness) -> Secrets:
        return Secrets(seed=seed_of(int.from_bytes(randomness.bytes(4), "little") % (1 << bits)))

    with patch.object(Secrets, "fresh", fresh):
        yield


@contextmanager
def equal_masks() -> Iterator[None]:
    """Weak on purpose: no self mask, and one and the same mask for every pair of a sum."""

    def pair_key(domain: SumDomain, _secret: bytes, _one: str, _other: str) -> bytes:
        return derive(b"equal", "weak mask", domain.transcript, domain.ticket.slot)

    def without_empty(bits: int, *, add: Sequence[bytes], subtract: Sequence[bytes]) -> Masker:
        return Masker(
            bits, add=[key for key in add if key], subtract=[key for key in subtract if key]
        )

    sides = ("crossrec_model.secagg.participant.Masker", "crossrec_model.secagg.coordinator.Masker")
    with (
        patch.object(SumDomain, "pair_key", pair_key),
        patch.object(SumDomain, "self_key", lambda *_: b""),
        patch(sides[0], without_empty),
        patch(sides[1], without_empty),
    ):
        yield


@contextmanager
def reused_masks() -> Iterator[None]:
    """Weak on purpose: every sum of a key agreement has the masks of the first."""
    pair, mask = Secrets.pair, Secrets.mask
    with (
        patch.object(Secrets, "pair", lambda self, _slot: pair(self, 0)),
        patch.object(Secrets, "mask", lambda self, _slot: mask(self, 0)),
        patch.object(SumDomain, "_parts", lambda domain: (domain.run, domain.transcript)),
    ):
        yield
