"""What a cheating courier or partner sends is refused by name, and the session goes on unharmed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sides import KEYS, NOW, OPEN, ROSTER, SYSTEM, Remembered, connect, digests, exchange, side

from crossrec_model.errors import WireError
from crossrec_model.linkage.channel import Channel
from crossrec_model.linkage.errors import (
    BlockNumberError,
    BlockSizeError,
    HandshakeError,
    LinkageError,
    MissingBlockError,
    OtherSessionError,
    PointError,
    RepeatedElementError,
    ReplayedBlockError,
    SmallSetError,
    TamperedError,
    TruncatedError,
    UnknownPlatformError,
)
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.intersection import Exchanging, Offered, Side
from crossrec_model.linkage.messages import (
    Accept,
    Announcement,
    Offer,
    Purpose,
    Sealed,
    Stream,
    decode_as,
    encode,
)
from crossrec_model.linkage.policy import Permit, Policy
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.roster import Roster

ONE, TWO = digests(range(100)), digests(range(50, 150))
GENERATOR = bytes.fromhex("e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76")


def _permit(partner: str, memory: Remembered | None = None, policy: Policy = OPEN) -> Permit:
    return policy.permit(memory or Remembered(), partner, Purpose.USERS, ONE, NOW)


def _offered() -> tuple[Offered, bytes]:
    return side("A").offer(ONE, _permit("B"), SYSTEM)


def _opened(channel: Channel, frame: bytes) -> tuple[Sealed, bytes]:
    sealed = decode_as(Sealed, frame)
    return sealed, channel.open(sealed)


def _refused(state: Exchanging, frame: bytes, kind: type[Exception], cores: Cores) -> None:
    """The frame is refused by name; nothing but the refusal has happened."""
    counters, own, theirs = state.counters, state.own.copy(), state.theirs.copy()
    with pytest.raises(kind) as refused:
        state.receive(frame, cores)
    assert type(refused.value) is kind
    assert state.counters == counters
    assert (state.own == own).all()
    assert (state.theirs == theirs).all()


def _finish(a: Exchanging, b: Exchanging, cores: Cores) -> None:
    """The session still comes to its right end."""
    exchange(a, b, cores)
    assert sorted(a.compare().elements.tolist()) == list(range(50, 100))
    assert sorted(b.compare().elements.tolist()) == list(range(50))


def test_a_replayed_a_missing_and_a_reordered_block(small_blocks: int, cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    first, second, third = (a.next_block(cores) for _ in range(3))
    assert first
    assert second
    assert third
    _refused(b, second, MissingBlockError, cores)
    answer = b.receive(first, cores)
    assert answer
    _refused(b, first, ReplayedBlockError, cores)
    _refused(b, third, MissingBlockError, cores)
    a.receive(answer, cores)
    _refused(a, answer, ReplayedBlockError, cores)
    for block in (second, third):
        answer = b.receive(block, cores)
        assert answer
        a.receive(answer, cores)
    _finish(a, b, cores)


def test_an_answer_to_what_was_not_sent(small_blocks: int, cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    frame = encode(b.channel.seal(Stream.RETURNED, 0, bytes(64 * 32)))
    _refused(a, frame, BlockNumberError, cores)
    beyond = encode(a.channel.seal(Stream.BLINDED, 4, bytes(64 * 32)))
    _refused(b, beyond, BlockNumberError, cores)
    _finish(a, b, cores)


def test_a_second_announcement_changes_nothing(cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    plain = encode(Announcement(size=512, block=4096))
    _refused(b, encode(a.channel.seal(Stream.ANNOUNCE, 0, plain)), ReplayedBlockError, cores)
    _finish(a, b, cores)


@pytest.mark.parametrize("place", [3, 21, 24, 28, 40, 1000, -1])
def test_every_changed_byte_is_noticed(place: int, cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    frame = bytearray(a.next_block(cores) or b"")
    frame[place] ^= 2
    before = b.counters
    with pytest.raises((LinkageError, WireError)):
        b.receive(bytes(frame), cores)
    assert b.counters == before
    frame[place] ^= 2
    answer = b.receive(bytes(frame), cores)
    assert answer
    a.receive(answer, cores)
    _finish(a, b, cores)


def test_a_block_cut_short_or_moved_to_another_place(small_blocks: int, cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    frame = a.next_block(cores)
    assert frame
    sealed = decode_as(Sealed, frame)
    cut = replace(sealed, ciphertext=sealed.ciphertext[:-32])
    _refused(b, encode(cut), TamperedError, cores)
    _refused(b, frame[:-1], WireError, cores)
    second = decode_as(Sealed, a.next_block(cores) or b"")
    _refused(b, encode(replace(second, number=0)), TamperedError, cores)
    # As an answer, or back to its own sender.
    _refused(a, encode(replace(sealed, stream=Stream.RETURNED)), TamperedError, cores)
    _refused(a, frame, TamperedError, cores)


def test_a_block_of_another_session(cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    other, _ = connect(ONE, TWO)
    frame = other.next_block(cores)
    assert frame
    _refused(b, frame, OtherSessionError, cores)
    named = replace(decode_as(Sealed, frame), session=b.channel.session)
    _refused(b, encode(named), TamperedError, cores)
    _finish(a, b, cores)


def _replaced(points: bytes, at: int, by: bytes) -> bytes:
    return points[: 32 * at] + by + points[32 * (at + 1) :]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda points: _replaced(points, 7, bytes(32)), PointError),
        (lambda points: _replaced(points, 7, b"\xff" * 32), PointError),
        (lambda points: _replaced(points, 7, (2**255 - 19).to_bytes(32, "little")), PointError),
        (lambda points: _replaced(points, 7, (1).to_bytes(32, "little")), PointError),
        # Even and below 2^255 - 19, but no point.
        (
            lambda points: _replaced(points, 7, bytes.fromhex("26948d35ca62e643e26a83177332e6b6"
                                                              "afeb9d08e4268b650f1f5bbd8d81d371")),
            PointError,
        ),
        (lambda points: _replaced(points, 7, points[:32]), RepeatedElementError),
        (lambda points: points[:-32], BlockSizeError),
        (lambda points: points + GENERATOR, BlockSizeError),
        (lambda points: points[:-1], BlockSizeError),
        (lambda _points: b"", BlockSizeError),
    ],
)  # fmt: skip
def test_a_partner_who_sends_something_else(
    change: Callable[[bytes], bytes], kind: type[Exception], small_blocks: int, cores: Cores
) -> None:
    a, b = connect(ONE, TWO)
    block = a.next_block(cores)
    assert block
    sealed, points = _opened(b.channel, block)
    wrong = a.channel.seal(sealed.stream, sealed.number, change(points))
    _refused(b, encode(wrong), kind, cores)
    answer = b.receive(block, cores)
    assert answer
    if kind is not PointError or change(points)[224] != 0x26:
        # What comes back is only compared, so that it need not be a point.
        returned, doubled = _opened(a.channel, answer)
        wrong = b.channel.seal(returned.stream, returned.number, change(doubled))
        _refused(a, encode(wrong), kind, cores)
    a.receive(answer, cores)
    _finish(a, b, cores)


def test_the_same_element_in_two_blocks(small_blocks: int, cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    first, second = a.next_block(cores), a.next_block(cores)
    assert first
    assert second
    _, points = _opened(b.channel, first)
    sealed, others = _opened(b.channel, second)
    b.receive(first, cores)
    doubled = _replaced(others, 5, points[:32])
    b.receive(encode(a.channel.seal(sealed.stream, 1, doubled)), cores)
    while (block := a.next_block(cores)) is not None:
        b.receive(block, cores)
    while (block := b.next_block(cores)) is not None:
        answer = a.receive(block, cores)
        assert answer
        b.receive(answer, cores)
    with pytest.raises(RepeatedElementError):
        b.compare()


def test_an_end_before_the_end(small_blocks: int, cores: Cores) -> None:
    a, b = connect(ONE, TWO)
    for state in (a, b):
        with pytest.raises(TruncatedError):
            state.compare()
    block = a.next_block(cores)
    assert block
    answer = b.receive(block, cores)
    assert answer
    a.receive(answer, cores)
    with pytest.raises(TruncatedError, match="0 of 4 blocks, and 1 of 4 answers"):
        a.compare()
    _finish(a, b, cores)


def test_an_unknown_partner_and_oneself() -> None:
    for partner in ("D", "A", ""):
        with pytest.raises(UnknownPlatformError):
            side("A").offer(ONE, _permit(partner), SYSTEM)
    _, offer = _offered()
    with pytest.raises(UnknownPlatformError):
        side("B").accept(offer, ONE, _permit("C"), SYSTEM)
    few = Roster(
        federation="north",
        version=2,
        members=tuple(m for m in ROSTER.members if m.platform != "A"),
        signer=ROSTER.signer,
        allow_two=True,
    )
    with pytest.raises(UnknownPlatformError):
        Side(roster=few, platform="B", key=KEYS["B"]).accept(offer, ONE, _permit("A"), SYSTEM)


def test_an_offer_by_somebody_else_or_for_somebody_else() -> None:
    _, frame = _offered()
    offer = decode_as(Offer, frame)
    stranger = IdentityKey.generate(SYSTEM)
    forged, _ = Side(roster=ROSTER, platform="A", key=stranger), None
    _, unsigned = forged.offer(ONE, _permit("B"), SYSTEM)
    for wrong in (
        unsigned,
        encode(replace(offer, ephemeral=bytes(31) + b"\x09")),
        encode(replace(offer, federation=bytes(32))),
        encode(replace(offer, responder="C")),
        encode(replace(offer, signature=bytes(64))),
    ):
        with pytest.raises(HandshakeError):
            side("B").accept(wrong, ONE, _permit("A"), SYSTEM)
    with pytest.raises(UnknownPlatformError):
        side("B").accept(encode(replace(offer, purpose=Purpose.ITEMS)), ONE, _permit("A"), SYSTEM)
    with pytest.raises(HandshakeError):
        side("C").accept(frame, ONE, _permit("A"), SYSTEM)


def test_an_acceptance_by_somebody_else_or_of_another_offer() -> None:
    memory = Remembered()
    offered, offer = side("A").offer(ONE, _permit("B", memory), SYSTEM)
    _, other = _offered()
    stranger = replace(
        ROSTER, members=(ROSTER.members[0], Member("B", KEYS["C"].public), Member("C", KEYS["B"].public)),
        allow_two=False,
    )  # fmt: skip
    swapped = Side(roster=stranger, platform="B", key=KEYS["C"])
    _, in_its_name = swapped.accept(offer, ONE, _permit("A"), SYSTEM)
    _, of_another = side("B").accept(other, ONE, _permit("A"), SYSTEM)
    _, good = side("B").accept(offer, ONE, _permit("A"), SYSTEM)
    changed = replace(decode_as(Accept, good), ephemeral=bytes(31) + b"\x09")
    for wrong, words in (
        (in_its_name, "not signed by"),
        (of_another, "of another offer"),
        (encode(changed), "not signed by"),
    ):
        with pytest.raises(HandshakeError, match=words):
            offered.accepted(wrong)
    assert not memory.times
    offered.accepted(good)
    assert len(memory.times["B", Purpose.USERS]) == 1


@pytest.mark.parametrize("ephemeral", [bytes(32), b"\x01" + bytes(31)])
def test_an_ephemeral_key_of_small_order(ephemeral: bytes) -> None:
    _, frame = _offered()
    offer = decode_as(Offer, frame)
    from crossrec_model.linkage import channel

    said = channel._offered(offer.federation, "A", "B", Purpose.USERS, ephemeral)
    signature = KEYS["A"].sign("linkage offer", said)
    wrong = encode(replace(offer, ephemeral=ephemeral, signature=signature))
    with pytest.raises(HandshakeError, match="small order"):
        side("B").accept(wrong, ONE, _permit("A"), SYSTEM)


def test_an_old_offer_sent_again_uses_nothing_up_and_shows_no_size() -> None:
    _, offer = _offered()
    memory = Remembered()
    for _ in range(10):
        state, accept = side("B").accept(offer, ONE, _permit("A", memory), SYSTEM)
        assert len(accept) < 200
        with pytest.raises((TamperedError, OtherSessionError)):
            state.announced(encode(Sealed(
                session=state.channel.session, stream=Stream.ANNOUNCE, number=0, ciphertext=bytes(27)
            )))  # fmt: skip
    assert not memory.times


def test_a_partner_with_a_small_set() -> None:
    careful = Policy(least=300, most=9, least_new=0)
    many = digests(range(400))
    memory = Remembered()
    permit = careful.permit(memory, "A", Purpose.USERS, many, NOW)
    offered, offer = side("A").offer(ONE, _permit("B"), SYSTEM)
    accepted, accept = side("B").accept(offer, many, permit, SYSTEM)
    _, announcement = offered.accepted(accept)
    with pytest.raises(SmallSetError, match="256"):
        accepted.announced(announcement)
    assert not memory.times


def test_secrets_show_in_no_representation(cores: Cores) -> None:
    offered, offer = _offered()
    accepted, accept = side("B").accept(offer, ONE, _permit("A"), SYSTEM)
    opening, _ = offered.accepted(accept)
    for state in (offered, accepted, opening, opening.channel):
        text = repr(state)
        for secret in (offered.seed, accepted.seed, opening.channel.root, offered.secret.secret):
            assert repr(secret)[2:-1] not in text


def test_every_session_has_its_own_scalar_keys_and_link_ids(cores: Cores) -> None:
    seen: list[tuple[bytes, bytes, np.ndarray]] = []
    for _ in range(2):
        a, b = connect(ONE, TWO)
        block = a.next_block(cores)
        assert block
        points = b.channel.open(decode_as(Sealed, block))
        answer = b.receive(block, cores)
        assert answer
        a.receive(answer, cores)
        exchange(a, b, cores)
        seen.append((points, a.channel.root, a.compare().links))
    (points, root, links), (others, other_root, other_links) = seen
    assert root != other_root
    split = [{p[k : k + 32] for k in range(0, len(p), 32)} for p in (points, others)]
    assert split[0].isdisjoint(split[1])
    assert {bytes(x) for x in links}.isdisjoint({bytes(x) for x in other_links})
