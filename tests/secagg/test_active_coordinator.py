"""A coordinator that lies about keys or sums: every honest platform concerned leaves by a named error.

A refusal raises, so that no frame leaves the platform, and it forgets its keys: `refuses` checks that
nothing which was agreed before can be opened or continued afterwards. Lies about who survived are in
test_survivor_lists.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from federation_in_memory import (
    DIMENSION,
    RUN,
    SUBJECT,
    SYSTEM,
    Federation,
    is_left,
    refuses,
)

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import public_of, signed_part
from crossrec_model.secagg.errors import (
    KeyListError,
    NotFiniteError,
    OldSlotError,
    ParametersError,
    SecureSumError,
    SharesError,
    SignatureError,
    TooFewPlatformsError,
    ValueOutOfBoundsError,
)
from crossrec_model.secagg.gathering import Listing
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.messages import MAX_SLOTS, Kind

A, B, C, D, E = "p01", "p02", "p03", "p04", "p05"
Error = type[SecureSumError]


# Step 1: the invitation.


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"roster": bytes(32)}, "roster is not this platform's"),
        ({"plan": bytes(32)}, "for another plan"),
        ({"slots": MAX_SLOTS + 1}, f"{MAX_SLOTS + 1} slots are asked for; at most {MAX_SLOTS}"),
        ({"slots": 65535}, "65535 slots are asked for"),
    ],
)
def test_an_invitation_under_other_terms(change: Mapping[str, Any], match: str) -> None:
    federation = Federation()
    federation.agree()
    for name in federation.names:
        invite = replace(federation.invite(), **change)
        refuses(federation, name, invite, ParametersError, match)


def test_a_key_agreement_is_begun_once() -> None:
    federation = Federation()
    listing = federation.listing()
    refuses(federation, A, listing.invite, OldSlotError, "begun before")


# Step 2: the key list. Each attack gives the list that everybody is sent.

Attack = Callable[[Federation, Listing], list[frames.Keys]]


def _with(listing: Listing, name: str, **change: Any) -> list[frames.Keys]:
    members = dict(listing.members)
    members[name] = replace(members[name], **change)
    return list(members.values())


def _swapped(part: str) -> Attack:
    key = public_of(SYSTEM.bytes(32))

    def attack(_federation: Federation, listing: Listing) -> list[frames.Keys]:
        old = getattr(listing.members[C], part)
        return _with(listing, C, **{part: key + old[32:]})

    return attack


def _signed_anew(keys: frames.Keys, key: IdentityKey) -> frames.Keys:
    return replace(keys, signature=key.sign("keys", signed_part(keys)))


def _swapped_and_signed_by_another(federation: Federation, listing: Listing) -> list[frames.Keys]:
    channel = public_of(SYSTEM.bytes(32))
    forged = replace(listing.members[C], channel=channel)
    signed = _signed_anew(forged, federation.identities[E])
    return [signed if keys.platform == C else keys for keys in listing.members.values()]


def _signed_for_another_purpose(federation: Federation, listing: Listing) -> list[frames.Keys]:
    signature = federation.identities[C].sign("platform card", signed_part(listing.members[C]))
    return _with(listing, C, signature=signature)


def _one_under_anothers_name(federation: Federation, listing: Listing) -> list[frames.Keys]:
    forged = replace(listing.members[E], platform=C)
    signed = _signed_anew(forged, federation.identities[E])
    return [signed if keys.platform == C else keys for keys in listing.members.values()]


def _with_a_stranger(federation: Federation, listing: Listing) -> list[frames.Keys]:
    stranger = replace(listing.members[E], platform="p99")
    return [
        *listing.members.values(),
        _signed_anew(stranger, IdentityKey.generate(SYSTEM)),
    ]


def _flipped_signature(_federation: Federation, listing: Listing) -> list[frames.Keys]:
    signature = bytearray(listing.members[C].signature)
    signature[7] ^= 1
    return _with(listing, C, signature=bytes(signature))


def _no_signature(_federation: Federation, listing: Listing) -> list[frames.Keys]:
    return _with(listing, C, signature=bytes(64))


def _doubled(_federation: Federation, listing: Listing) -> list[frames.Keys]:
    return sorted([*listing.members.values(), listing.members[C]], key=lambda k: k.platform)


def _unsorted(_federation: Federation, listing: Listing) -> list[frames.Keys]:
    return list(listing.members.values())[::-1]


def _fewer_slots(federation: Federation, listing: Listing) -> list[frames.Keys]:
    """A member that colludes signs one pair key too few."""
    short = replace(listing.members[C], pairs=listing.members[C].pairs[32:])
    signed = _signed_anew(short, federation.identities[C])
    return [signed if keys.platform == C else keys for keys in listing.members.values()]


def _of_an_older_agreement(federation: Federation, listing: Listing) -> list[frames.Keys]:
    """The keys of C from an agreement before: its signature holds."""
    del listing
    old = federation.listing()
    new = federation.listing()
    return [old.members[C] if k.platform == C else k for k in new.members.values()]


@pytest.mark.parametrize(
    ("attack", "error", "match"),
    [
        (_swapped("channel"), SignatureError, "p03 are not signed by its identity"),
        (_swapped("pairs"), SignatureError, "p03 are not signed by its identity"),
        (_swapped("commitments"), SignatureError, "p03 are not signed by its identity"),
        (_swapped_and_signed_by_another, SignatureError, "p03 are not signed by its identity"),
        (_signed_for_another_purpose, SignatureError, "p03 are not signed by its identity"),
        (_one_under_anothers_name, SignatureError, "p03 are not signed by its identity"),
        (_with_a_stranger, KeyListError, "p99 is not in the roster"),
        (_flipped_signature, SignatureError, "p03 are not signed by its identity"),
        (_no_signature, SignatureError, "p03 are not signed by its identity"),
        (_doubled, KeyListError, "strict order"),
        (_unsorted, KeyListError, "strict order"),
        (_fewer_slots, KeyListError, "p03 did not give one key for each slot"),
        (_of_an_older_agreement, KeyListError, "p03 are of another agreement"),
    ],
)
def test_a_forged_key_list(attack: Attack, error: Error, match: str) -> None:
    federation = Federation()
    keys = attack(federation, federation.listing())
    epoch = next(k.epoch for k in keys if k.platform == A)
    message = frames.KeyList(epoch=epoch, keys=tuple(map(frames.encode, keys)))
    for name in federation.names:
        refuses(federation, name, message, error, match)


def test_a_key_swapped_in_one_platforms_view() -> None:
    federation = Federation()
    listing = federation.listing()
    forged = tuple(map(frames.encode, _swapped("channel")(federation, listing)))
    refuses(
        federation,
        A,
        frames.KeyList(epoch=listing.invite.epoch, keys=forged),
        SignatureError,
        "p03",
    )
    answers = {name: federation.ask(name, listing.message, frames.Shares) for name in (B, C, D, E)}
    with pytest.raises(SharesError, match="p01 sent no shares"):
        listing.close(answers)


@pytest.mark.parametrize("entry", [b"", b"\x01\x00\x02", b"\xff" * 40])
def test_a_malformed_entry(entry: bytes) -> None:
    federation = Federation()
    listing = federation.listing()
    message = replace(listing.message, keys=(entry, *listing.message.keys))
    refuses(federation, A, message, KeyListError, "malformed entry")
    invite = (frames.encode(listing.invite),)
    refuses(federation, B, replace(listing.message, keys=invite), KeyListError, "malformed entry")


def test_a_list_without_the_platform_itself_or_with_too_few() -> None:
    federation = Federation()
    listing = federation.listing()
    keys = listing.message.keys
    refuses(federation, A, replace(listing.message, keys=keys[1:]), KeyListError, "as it sent them")
    few = replace(listing.message, keys=keys[1:4])
    refuses(federation, B, few, TooFewPlatformsError, "too few platforms .*: 3 of 5, need 4; start")
    empty = replace(listing.message, keys=())
    refuses(federation, C, empty, KeyListError, "as it sent them")


def test_own_keys_from_before_a_restart() -> None:
    """Both sets of keys are signed for this agreement, but only one has its secrets still."""
    federation = Federation()
    listing = federation.listing()
    federation.restart(C)
    renewed = federation.ask(C, listing.invite, frames.Keys)
    assert renewed.channel != listing.members[C].channel
    refuses(federation, C, listing.message, KeyListError, "as it sent them")


def test_a_whole_list_of_an_older_agreement() -> None:
    federation = Federation()
    old = federation.listing()
    federation.listing()
    for name in federation.names:
        refuses(federation, name, old.message, OldSlotError, "another key agreement")


def test_two_key_lists_for_two_halves_end_at_the_delivery() -> None:
    federation = Federation()
    listing = federation.listing()
    shorter = replace(listing, members={n: listing.members[n] for n in (A, B, C, D)})
    answers = {n: federation.ask(n, listing.message, frames.Shares) for n in (A, B, E)}
    answers |= {n: federation.ask(n, shorter.message, frames.Shares) for n in (C, D)}
    assert answers[A].transcript != answers[C].transcript
    with pytest.raises(SharesError, match="another key list"):
        listing.close(answers)
    for name in federation.names:
        view = shorter if name in (C, D) else listing
        others = [other for other in view.members if other != name]
        # The coordinator gives what it has: the bundle for this platform in each sender's own list.
        bundles = tuple(_bundle(listing, shorter, answers, other, name) for other in others)
        message = frames.Delivery(epoch=listing.invite.epoch, bundles=bundles)
        refuses(federation, name, message, SharesError, "or of another key list")


def _bundle(
    longer: Listing,
    shorter: Listing,
    answers: Mapping[str, frames.Shares],
    sender: str,
    receiver: str,
) -> bytes:
    view = longer if answers[sender].transcript == longer.transcript else shorter
    others = [name for name in view.members if name != sender]
    at = others.index(receiver) if receiver in others else 0
    return answers[sender].bundles[at]


# Step 4: the ticket.


def _refuses_ticket(
    federation: Federation, name: str, ticket: frames.Ticket, error: Error, **asked: Any
) -> None:
    """No vector leaves: `seal` raises before it returns any, and the platform has left."""
    expected: dict[str, Any] = {
        "run": RUN, "kind": Kind.TRAIN, "number": 1, "subject": SUBJECT,
    } | asked  # fmt: skip
    with pytest.raises(error) as caught:
        federation.platforms[name].seal(
            frames.encode(ticket), federation.part(name).contribution, **expected
        )
    assert caught.type is error
    is_left(federation, name, ticket.epoch)


@pytest.mark.parametrize("change", [
    {"bits": 24}, {"bits": 32}, {"bits": 8}, {"bits": 0}, {"bits": 17}, {"bits": 255},
    {"levels": 1}, {"levels": 2048}, {"levels": 8192}, {"levels": 2**32 - 1},
    {"length": 25}, {"length": 27}, {"length": 1}, {"length": 2**32 - 1},
    {"kind": Kind.EVALUATE}, {"round": 0}, {"round": 2},
])  # fmt: skip
def test_a_ticket_with_other_parameters(change: Mapping[str, Any]) -> None:
    federation = Federation()
    ticket = replace(federation.ticket(federation.agree()), **change)
    for name in federation.names:
        _refuses_ticket(federation, name, ticket, ParametersError)


def test_a_ticket_for_other_keys_slots_or_runs() -> None:
    federation = Federation()
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    _refuses_ticket(federation, A, replace(ticket, epoch=bytes(16)), OldSlotError)
    _refuses_ticket(federation, B, replace(ticket, slot=3), OldSlotError)
    _refuses_ticket(federation, C, ticket, OldSlotError, run=bytes(16))
    _refuses_ticket(federation, D, ticket, ParametersError, kind=Kind.EVALUATE)
    _refuses_ticket(federation, E, ticket, ParametersError, number=2)


@pytest.mark.parametrize("raw", [b"", b"\x01\x00\x07", b"\x02\x00\x07" + bytes(33)])
def test_a_malformed_ticket(raw: bytes) -> None:
    federation = Federation()
    agreement = federation.agree()
    with pytest.raises(ParametersError, match="malformed"):
        federation.platforms[A].seal(
            raw,
            federation.part(A).contribution,
            run=RUN,
            kind=Kind.TRAIN,
            number=1,
            subject=SUBJECT,
        )
    is_left(federation, A, agreement.invite.epoch)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 1), (1, 0), (2, 0)])
def test_a_slot_that_was_used_or_passed(first: int, second: int) -> None:
    federation = Federation()
    agreement = federation.agree()
    for name in federation.names:
        federation.seal(name, federation.ticket(agreement, first), federation.part(name))
        again = federation.ticket(agreement, second, number=2)
        _refuses_ticket(federation, name, again, OldSlotError, number=2)


def test_a_slot_that_was_opened() -> None:
    federation = Federation()
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    parts = {name: federation.part(name) for name in federation.names}
    federation.open(federation.collect(agreement, ticket, parts))
    for name in federation.names:
        _refuses_ticket(federation, name, ticket, OldSlotError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_a_part_that_the_grid_can_not_hold_leaves_the_sum(value: float) -> None:
    federation = Federation()
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    contribution = federation.part(A).contribution
    contribution.update[3] = value
    with pytest.raises((NotFiniteError, ValueOutOfBoundsError), match="coordinate of the update"):
        federation.platforms[A].seal(
            frames.encode(ticket),
            contribution,
            run=RUN,
            kind=Kind.TRAIN,
            number=1,
            subject=SUBJECT,
        )
    is_left(federation, A, agreement.invite.epoch)


def test_a_ticket_is_checked_before_the_work_as_it_is_after_it() -> None:
    federation = Federation()
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    asked: dict[str, Any] = {"run": RUN, "kind": Kind.TRAIN, "number": 1}
    for name in federation.names:
        federation.platforms[name].check(frames.encode(ticket), DIMENSION, **asked)
        federation.seal(name, ticket, federation.part(name))
    later: Any = replace(ticket, slot=1)
    for name, wrong, error in (
        (A, ticket, OldSlotError),
        (B, replace(later, bits=32), ParametersError),
        (C, replace(later, round=2), ParametersError),
        (D, replace(later, epoch=bytes(16)), OldSlotError),
    ):
        with pytest.raises(error):
            federation.platforms[name].check(frames.encode(wrong), DIMENSION, **asked)
        is_left(federation, name, agreement.invite.epoch)
    with pytest.raises(ParametersError, match="length of the sum is 26, the plan gives 27"):
        federation.platforms[E].check(frames.encode(later), DIMENSION + 1, **asked)
    is_left(federation, E, agreement.invite.epoch)
