"""Profiles carried from platform to platform: whole, sealed, once and in order, whatever a courier does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from sides import KEYS, OPEN, ROSTER, SYSTEM, Remembered, digests, side

from clients.connection import NotThereError
from clients.linked_store import ReceivedProfiles
from clients.linking.carrying import Carriage, Delivery, carry
from clients.linking.folder import LinkageFolder
from clients.linking.kept import Phase
from crossrec_model.errors import CrossrecError, DataError, StateError, WireError
from crossrec_model.linkage.carried import BLOCK_BYTES, Carrying, accept_profiles, offer_profiles
from crossrec_model.linkage.errors import (
    BlockNumberError,
    BlockSizeError,
    HandshakeError,
    LinkageError,
    MissingBlockError,
    OtherSessionError,
    ReceiptError,
    ReplayedBlockError,
    TamperedError,
    TruncatedError,
    UnknownPlatformError,
)
from crossrec_model.linkage.links import Links
from crossrec_model.linkage.messages import (
    MAX_BATCH,
    BatchSize,
    Purpose,
    Sealed,
    Stream,
    decode_as,
    encode,
)
from crossrec_model.linkage.profile import ProfileTerms
from crossrec_model.linkage.profile_batch import ProfileBatch
from server.linking import PostOffice, TooManyError


def _bytes(blocks: float, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(int(blocks * BLOCK_BYTES))


TO_B, TO_A = _bytes(3.5, 1), _bytes(1.25, 2)


def _open(one: bytes = TO_B, other: bytes = TO_A) -> tuple[Carrying, Carrying]:
    """Steps 1 and 2 of A and B."""
    offered, offer = offer_profiles(side("A"), "B", one, SYSTEM)
    accepted, accept = accept_profiles(side("B"), "A", offer, other, SYSTEM)
    opening, announcement = offered.accepted(accept)
    at_b, announced = accepted.announced(announcement)
    return opening.announced(announced), at_b


def _sent(state: Carrying) -> list[bytes]:
    frames = []
    while (following := state.next_block()) is not None:
        state, frame = following
        frames.append(frame)
    return frames


def _taken(state: Carrying, frames: list[bytes]) -> tuple[Carrying, bytes]:
    whole = b""
    for frame in frames:
        state, plain = state.receive(frame)
        whole += plain
    return state, whole


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, len(TO_B)])
def test_what_arrives_is_what_was_sent(size: int) -> None:
    batch = TO_B[:size]
    a, b = _open(batch)
    frames = _sent(a)
    # All blocks are equally long: the courier sees the size in steps of a block.
    assert len({len(frame) for frame in frames}) == 1
    assert batch[:64] not in b"".join(frames) or size < 8
    b, whole = _taken(b, frames)
    assert whole == batch
    a.confirmed(b.receipt(whole))


def test_a_flipped_byte_anywhere_is_refused() -> None:
    a, b = _open()
    frame = _sent(a)[0]
    for place in [*range(40), 5000, len(frame) - 1]:
        wrong = bytearray(frame)
        wrong[place] ^= 1
        with pytest.raises((LinkageError, WireError)):
            b.receive(bytes(wrong))
    assert b.receive(frame)[1] == TO_B[:BLOCK_BYTES]


def test_replayed_reordered_missing_and_further_blocks_are_refused() -> None:
    a, b = _open()
    frames = _sent(a)
    with pytest.raises(MissingBlockError):
        b.receive(frames[1])
    b, _ = b.receive(frames[0])
    with pytest.raises(ReplayedBlockError):
        b.receive(frames[0])
    further = a.channel.seal(Stream.PROFILES, a.blocks, bytes(BLOCK_BYTES))
    with pytest.raises(BlockNumberError):
        b.receive(encode(further))
    # A block that is numbered anew does not open.
    moved = replace(decode_as(Sealed, frames[2]), number=1)
    with pytest.raises(TamperedError):
        b.receive(encode(moved))
    with pytest.raises(TamperedError):  # an own block, turned round
        a.receive(frames[0])


def test_frames_of_another_session_or_stream_are_refused() -> None:
    a, b = _open()
    other, _ = _open()
    with pytest.raises(OtherSessionError):
        b.receive(_sent(other)[0])
    moved = replace(decode_as(Sealed, _sent(other)[0]), session=b.channel.session)
    with pytest.raises(TamperedError):
        b.receive(encode(moved))
    for stream in (Stream.ANNOUNCE, Stream.BLINDED, Stream.RETURNED, Stream.RECEIPT):
        with pytest.raises(MissingBlockError):
            b.receive(encode(a.channel.seal(stream, 0, bytes(BLOCK_BYTES))))


def test_a_block_of_another_length_or_filled_with_something_is_refused() -> None:
    a, b = _open(TO_B[:10])
    for plain in (b"", TO_B[:10], bytes(BLOCK_BYTES - 1), TO_B[:11].ljust(BLOCK_BYTES, b"\0")):
        with pytest.raises(BlockSizeError):
            b.receive(encode(a.channel.seal(Stream.PROFILES, 0, plain)))


def test_receipts_are_of_the_whole_batch_only() -> None:
    a, b = _open()
    with pytest.raises(TruncatedError):
        b.receipt(TO_B[:-1])
    with pytest.raises(ReceiptError):
        a.confirmed(encode(b.channel.seal(Stream.RECEIPT, 0, bytes(32))))
    with pytest.raises(MissingBlockError):
        a.confirmed(_sent(b)[0])


def test_an_offer_to_carry_is_none_to_link_and_the_other_way_round() -> None:
    _, carried = offer_profiles(side("A"), "B", TO_B, SYSTEM)
    rows = digests(range(30))
    permit = OPEN.permit(Remembered(), "A", Purpose.USERS, rows, 1)
    with pytest.raises(UnknownPlatformError):
        side("B").accept(carried, rows, permit, SYSTEM)
    to_b = OPEN.permit(Remembered(), "B", Purpose.USERS, rows, 1)
    _, linking = side("A").offer(rows, to_b, SYSTEM)
    with pytest.raises(HandshakeError):
        accept_profiles(side("B"), "A", linking, TO_A, SYSTEM)
    # With the purpose exchanged, its signature does not hold.
    place = linking.index(bytes((int(Purpose.USERS),)), linking.index(b"B") + 1)
    forged = linking[:place] + bytes((int(Purpose.PROFILES),)) + linking[place + 1 :]
    with pytest.raises(HandshakeError):
        accept_profiles(side("B"), "A", forged, TO_A, SYSTEM)


def test_others_on_the_roster_can_not_offer_or_answer_in_a_partners_name() -> None:
    _, of_c = offer_profiles(side("C"), "B", TO_B, SYSTEM)
    with pytest.raises(UnknownPlatformError):
        accept_profiles(side("B"), "A", of_c, TO_A, SYSTEM)
    offered, offer = offer_profiles(side("A"), "B", TO_B, SYSTEM)
    with pytest.raises(HandshakeError):
        accept_profiles(side("C"), "A", offer, TO_A, SYSTEM)
    mine = replace(side("B"), key=KEYS["C"])
    _, forged = accept_profiles(mine, "A", offer, TO_A, SYSTEM)
    with pytest.raises(HandshakeError):
        offered.accepted(forged)


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_sizes_are_bounded(size: int) -> None:
    with pytest.raises(WireError):
        BatchSize(size=size)


# Over a courier in memory.


@dataclass
class Wire:
    """Asks an office; loses what it is told to lose, ends the process where it is told to."""

    office: PostOffice
    platform: str
    lose: Callable[[int], bool] = lambda number: False
    kill: Callable[[int], bool] = lambda number: False
    count: int = 0
    seen: list[bytes] = field(default_factory=list)

    def __call__(self, request: bytes) -> bytes:
        self.count += 1
        self.seen.append(request)
        if self.kill(self.count):
            raise KilledError
        try:
            answer = self.office.answer(self.platform, request)
        except TooManyError:
            raise NotThereError("too many") from None
        if self.lose(self.count):
            raise NotThereError("lost")
        return answer


class KilledError(BaseException):
    """Stands for the end of a process."""


def _office() -> PostOffice:
    return PostOffice(lambda: ROSTER.platforms)


def _delivery(home: Path, name: str, batch: bytes, wire: Wire, got: dict[str, bytes]) -> Delivery:
    folder = LinkageFolder(home / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    return Delivery(
        side=side(name),
        partner="B" if name == "A" else "A",
        batch=batch,
        take=lambda data: got.update({name: data}),
        folder=folder,
        ask=wire,
        patience_s=30.0,
        report=lambda _text: None,
        settle_s=10.0,
    )


def _both(*work: Callable[[], object]) -> list[BaseException]:
    failed: list[BaseException] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return failed


def _carried(delivery: Delivery) -> None:
    while True:
        try:
            carry(delivery).settle()
        except KilledError:
            continue
        return


def test_both_batches_arrive_though_answers_are_lost_and_processes_end(tmp_path: Path) -> None:
    office, got = _office(), dict[str, bytes]()
    # A has more blocks than wait in a box.
    one, other = _bytes(11.5, 3), TO_A
    a = Wire(office, "A", lose=lambda n: n % 5 == 0, kill=lambda n: n % 13 == 0)
    b = Wire(office, "B", lose=lambda n: n % 7 == 0, kill=lambda n: n % 11 == 0)
    to_b = _delivery(tmp_path, "A", one, a, got)
    to_a = _delivery(tmp_path, "B", other, b, got)
    assert not _both(lambda: _carried(to_b), lambda: _carried(to_a))
    assert got == {"A": other, "B": one}
    for each in (to_b, to_a):
        assert not each.folder.session_path(each.partner, Purpose.PROFILES).exists()
    assert office.waiting == 0
    said = b"".join(a.seen + b.seen)
    assert not any(batch[:16] in said for batch in (one, other))


def test_an_interrupted_session_goes_on_with_the_same_batch_only(tmp_path: Path) -> None:
    got: dict[str, bytes] = {}
    wire = Wire(_office(), "A", kill=lambda n: n > 3)
    with pytest.raises(KilledError):
        carry(_delivery(tmp_path, "A", TO_B, wire, got))
    other = _delivery(tmp_path, "A", TO_B[:-1] + b"x", wire, got)
    with pytest.raises(StateError, match=r"have changed .* --restart"):
        carry(other)
    assert Carriage(_delivery(tmp_path, "A", TO_B, wire, got))._kept.phase is Phase.OFFERED


def test_a_revocation_ends_profiles_under_way(tmp_path: Path) -> None:
    got: dict[str, bytes] = {}
    wire = Wire(_office(), "A", kill=lambda n: n > 3)
    delivery = _delivery(tmp_path, "A", TO_B, wire, got)
    folder = delivery.folder
    pairs = {"ann": "1" * 32, "bea": "2" * 32}
    folder.write_links(Links(partner="B", purpose=Purpose.USERS, session=b"s" * 16, pairs=pairs))
    with pytest.raises(KilledError):
        carry(delivery)
    assert folder.session_path("B", Purpose.PROFILES).exists()
    folder.revoke(["ann"])
    assert not folder.session_path("B", Purpose.PROFILES).exists()


def _batch(sender: str, links: tuple[str, ...]) -> bytes:
    return ProfileBatch(
        sender=sender,
        period="2026-11",
        day=100.0,
        terms=ProfileTerms(dimension=2),
        cells=(3, 5, 8),
        basis=np.eye(3, 2, dtype=np.float32),
        links=links,
        vectors=np.ones((len(links), 2), dtype=np.float32),
    ).to_bytes()


def test_a_batch_that_is_anothers_or_no_batch_is_not_kept_and_other_links_are_dropped(
    tmp_path: Path,
) -> None:
    ours, others = "1" * 32, "2" * 32
    for batch in (_batch("C", (ours,)), _batch("B", (ours,))[:-1], b"nothing"):
        office = _office()
        home = tmp_path / str(len(batch))
        store = ReceivedProfiles(home / "A")

        def take(data: bytes, store: ReceivedProfiles = store) -> None:
            store.take(data, sender="B", links=[ours])

        mine = replace(_delivery(home, "A", TO_B, Wire(office, "A"), {}), take=take)
        theirs = replace(_delivery(home, "B", batch, Wire(office, "B"), {}), patience_s=1.0)
        failed = _both(lambda one=mine: carry(one), lambda one=theirs: carry(one))
        # Not confirmed: the sender hears nothing more.
        assert {type(error) for error in failed} == {DataError, LinkageError}
        assert all(isinstance(error, CrossrecError) for error in failed)
        assert not list(home.glob("A/linked/*/*"))
    kept = ReceivedProfiles(tmp_path)
    assert kept.take(_batch("B", (ours, others)), sender="B", links=[ours]).links == (ours,)
    assert kept.batches(100.0)["B"].links == (ours,)
