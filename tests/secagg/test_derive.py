"""Domains and derived keys: one meaning each, equal to independent arithmetic and to frozen values."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import independent
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation_in_memory import PLAN, RUN, SUBJECT, Federation, GivenFirst, Part
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.coordinator import Collecting
from crossrec_model.secagg.derive import VERSION, derive, digest, domain
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.messages import Kind, Ticket
from crossrec_model.secagg.sums import SumDomain, subject_of

FOLDER = Path(__file__).parent / "vectors"
DERIVED: list[dict[str, Any]] = json.loads((FOLDER / "derive.json").read_text())
SUMS: dict[str, dict[str, Any]] = json.loads((FOLDER / "sum.json").read_text())
_PARTS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.text(st.characters(codec="ascii"), max_size=12),
        st.integers(0, 2**64 - 1),
    ),
    max_size=5,
).map(tuple)
_PURPOSES = st.text(st.characters(codec="ascii"), max_size=8)


@settings(deadline=None, max_examples=300)
@given(purpose=_PURPOSES, parts=_PARTS, secret=st.binary(min_size=1, max_size=64))
def test_keys_and_digests_are_what_independent_arithmetic_gives(
    purpose: str, parts: tuple[bytes | str | int, ...], secret: bytes
) -> None:
    info = independent.domain(purpose, *parts)
    assert domain(purpose, *parts) == info
    assert derive(secret, purpose, *parts) == independent.hkdf(secret, info)
    assert digest(purpose, *parts) == hashlib.sha256(info).digest()


def _typed(parts: tuple[bytes | str | int, ...]) -> list[tuple[type, bytes | str | int]]:
    return [(type(part), part) for part in parts]


@settings(deadline=None, max_examples=500)
@given(one=st.tuples(_PURPOSES, _PARTS), other=st.tuples(_PURPOSES, _PARTS))
def test_two_domains_are_never_the_same(
    one: tuple[str, tuple[bytes | str | int, ...]], other: tuple[str, tuple[bytes | str | int, ...]]
) -> None:
    same = one[0] == other[0] and _typed(one[1]) == _typed(other[1])
    assert (domain(one[0], *one[1]) == domain(other[0], *other[1])) == same


@pytest.mark.parametrize(("one", "other"), [
    (("ab", "c"), ("a", "bc")),
    ((b"ab", b"c"), (b"a", b"bc")),
    ((b"ab",), ("ab",)),
    ((1,), ((1).to_bytes(8, "little"),)),
    ((1,), ("1",)),
    ((), (b"",)),
    ((b"",), ("",)),
    ((1, 2), (2, 1)),
    (("a\0b",), ("a", "b")),
])  # fmt: skip
def test_look_alikes(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert domain("x", *one) != domain("x", *other)
    assert derive(bytes(32), "x", *one) != derive(bytes(32), "x", *other)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_outside_its_bounds_has_no_domain(number: int) -> None:
    with pytest.raises(OverflowError):
        domain("x", number)


def test_a_masks_key_depends_on_all_of_its_sum() -> None:
    ticket = Ticket(
        epoch=bytes(16), slot=1, kind=Kind.TRAIN, round=1, bits=16, levels=4096, length=9
    )
    base = SumDomain(run=bytes(16), transcript=bytes(32), ticket=ticket, subject=bytes(32))
    changes: Any = ("slot", 2), ("round", 2), ("bits", 24), ("levels", 4097), ("length", 10)
    others = [
        base,
        replace(base, run=b"\1" * 16),
        replace(base, transcript=b"\1" * 32),
        replace(base, subject=b"\1" * 32),
        replace(base, ticket=replace(ticket, kind=Kind.EVALUATE)),
        *(replace(base, ticket=replace(ticket, **{name: value})) for name, value in changes),
    ]
    secret = bytes(32)
    keys = [one.pair_key(secret, "A", "B") for one in others]
    keys += [one.self_key(secret, "A") for one in others]
    keys += [base.pair_key(secret, "A", "C"), base.self_key(secret, "B")]
    keys += [base.self_key(b"\1" * 32, "A"), base.pair_key(b"\1" * 32, "A", "B")]
    assert len(set(keys)) == len(keys) == 24
    assert base.pair_key(secret, "A", "B") == base.pair_key(secret, "B", "A")


def test_a_subject_by_hand() -> None:
    model = np.array([1.5, -2.0, 0.0], dtype=np.float32)
    raw = independent.domain("subject", 2, RUN, 7, 3)
    raw += b"\0\0\xc0\x3f" + b"\0\0\0\xc0" + bytes(4)
    assert subject_of(Kind.EVALUATE, RUN, 7, model) == hashlib.sha256(raw).digest()


@pytest.mark.parametrize("vector", DERIVED, ids=lambda v: f"{v['purpose']} {len(v['parts'])}")
def test_frozen_domains(vector: dict[str, Any]) -> None:
    parts = [
        bytes.fromhex(value) if kind == "bytes" else value
        for part in vector["parts"]
        for kind, value in part.items()
    ]
    purpose, secret = vector["purpose"], bytes.fromhex(vector["secret"])
    assert domain(purpose, *parts).hex() == vector["domain"]
    assert independent.domain(purpose, *parts).hex() == vector["domain"]
    assert derive(secret, purpose, *parts).hex() == vector["derived"]
    assert digest(purpose, *parts).hex() == vector["digest"]


def test_the_vectors_are_of_this_version() -> None:
    assert VERSION == 1
    assert len(DERIVED) == 10
    assert set(SUMS) == {"16", "24", "32"}


def _parts(vector: dict[str, Any]) -> dict[str, Part]:
    return {
        name: Part(
            values=tuple(part["values"]),
            weight=part["weight"],
            metric=part["metric"],
            levels=vector["levels"],
        )
        for name, part in vector["parts"].items()
    }


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_a_frozen_sum_with_the_package(bits: int) -> None:
    vector = SUMS[str(bits)]
    names = tuple(vector["identities"])
    federation = Federation(
        3,
        levels=vector["levels"],
        identities={n: _key(vector["identities"][n]) for n in names},
        signer=_key(vector["signer"]),
    )
    assert federation.roster.to_json().decode() == vector["roster"]
    assert federation.roster.digest.hex() == vector["roster_digest"]
    assert PLAN.hex() == vector["plan"]
    for name in names:
        source = cast(SystemRandomness, GivenFirst(bytes.fromhex(vector["seeds"][name])))
        federation.platforms[name] = federation.made(name, source)
    invite = frames.decode_as(frames.Invite, bytes.fromhex(vector["invite"]))
    agreement = federation.agree(invite=invite)
    assert agreement.transcript.hex() == vector["transcript"]
    for name, keys in agreement.members.items():
        assert _sha256(frames.encode(keys)) == vector["keys_sha256"][name]
    ticket = frames.decode_as(frames.Ticket, bytes.fromhex(vector["ticket"]))
    assert ticket == federation.ticket(agreement, 1, kind=Kind.EVALUATE, number=7)
    assert SUBJECT.hex() == vector["subject"]
    collecting = Collecting(agreement=agreement, ticket=ticket, subject=SUBJECT)
    for name, part in _parts(vector).items():
        upload = federation.seal(name, ticket, part)
        assert _sha256(upload) == vector["uploads_sha256"][name]
        collecting.add(name, upload)
    assert federation.open(collecting.close()) == vector["total"]


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_a_frozen_sum_with_independent_arithmetic(bits: int) -> None:
    """From seeds to masked vectors and back, with nothing of the package but the frames."""
    vector = SUMS[str(bits)]
    names = tuple(vector["seeds"])
    invite = frames.decode_as(frames.Invite, bytes.fromhex(vector["invite"]))
    ticket = frames.decode_as(frames.Ticket, bytes.fromhex(vector["ticket"]))
    slot = ticket.slot
    keys = {name: _keys(vector, name, invite) for name in names}
    for name in names:
        assert _sha256(frames.encode(keys[name])) == vector["keys_sha256"][name]
    raw = independent.domain("key list", *(frames.encode(keys[name]) for name in names))
    transcript = hashlib.sha256(raw).digest()
    assert transcript.hex() == vector["transcript"]
    numbers = (slot, int(ticket.kind), ticket.round, ticket.bits, ticket.levels, ticket.length)
    parts = (invite.run, transcript, bytes.fromhex(vector["subject"]), *numbers)
    masks: dict[str, bytes] = {}
    for name in names:
        info = independent.domain("self mask", *parts, name)
        masks[name] = independent.hkdf(_secret(vector, name, "self mask seed", slot), info)
    for low, high in combinations(names, 2):
        shared = independent.x25519(_secret(vector, low, "pair key", slot), keys[high].pair(slot))
        info = independent.domain("pair mask", *parts, low, high)
        masks[f"{low}/{high}"] = independent.hkdf(shared, info)
    assert {name: key.hex() for name, key in masks.items()} == vector["mask_keys"]
    total = [0] * ticket.length
    for name, part in _parts(vector).items():
        masked = list(part.integers)
        for of, key in masks.items():
            sign = 1 if of.split("/")[0] == name else -1 if of.split("/")[-1] == name else 0
            mask = independent.mask(key, ticket.length, bits)
            masked = [(m + sign * n) % (1 << bits) for m, n in zip(masked, mask, strict=True)]
        head = frames.Upload(epoch=ticket.epoch, slot=slot, bits=bits, length=ticket.length)
        body = b"".join(number.to_bytes(bits // 8, "little") for number in masked)
        assert _sha256(frames.encode(head) + body) == vector["uploads_sha256"][name]
        total = [t + q for t, q in zip(total, part.integers, strict=True)]
    assert [number % (1 << bits) for number in total] == vector["total"]


def _key(raw: str) -> IdentityKey:
    return IdentityKey.from_bytes(bytes.fromhex(raw))


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _secret(vector: dict[str, Any], name: str, purpose: str, *parts: int) -> bytes:
    seed = bytes.fromhex(vector["seeds"][name])
    return independent.hkdf(seed, independent.domain(purpose, *parts))


def _keys(vector: dict[str, Any], name: str, invite: frames.Invite) -> frames.Keys:
    """A platform's keys; Ed25519 (RFC 8032) gives one signature for each message."""
    slots = range(invite.slots)
    seeds = [_secret(vector, name, "self mask seed", slot) for slot in slots]
    keys = frames.Keys(
        platform=name,
        run=invite.run,
        epoch=invite.epoch,
        slots=invite.slots,
        roster=bytes.fromhex(vector["roster_digest"]),
        plan=bytes.fromhex(vector["plan"]),
        channel=independent.public_key(_secret(vector, name, "channel key")),
        pairs=b"".join(
            independent.public_key(_secret(vector, name, "pair key", slot)) for slot in slots
        ),
        commitments=b"".join(
            hashlib.sha256(independent.domain("self mask commitment", seed, name, slot)).digest()
            for slot, seed in enumerate(seeds)
        ),
        signature=bytes(64),
    )
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["identities"][name]))
    signed = independent.domain("keys", frames.encode(keys)[:-64])
    return replace(keys, signature=signer.sign(signed))


def test_the_independent_arithmetic_against_the_rfcs() -> None:
    """RFC 7748, 5.2, and RFC 5869, A.3, whose first 32 bytes are one block."""
    scalar = "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"
    point = "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"
    product = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert independent.x25519(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == product
    block = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert independent.hkdf(b"\x0b" * 22, b"").hex() == block
