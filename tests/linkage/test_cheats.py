"""What a cheating partner's answers, keys and nonces must never get past."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sides import KEYS, NOW, OPEN, ROSTER, SYSTEM, Remembered, connect, digests, exchange, side

from crossrec_model.linkage import channel
from crossrec_model.linkage.blinding import Blinding
from crossrec_model.linkage.errors import HandshakeError, MadeUpError
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.intersection import Offered, Side
from crossrec_model.linkage.messages import (
    Accept,
    Offer,
    Purpose,
    Sealed,
    Stream,
    decode_as,
    encode,
)
from crossrec_model.linkage.policy import Permit

ONE, TWO = digests(range(100)), digests(range(50, 150))


def test_answers_that_make_everybody_common_are_noticed(small_blocks: int, cores: Cores) -> None:
    """Whoever answers with what was answered to it makes up a link to every user of the other side."""
    a, b = connect(ONE, TWO)
    while (block := b.next_block(cores)) is not None:
        answer = a.receive(block, cores)
        assert answer
        sealed = decode_as(Sealed, answer)
        doubled = b.channel.open(sealed)
        assert a.next_block(cores)
        a.receive(encode(b.channel.seal(Stream.RETURNED, sealed.number, doubled)), cores)
    with pytest.raises(MadeUpError):
        a.compare()


def test_one_made_up_answer_to_padding_is_enough(small_blocks: int, cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    exchange(a, b, cores)
    padding = int((a.blinding.order >= a.blinding.elements).nonzero()[0][0])
    common = b.theirs[padding].copy()
    free = [k for k in range(len(a.theirs)) if a.theirs[k].tobytes() not in _set(a.own)]
    a.theirs[free[0]] = common
    with pytest.raises(MadeUpError):
        a.compare()


def _set(rows: object) -> set[bytes]:
    return {row.tobytes() for row in rows}  # type: ignore[attr-defined]


def test_no_two_frames_are_sealed_under_one_key_stream() -> None:
    """The same plain text never gives the same first bytes: not in another place, stream or direction."""
    a, b = connect(ONE, TWO)
    plain, seen = bytes(64), set()
    for way in (a.channel, b.channel):
        for stream in Stream:
            for number in range(5):
                seen.add(way.seal(stream, number, plain).ciphertext[:32])
    assert len(seen) == 2 * len(Stream) * 5


def test_nothing_is_known_of_order_and_padding_without_the_seed(cores: Cores) -> None:
    one, other = Blinding(ONE, b"1" * 32), Blinding(ONE, b"2" * 32)
    places = [each.order.tolist() for each in (one, other)]
    assert all(sorted(order) == list(range(256)) for order in places)
    assert places[0] != places[1]
    # Elements are spread among the padding.
    for order in places:
        assert order != sorted(order)
        assert 20 < sum(element < 100 for element in order[:128]) < 80
    made: list[set[bytes]] = []
    for each in (one, other):
        each.scalar = one.scalar
        points = each.block(0, cores)
        made.append({points[k : k + 32] for k in range(0, len(points), 32)})
    # Under one scalar the elements are the same points; no padding is.
    assert len(made[0] & made[1]) == 100


def test_link_ids_need_the_sessions_key(cores: Cores) -> None:
    """Whoever knows a doubly blinded element but not the session's key can't tell its link id."""
    a, b = connect(ONE, TWO)
    exchange(a, b, cores)
    first = a.compare().links
    object.__setattr__(a.channel, "root", b"other" * 6 + b"  ")
    assert {bytes(x) for x in first}.isdisjoint({bytes(x) for x in a.compare().links})


def _permit(partner: str, purpose: Purpose = Purpose.USERS) -> Permit:
    return OPEN.permit(Remembered(), partner, purpose, ONE, NOW)


def _offered() -> tuple[Offered, Offer]:
    state, frame = side("A").offer(ONE, _permit("B"), SYSTEM)
    return state, decode_as(Offer, frame)


def test_an_offer_is_good_for_nothing_that_its_signature_does_not_name() -> None:
    _, offer = _offered()
    other = replace(ROSTER, federation="south")
    there = channel.federation_of(other)
    items = replace(offer, purpose=Purpose.ITEMS)
    for by, wrong, purpose in (
        (side("C"), replace(offer, responder="C"), Purpose.USERS),
        (side("B"), items, Purpose.ITEMS),
        (
            Side(roster=other, platform="B", key=KEYS["B"]),
            replace(offer, federation=there),
            Purpose.USERS,
        ),
    ):
        with pytest.raises(HandshakeError, match="not signed"):
            by.accept(encode(wrong), ONE, _permit("A", purpose), SYSTEM)


def test_an_acceptance_is_good_for_no_other_offer_whatever_it_claims() -> None:
    state, offer = _offered()
    _, other = _offered()
    _, frame = side("B").accept(encode(other), ONE, _permit("A"), SYSTEM)
    claimed = replace(decode_as(Accept, frame), offer=channel.offer_digest(offer))
    with pytest.raises(HandshakeError, match="not signed"):
        state.accepted(encode(claimed))


def test_what_was_said_makes_the_keys() -> None:
    """The same shared secret gives other keys where anything that was said is another."""
    state, offer = _offered()
    _, frame = side("B").accept(encode(offer), ONE, _permit("A"), SYSTEM)
    accept, offered = decode_as(Accept, frame), channel.offer_digest(offer)
    parties = state.secret.parties
    roots = {
        channel._channel(who, said, answer, bytes(32), initiates=True).root
        for who, said, answer in (
            (parties, offered, accept),
            (parties, bytes(32), accept),
            (parties, offered, replace(accept, ephemeral=bytes(32))),
            (replace(parties, initiator="C"), offered, accept),
            (replace(parties, responder="C"), offered, accept),
            (replace(parties, purpose=Purpose.ITEMS), offered, accept),
            (replace(parties, federation=bytes(32)), offered, accept),
        )
    }
    assert len(roots) == 7


def test_the_size_that_is_shown_is_padded() -> None:
    assert [Blinding(digests(range(n)), bytes(32)).size for n in (1, 257, 301, 1025)] == [
        256,
        272,
        304,
        1088,
    ]
