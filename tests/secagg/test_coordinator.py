"""What an honest coordinator refuses from platforms that are broken or lie, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from federation_in_memory import SUBJECT, SYSTEM, Federation, modulo, plain_sum

from crossrec_model.errors import WireError
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Listed
from crossrec_model.secagg.coordinator import Collecting, Unmasking
from crossrec_model.secagg.errors import (
    KeyListError,
    OldSlotError,
    OutOfTurnError,
    ParametersError,
    SharesError,
    SignatureError,
    TooFewPlatformsError,
)
from crossrec_model.secagg.gathering import Inviting
from crossrec_model.secagg.shamir import PRIME

A, B, C, D, E = "p01", "p02", "p03", "p04", "p05"


def _inviting(federation: Federation) -> tuple[Inviting, dict[str, frames.Keys]]:
    inviting = Inviting(terms=federation.terms, invite=federation.invite())
    keys = {n: federation.ask(n, inviting.invite, frames.Keys) for n in federation.names}
    return inviting, keys


def test_keys_from_another_seat_or_agreement_or_forged_ones() -> None:
    federation = Federation()
    inviting, keys = _inviting(federation)
    _, others = _inviting(federation)
    with pytest.raises(KeyListError, match="p01 sent the keys of p02"):
        inviting.check(A, keys[B])
    with pytest.raises(KeyListError, match="p01 are of another agreement"):
        inviting.check(A, others[A])
    with pytest.raises(SignatureError, match="p01 are not signed"):
        inviting.check(A, replace(keys[A], signature=bytes(64)))
    with pytest.raises(SignatureError, match="p01 are not signed"):
        inviting.close(keys | {A: replace(keys[A], commitments=bytes(96))})
    stranger = replace(keys[A], platform="p99")
    with pytest.raises(KeyListError, match="p99 is not in the roster"):
        inviting.check("p99", stranger)


def test_too_few_keys() -> None:
    inviting, keys = _inviting(Federation())
    few = {name: keys[name] for name in (A, C, E)}
    with pytest.raises(TooFewPlatformsError, match=r"^too few platforms .*: 3 of 5, need 4; start"):
        inviting.close(few)


def test_wrong_shares() -> None:
    federation = Federation()
    listing = federation.listing()
    answers = {n: federation.ask(n, listing.message, frames.Shares) for n in federation.names}
    right = answers[C]
    for wrong in (
        replace(right, transcript=bytes(32)),
        replace(right, epoch=bytes(16)),
        replace(right, bundles=right.bundles[1:]),
        replace(right, bundles=(*right.bundles, b"")),
    ):
        with pytest.raises(SharesError, match="p03") as caught:
            listing.close(answers | {C: wrong})
        assert caught.value.platform == C
    with pytest.raises(SharesError, match="p03 sent no shares"):
        listing.close({name: answers[name] for name in (A, B, D, E)})


def test_a_member_that_does_not_confirm() -> None:
    federation = Federation()
    delivering = federation.delivering(federation.listing())
    ready = {n: federation.ask(n, m, frames.Ready) for n, m in delivering.messages().items()}
    for wrong in (
        {name: ready[name] for name in (A, B, D, E)},
        ready | {C: replace(ready[C], transcript=bytes(32))},
        ready | {C: replace(ready[C], epoch=bytes(16))},
    ):
        with pytest.raises(SharesError, match="p03 did not confirm") as caught:
            delivering.close(wrong)
        assert caught.value.platform == C
    assert delivering.close(ready).transcript == ready[A].transcript


def test_a_vector_that_is_not_due_adds_nothing() -> None:
    federation = Federation()
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    collecting = Collecting(agreement=agreement, ticket=ticket, subject=SUBJECT)
    right = federation.seal(A, ticket, federation.part(A))
    body = right[26:]

    def headed(**change: Any) -> bytes:
        head = frames.Upload(
            epoch=ticket.epoch, slot=ticket.slot, bits=ticket.bits, length=ticket.length
        )
        return frames.encode(replace(head, **change))

    for frame, name, error in (
        (b"", A, WireError),
        (right[:-1], A, WireError),
        (right + b"\0", A, WireError),
        (right, "p99", SharesError),
        (headed(epoch=bytes(16)) + body, A, OldSlotError),
        (headed(slot=1) + body, A, OldSlotError),
        (headed(length=ticket.length - 1) + body[:-2], A, ParametersError),
        (headed(bits=32) + bytes(4 * ticket.length), A, ParametersError),
    ):
        with pytest.raises(error) as caught:
            collecting.add(name, frame)
        assert caught.type is error
        assert not collecting.total.any()
    collecting.add(A, right)
    once = collecting.total.copy()
    with pytest.raises(SharesError, match="no vector of platform p01 is due"):
        collecting.add(A, right)
    assert (collecting.total == once).all()
    with pytest.raises(TooFewPlatformsError, match=r"^too few platforms .*: 1 of 5, need 4; start"):
        collecting.close()
    # What is missing may still come.
    for name in (B, C, D):
        collecting.add(name, federation.seal(name, ticket, federation.part(name)))
    parts = [federation.part(name) for name in (A, B, C, D)]
    assert federation.open(collecting.close()) == plain_sum(parts, ticket.bits)


def _answered(count: int, gone: str) -> tuple[Federation, Unmasking, dict[str, frames.Reveal]]:
    """A sum of all but one, and everybody's answers, not yet given to the coordinator."""
    federation = Federation(count)
    agreement = federation.agree()
    parts = {name: federation.part(name) for name in federation.names if name != gone}
    unmasking = federation.collect(agreement, federation.ticket(agreement), parts)
    reveals = {n: federation.ask(n, unmasking.message, frames.Reveal) for n in parts}
    return federation, unmasking, reveals


