"""Steps 1 to 3: what everybody holds after them, and what is refused on the way."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from federation_in_memory import PLAN, SYSTEM, Federation, is_left, refuses
from independent import at_zero, domain, hkdf, public_key

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import (
    Agreed,
    Invited,
    Listed,
    Secrets,
    Terms,
    signed_part,
)
from crossrec_model.secagg.errors import (
    KeyListError,
    OutOfTurnError,
    RosterError,
    SharesError,
    TooFewPlatformsError,
)
from crossrec_model.secagg.gathering import Delivering, Listing
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.participant import Idle, Opened, Participant, Sealed
from crossrec_model.secagg.roster import Roster

A, B, C, D, E = "p01", "p02", "p03", "p04", "p05"
_FIELD = 2**255 - 19
#: Public keys with which every shared secret is zero (RFC 7748, 6.1): points of order 1, 2, 4 and 8.
_ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
WEAK = [n.to_bytes(32, "little") for n in (0, 1, _FIELD - 1, _FIELD, _FIELD + 1, *_ORDER_8)]


def _agreed(federation: Federation, name: str) -> Agreed:
    state = federation.platforms[name].state
    assert isinstance(state, Agreed)
    return state


@pytest.mark.parametrize(("count", "here"), [(3, 3), (5, 5), (7, 6)])
def test_any_quorum_holds_every_secret_and_fewer_hold_none(count: int, here: int) -> None:
    federation = Federation(count)
    members = federation.names[-here:]
    agreement = federation.agree(members)
    agreed = {name: _agreed(federation, name) for name in members}
    numbers = {name: x for x, name in enumerate(members, start=1)}
    least = federation.terms.threshold
    for owner, slot in itertools.product(members, range(3)):
        secrets = agreed[owner].secrets
        keys = agreement.members[owner]
        for quorum in itertools.combinations(members, least):
            pair = {numbers[n]: agreed[n].key_share(owner, slot) for n in quorum}
            seed = {numbers[n]: agreed[n].seed_share(owner, slot) for n in quorum}
            assert at_zero(pair) == secrets.pair(slot)
            assert at_zero(seed) == secrets.mask(slot)
            pair.popitem()
            seed.popitem()
            assert at_zero(pair) != secrets.pair(slot)
            assert at_zero(seed) != secrets.mask(slot)
        assert keys.pair(slot) == public_key(secrets.pair(slot))
        committed = domain("self mask commitment", secrets.mask(slot), owner, slot)
        assert keys.commitment(slot) == hashlib.sha256(committed).digest()
    raw = domain("key list", *map(frames.encode, agreement.members.values()))
    assert {one.transcript for one in agreed.values()} == {hashlib.sha256(raw).digest()}


def test_all_secrets_come_from_one_seed_by_their_purpose() -> None:
    secrets = Secrets(seed=bytes(range(32)))
    assert secrets.channel.private_bytes_raw() == hkdf(secrets.seed, domain("channel key"))
    assert secrets.pair(3) == hkdf(secrets.seed, domain("pair key", 3))
    assert secrets.mask(3) == hkdf(secrets.seed, domain("self mask seed", 3))


def test_keys_are_fresh_each_time_and_different_everywhere() -> None:
    federation = Federation(4)
    seen: list[bytes] = []
    for _ in range(3):
        for keys in federation.agree(slots=4).members.values():
            seen.append(keys.channel)
            seen += [keys.pair(slot) for slot in range(4)]
            seen += [keys.commitment(slot) for slot in range(4)]
    seen += [_agreed(federation, name).secrets.seed for name in federation.names]
    assert len(set(seen)) == len(seen) == 3 * 4 * 9 + 4


def _delivering(federation: Federation) -> Delivering:
    return federation.delivering(federation.listing())


def _swap(bundles: tuple[bytes, ...], _d: Delivering) -> tuple[bytes, ...]:
    return bundles[1], bundles[0], *bundles[2:]


def _flip(at: int) -> Callable[[tuple[bytes, ...], Delivering], tuple[bytes, ...]]:
    def change(bundles: tuple[bytes, ...], _d: Delivering) -> tuple[bytes, ...]:
        raw = bytearray(bundles[0])
        raw[at] ^= 1
        return bytes(raw), *bundles[1:]

    return change


def _for_another(bundles: tuple[bytes, ...], delivering: Delivering) -> tuple[bytes, ...]:
    """The bundle of B for C instead of the one of B for A."""
    return delivering.messages()[C].bundles[1], *bundles[1:]


def _own_back(bundles: tuple[bytes, ...], delivering: Delivering) -> tuple[bytes, ...]:
    """What A itself sent to B: the same two channel keys, the other direction."""
    return delivering.shares[A].bundles[0], *bundles[1:]


@pytest.mark.parametrize(
    "change",
    [
        _swap,
        _flip(0),
        _flip(100),
        _flip(-1),
        _for_another,
        _own_back,
        lambda bundles, _d: (b"", *bundles[1:]),
        lambda bundles, _d: (bundles[0][:-1], *bundles[1:]),
        lambda bundles, _d: (bundles[0] + b"\0", *bundles[1:]),
        lambda bundles, _d: bundles[1:],
        lambda bundles, _d: (*bundles, bundles[0]),
        lambda bundles, _d: (),
    ],
)
def test_a_wrong_delivery(change: Callable[..., tuple[bytes, ...]]) -> None:
    federation = Federation()
    delivering = _delivering(federation)
    delivery = delivering.messages()[A]
    wrong = replace(delivery, bundles=change(delivery.bundles, delivering))
    refuses(federation, A, wrong, SharesError, "shares")
    federation.ask(B, delivering.messages()[B], frames.Ready)


def test_a_member_that_shares_too_few_secrets() -> None:
    federation = Federation()
    delivering = _delivering(federation)
    state = federation.platforms[B].state
    assert isinstance(state, Listed)
    delivery = delivering.messages()[A]
    short = state.sealed(A, bytes(66 * 3 - 33))
    wrong = replace(delivery, bundles=(short, *delivery.bundles[1:]))
    refuses(federation, A, wrong, SharesError, "p02 did not share the secrets of each slot")


@pytest.mark.parametrize("weak", WEAK, ids=lambda weak: weak.hex()[:8])
def test_a_weak_channel_key(weak: bytes) -> None:
    federation = Federation()
    listing = _colluding(federation, federation.listing(), channel=weak)
    for name in (A, B, D, E):
        refuses(federation, name, listing.message, KeyListError, "p03 is weak")


@pytest.mark.parametrize("weak", WEAK, ids=lambda weak: weak.hex()[:8])
def test_a_weak_pair_key(weak: bytes) -> None:
    federation = Federation()
    listing = federation.listing()
    pairs = listing.members[C].pairs
    listing = _colluding(federation, listing, pairs=pairs[:32] + weak + pairs[64:])
    for name in (A, B, D, E):
        refuses(federation, name, listing.message, KeyListError, "p03 is weak")


def _colluding(federation: Federation, listing: Listing, **change: Any) -> Listing:
    """C, who colludes, gives other keys and signs them."""
    forged = replace(listing.members[C], **change)
    signature = federation.identities[C].sign("keys", signed_part(forged))
    members = dict(listing.members) | {C: replace(forged, signature=signature)}
    return replace(listing, members=members)


def test_every_message_in_every_state_that_it_is_not_for() -> None:
    epoch = bytes(16)
    messages: dict[str, frames.Message] = {
        "KeyList": frames.KeyList(epoch=epoch, keys=()),
        "Delivery": frames.Delivery(epoch=epoch, bundles=()),
        "Unmask": frames.Unmask(epoch=epoch, slot=0, survivors=(), dropped=()),
    }
    due = {Invited: "KeyList", Listed: "Delivery", Sealed: "Unmask", Opened: "Unmask"}
    for name, message in messages.items():
        for kind, federation in _in_every_state():
            if due.get(kind) != name:
                refuses(federation, A, message, OutOfTurnError, "for the state|came in")


@pytest.mark.parametrize("at", range(6))
def test_a_platforms_own_messages_are_not_for_it(at: int) -> None:
    epoch, digest = bytes(16), bytes(32)
    federation = Federation()
    keys = federation.ask(B, federation.invite(), frames.Keys)
    own = (
        keys,
        frames.Shares(epoch=epoch, transcript=digest, bundles=()),
        frames.Ready(epoch=epoch, transcript=digest),
        frames.Upload(epoch=epoch, slot=0, bits=16, length=1),
        frames.Reveal(epoch=epoch, slot=0, seeds=b"", keys=b""),
        federation.ticket(federation.agree()),
    )
    refuses(federation, A, own[at], OutOfTurnError, "is not for a platform")


def _in_every_state() -> Iterator[tuple[type[object], Federation]]:
    federation = Federation()
    yield Idle, federation
    federation = Federation()
    federation.listing()
    yield Invited, federation
    federation = Federation()
    _delivering(federation)
    yield Listed, federation
    federation = Federation()
    federation.agree()
    yield Agreed, federation
    for kind in (Sealed, Opened):
        federation = Federation()
        agreement = federation.agree()
        parts = {name: federation.part(name) for name in federation.names}
        unmasking = federation.collect(agreement, federation.ticket(agreement), parts)
        if kind is Opened:
            federation.open(unmasking)
        yield kind, federation


def test_a_restart_forgets_the_keys_and_a_new_agreement_helps() -> None:
    for kind, federation in _in_every_state():
        assert isinstance(federation.platforms[A].state, kind)
        federation.restart(A)
        is_left(federation, A, bytes(16))
        agreement = federation.agree()
        ticket = federation.ticket(agreement, number=2)
        parts = {name: federation.part(name) for name in federation.names}
        federation.open(federation.collect(agreement, ticket, parts))


def test_no_state_shows_a_secret() -> None:
    kinds = set()
    for kind, federation in _in_every_state():
        kinds.add(kind)
        platform = federation.platforms[A]
        shown = [repr(platform), repr(platform.state), str(platform.state), repr(vars(platform))]
        text = " ".join(shown)
        secrets = [federation.identities[A].to_bytes(), *_secrets_of(platform)]
        assert kind is Idle or len(secrets) > 3
        for secret in secrets:
            for form in (repr(secret)[2:-1], secret.hex(), repr(list(secret))):
                assert form not in text
    assert kinds == {Idle, Invited, Listed, Agreed, Sealed, Opened}


def _secrets_of(platform: Participant) -> list[bytes]:
    """All secret bytes of a state, and shares of 33 bytes one by one."""
    state = platform.state
    if isinstance(state, Idle):
        return []
    agreed = state.agreed if isinstance(state, Sealed | Opened) else state
    secrets = agreed.secrets
    found = [secrets.seed, secrets.channel.private_bytes_raw()]
    found += [one(slot) for one in (secrets.pair, secrets.mask) for slot in range(3)]
    joined = [agreed.own_shares] if isinstance(agreed, Listed) else []
    joined += agreed.held.values() if isinstance(agreed, Agreed) else []
    joined += [state.reveal.seeds, state.reveal.keys] if isinstance(state, Opened) else []
    return found + [raw[at : at + 33] for raw in joined for at in range(0, len(raw), 33)]


def test_a_platform_with_another_key_than_the_rosters() -> None:
    federation = Federation()
    federation.identities[A] = IdentityKey.generate(SYSTEM)
    with pytest.raises(RosterError, match="another key for platform p01"):
        federation.restart(A)


@pytest.mark.parametrize("share", [0.0, 0.2, 1 / 3, 0.5, 0.9, 1.0])
def test_the_threshold_for_every_size(share: float) -> None:
    """The least number with which two quorums always share an honest platform, and at least 3."""
    exact = Fraction(share).limit_denominator(1000)
    keys = [IdentityKey.generate(SYSTEM).public for _ in range(101)]
    for count in range(3, 101):
        members = tuple(Member(f"p{at:03}", keys[at]) for at in range(count))
        roster = Roster(federation="f", version=1, members=members, signer=keys[100])
        colluders = max((c for c in range(count) if c < exact * count), default=0)
        least = next(t for t in range(3, count + 1) if 2 * t - count > colluders)
        terms = Terms(roster=roster, plan=PLAN, colluding_share=share)
        assert terms.threshold == least
        error = terms.too_few(least - 1, "here")
        assert isinstance(error, TooFewPlatformsError)
        text = f"too few platforms here: {least - 1} of {count}, need {least}; "
        assert str(error) == text + "start the missing ones"


def test_the_package_needs_neither_torch_nor_a_network() -> None:
    script = """
import importlib, pkgutil, sys
import crossrec_model.secagg as package
names = [m.name for m in pkgutil.iter_modules(package.__path__)]
assert len(names) >= 13, names
for name in names:
    importlib.import_module(f"crossrec_model.secagg.{name}")
print(sorted({"torch", "flwr", "grpc", "httpx", "opacus"} & sys.modules.keys()))
"""
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert found.stdout == "[]\n"