def _false(reveal: frames.Reveal, part: str) -> frames.Reveal:
    """A random first share: equal changes of two shares could take each other away."""
    false = SYSTEM.bytes(32) + bytes(1)
    if part == "seeds":
        return replace(reveal, seeds=false + reveal.seeds[33:])
    return replace(reveal, keys=false + reveal.keys[33:])


def test_shares_that_are_not_due() -> None:
    _, unmasking, reveals = _answered(5, E)
    right = reveals[A]
    for name, reveal in (
        ("p99", right),
        (E, right),
        (A, replace(right, epoch=bytes(16))),
        (A, replace(right, slot=1)),
        (A, replace(right, seeds=right.seeds[33:])),
        (A, replace(right, seeds=right.seeds + bytes(33))),
        (A, replace(right, seeds=right.seeds[1:])),
        (A, replace(right, keys=b"")),
        (A, replace(right, seeds=right.keys, keys=right.seeds)),
    ):
        with pytest.raises(SharesError):
            unmasking.add(name, reveal)
    unmasking.add(A, right)
    with pytest.raises(SharesError, match="no shares of platform p01 are due"):
        unmasking.add(A, right)
    with pytest.raises(TooFewPlatformsError, match=r"^too few platforms .*: 1 of 5, need 4; start"):
        unmasking.open()


@pytest.mark.parametrize("part", ["seeds", "keys"])
@pytest.mark.parametrize("liars", [{0}, {3}, {5}, {0, 1}, {0, 5}, {0, 1, 2}, set(range(6))])
def test_false_shares_are_left_out_while_enough_are_true(part: str, liars: set[int]) -> None:
    """Of 7 platforms with t = 5 there are 6 answers: one may be false, wherever it stands."""
    federation, unmasking, reveals = _answered(7, "p04")
    names = list(reveals)
    spare = len(names) - federation.terms.threshold
    for at, name in enumerate(names):
        unmasking.add(name, _false(reveals[name], part) if at in liars else reveals[name])
    masked = unmasking.total.copy()
    if len(liars) <= spare:
        truth = plain_sum([federation.part(name) for name in names], unmasking.ticket.bits)
        assert modulo(unmasking.open(), unmasking.ticket.bits) == truth
        return
    with pytest.raises(SharesError, match="no set of 5 answers gives the secret"):
        unmasking.open()
    assert (unmasking.total == masked).all()


def test_shares_that_are_no_elements_of_the_field() -> None:
    federation, unmasking, reveals = _answered(7, "p04")
    for name, reveal in reveals.items():
        seeds = PRIME.to_bytes(33, "little") + reveal.seeds[33:]
        unmasking.add(name, replace(reveal, seeds=seeds) if name == "p02" else reveal)
    truth = plain_sum([federation.part(name) for name in reveals], unmasking.ticket.bits)
    assert modulo(unmasking.open(), unmasking.ticket.bits) == truth


def test_a_member_that_shared_another_seed_than_it_committed_to() -> None:
    """Nobody can tell before the opening; then no sum is shown, and the member is named."""
    federation = Federation()
    listing = federation.listing()
    answers = {n: federation.ask(n, listing.message, frames.Shares) for n in federation.names}
    state = federation.platforms[C].state
    assert isinstance(state, Listed)
    false = tuple(
        state.sealed(name, bytes(33) + SYSTEM.bytes(32) + bytes(1) + bytes(132))
        for name in (A, B, D, E)
    )
    delivering = listing.close(answers | {C: replace(answers[C], bundles=false)})
    agreement = delivering.close(
        {n: federation.ask(n, m, frames.Ready) for n, m in delivering.messages().items()}
    )
    parts = {name: federation.part(name) for name in federation.names}
    unmasking = federation.collect(agreement, federation.ticket(agreement), parts)
    masked = unmasking.total.copy()
    with pytest.raises(SharesError, match="secret that platform p03 committed to"):
        federation.open(unmasking)
    assert (unmasking.total == masked).all()


def test_a_sum_is_opened_once() -> None:
    federation, unmasking, reveals = _answered(5, E)
    for name, reveal in reveals.items():
        unmasking.add(name, reveal)
    total = modulo(unmasking.open(), unmasking.ticket.bits)
    with pytest.raises(OutOfTurnError, match="removed before"):
        unmasking.open()
    assert modulo(unmasking.total, unmasking.ticket.bits) == total
    truth = plain_sum([federation.part(name) for name in reveals], unmasking.ticket.bits)
    assert total == truth
