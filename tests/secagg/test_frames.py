"""Frames against a layout written down by hand, frozen bytes, and everything that a frame must not be."""

from __future__ import annotations

import json
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.errors import WireError
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.messages import MAX_PLATFORMS, MAX_SLOTS, SHARE_BYTES, Kind

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors" / "messages.json").read_text()
)
_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
_16, _32 = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
_SLOT, _SLOTS = st.integers(0, 2**16 - 1), st.integers(1, 2**16 - 1)
_4 = st.integers(1, 2**32 - 1)
_MANY = st.lists(st.binary(max_size=200), max_size=9).map(tuple)
_LIST = st.lists(_NAMES, max_size=9).map(tuple)
_DIGESTS = {"roster": _32, "plan": _32}
_SOME = st.binary(max_size=300)
MESSAGES: st.SearchStrategy[frames.Message] = st.one_of(
    st.builds(frames.Invite, run=_16, epoch=_16, slots=_SLOTS, **_DIGESTS),
    st.builds(
        frames.Keys,
        platform=_NAMES,
        run=_16,
        epoch=_16,
        slots=_SLOTS,
        **_DIGESTS,
        channel=_32,
        pairs=_SOME,
        commitments=_SOME,
        signature=st.binary(min_size=64, max_size=64),
    ),
    st.builds(frames.KeyList, epoch=_16, keys=_MANY),
    st.builds(frames.Shares, epoch=_16, transcript=_32, bundles=_MANY),
    st.builds(frames.Delivery, epoch=_16, bundles=_MANY),
    st.builds(frames.Ready, epoch=_16, transcript=_32),
    st.builds(
        frames.Ticket,
        epoch=_16,
        slot=_SLOT,
        kind=st.sampled_from(Kind),
        round=st.integers(0, 2**32 - 1),
        bits=st.integers(0, 255),
        levels=_4,
        length=_4,
    ),
    st.builds(frames.Upload, epoch=_16, slot=_SLOT, bits=st.integers(0, 255), length=_4),
    st.builds(frames.Unmask, epoch=_16, slot=_SLOT, survivors=_LIST, dropped=_LIST),
    st.builds(frames.Reveal, epoch=_16, slot=_SLOT, seeds=_SOME, keys=_SOME),
)


def _blob(raw: bytes) -> bytes:
    return struct.pack("<I", len(raw)) + raw


def _list(raws: tuple[bytes, ...]) -> bytes:
    return struct.pack("<B", len(raws)) + b"".join(map(_blob, raws))


def _names(names: tuple[str, ...]) -> bytes:
    return _list(tuple(name.encode() for name in names))


def by_hand(m: frames.Message) -> bytes:
    """The frame of a message: its fields in their order, little-endian, one after the other."""
    match m:
        case frames.Invite():
            head = struct.pack("<HB16s16sH", 1, 1, m.run, m.epoch, m.slots)
            return head + m.roster + m.plan
        case frames.Keys():
            head = struct.pack("<HB", 1, 2) + _blob(m.platform.encode())
            head += struct.pack("<16s16sH32s32s32s", *_agreement(m), m.channel)
            return head + _blob(m.pairs) + _blob(m.commitments) + m.signature
        case frames.KeyList():
            return struct.pack("<HB16s", 1, 3, m.epoch) + _list(m.keys)
        case frames.Shares():
            return struct.pack("<HB16s32s", 1, 4, m.epoch, m.transcript) + _list(m.bundles)
        case frames.Delivery():
            return struct.pack("<HB16s", 1, 5, m.epoch) + _list(m.bundles)
        case frames.Ready():
            return struct.pack("<HB16s32s", 1, 6, m.epoch, m.transcript)
        case frames.Ticket():
            numbers = (m.slot, int(m.kind), m.round, m.bits, m.levels, m.length)
            return struct.pack("<HB16sHBIBII", 1, 7, m.epoch, *numbers)
        case frames.Upload():
            return struct.pack("<HB16sHBI", 1, 8, m.epoch, m.slot, m.bits, m.length)
        case frames.Unmask():
            head = struct.pack("<HB16sH", 1, 9, m.epoch, m.slot)
            return head + _names(m.survivors) + _names(m.dropped)
        case frames.Reveal():
            head = struct.pack("<HB16sH", 1, 10, m.epoch, m.slot)
            return head + _blob(m.seeds) + _blob(m.keys)


def _agreement(m: frames.Keys) -> tuple[bytes, bytes, int, bytes, bytes]:
    return m.run, m.epoch, m.slots, m.roster, m.plan


@settings(deadline=None, max_examples=300)
@given(message=MESSAGES)
def test_a_frame_is_what_the_table_says_and_comes_back(message: frames.Message) -> None:
    raw = by_hand(message)
    assert frames.encode(message) == raw
    assert frames.decode(raw) == message
    assert frames.decode(memoryview(raw)) == message
    assert frames.decode_as(type(message), raw) == message


@settings(deadline=None, max_examples=200)
@given(message=MESSAGES, rest=st.binary(min_size=1, max_size=9))
def test_no_part_of_a_frame_is_a_frame_and_nothing_may_follow(
    message: frames.Message, rest: bytes
) -> None:
    raw = frames.encode(message)
    for end in range(len(raw)):
        with pytest.raises(WireError):
            frames.decode(raw[:end])
    with pytest.raises(WireError, match=f"{len(rest)} bytes left over"):
        frames.decode(raw + rest)


@settings(deadline=None, max_examples=500)
@given(message=MESSAGES, data=st.data())
def test_changed_bytes_are_refused_or_have_one_meaning(
    message: frames.Message, data: st.DataObject
) -> None:
    """No two frames mean the same, so that digests of frames are digests of what they mean."""
    raw = bytearray(frames.encode(message))
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = frames.decode(bytes(raw))
    except WireError:
        return
    assert frames.encode(found) == bytes(raw)


@settings(deadline=None, max_examples=500)
@given(raw=st.binary(max_size=400), number=st.integers(1, 10))
def test_noise_is_refused_or_has_one_meaning(raw: bytes, number: int) -> None:
    for frame in (raw, bytes((1, 0, number)) + raw):
        try:
            found = frames.decode(frame)
        except WireError:
            continue
        assert frames.encode(found) == frame


_E, _D = bytes(16), bytes(32)
_KEYS = frames.Keys(
    platform="A",
    run=_E,
    epoch=_E,
    slots=1,
    roster=_D,
    plan=_D,
    channel=_D,
    pairs=_D,
    commitments=_D,
    signature=bytes(64),
)
_TICKET = frames.Ticket(epoch=_E, slot=0, kind=Kind.TRAIN, round=0, bits=16, levels=1, length=1)
_INVITE = frames.Invite(run=_E, epoch=_E, slots=1, roster=_D, plan=_D)
_SHARES = frames.Shares(epoch=_E, transcript=_D, bundles=())
_UNMASK = frames.Unmask(epoch=_E, slot=0, survivors=(), dropped=())
_REVEAL = frames.Reveal(epoch=_E, slot=0, seeds=b"", keys=b"")
_LIST_OF_KEYS = frames.KeyList(epoch=_E, keys=())
_KEY_FRAME = 64 * MAX_SLOTS + 512
_BUNDLE = 2 * SHARE_BYTES * MAX_SLOTS + 16


@pytest.mark.parametrize(("message", "name", "most", "beyond"), [
    (_INVITE, "slots", 65535, 65536),
    (_KEYS, "platform", "A" * 64, "A" * 65),
    (_KEYS, "pairs", bytes(32 * MAX_SLOTS), bytes(32 * MAX_SLOTS + 1)),
    (_KEYS, "commitments", bytes(32 * MAX_SLOTS), bytes(32 * MAX_SLOTS + 1)),
    (_LIST_OF_KEYS, "keys", (bytes(_KEY_FRAME),), (bytes(_KEY_FRAME + 1),)),
    (_LIST_OF_KEYS, "keys", (b"",) * 255, (b"",) * 256),
    (_SHARES, "bundles", (bytes(_BUNDLE),), (bytes(_BUNDLE + 1),)),
    (_SHARES, "bundles", (b"",) * 255, (b"",) * 256),
    (_TICKET, "slot", 65535, 65536),
    (_TICKET, "round", 2**32 - 1, 2**32),
    (_TICKET, "bits", 255, 256),
    (_TICKET, "levels", 2**32 - 1, 2**32),
    (_TICKET, "length", 2**32 - 1, 2**32),
    (_UNMASK, "survivors", ("A",) * 255, ("A",) * 256),
    (_REVEAL, "seeds", bytes(33 * MAX_PLATFORMS), bytes(33 * MAX_PLATFORMS + 1)),
    (_REVEAL, "keys", bytes(33 * MAX_PLATFORMS), bytes(33 * MAX_PLATFORMS + 1)),
])  # fmt: skip
def test_every_bound_is_reached_and_not_passed(
    message: Any, name: str, most: Any, beyond: Any
) -> None:
    largest = replace(message, **{name: most})
    assert frames.decode(frames.encode(largest)) == largest
    too_much = replace(message, **{name: beyond})
    with pytest.raises(WireError, match=r"allowed|must match"):
        frames.encode(too_much)
    # The same from a peer that doesn't keep to it, where there are bytes for it at all.
    if isinstance(beyond, str | bytes) or len(beyond if isinstance(beyond, tuple) else "") == 1:
        with pytest.raises(WireError, match="at most"):
            frames.decode(by_hand(too_much))


@pytest.mark.parametrize(("message", "wrong"), [
    (_INVITE, {"slots": 0}),
    (_INVITE, {"run": bytes(15)}),
    (_INVITE, {"epoch": bytes(17)}),
    (_INVITE, {"roster": b""}),
    (_KEYS, {"channel": bytes(31)}),
    (_KEYS, {"signature": bytes(63)}),
    (_KEYS, {"platform": ""}),
    (_KEYS, {"platform": "-A"}),
    (_KEYS, {"platform": "A\n"}),
    (_KEYS, {"platform": "Ä"}),
    (_SHARES, {"transcript": bytes(33)}),
    (_TICKET, {"levels": 0}),
    (_TICKET, {"length": 0}),
    (_TICKET, {"slot": -1}),
    (_TICKET, {"kind": 3}),
    (_UNMASK, {"dropped": ("A", "a b")}),
])  # fmt: skip
def test_no_wrong_value_becomes_a_frame(message: Any, wrong: dict[str, Any]) -> None:
    if wrong == {"kind": 3}:
        # The writer of an enumeration can't be given another number but by force.
        with pytest.raises(WireError, match="kind of sum 3 is not known"):
            frames.decode(by_hand(replace(_TICKET, kind=3)))  # type: ignore[arg-type]
        return
    with pytest.raises(WireError):
        frames.encode(replace(message, **wrong))


@given(left=MESSAGES, right=MESSAGES)
@settings(deadline=None, max_examples=50)
def test_another_message_than_was_due(left: frames.Message, right: frames.Message) -> None:
    if type(left) is type(right):
        return
    expected = f"{type(left).__name__} came where {type(right).__name__} was due"
    with pytest.raises(WireError, match=expected):
        frames.decode_as(type(right), frames.encode(left))
    if not isinstance(left, frames.Upload):
        with pytest.raises(WireError, match="came where Upload was due"):
            frames.decode_upload(frames.encode(left))


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_a_body_is_as_long_as_its_head_says(bits: int) -> None:
    head = frames.Upload(epoch=_E, slot=3, bits=bits, length=5)
    body = bytes(range(5 * bits // 8))
    assert head.body_bytes == len(body)
    frame = frames.encode(head) + body
    found, view = frames.decode_upload(frame)
    assert (found, bytes(view)) == (head, body)
    assert view.obj is frame
    for wrong in (body[:-1], body + b"\0", b"", body[: bits // 8], body * 2):
        with pytest.raises(WireError, match=r"left over|ends inside masked vector"):
            frames.decode_upload(frames.encode(head) + wrong)


@pytest.mark.parametrize("bits", [0, 8, 15, 17, 40, 64, 255])
def test_a_body_of_other_bits(bits: int) -> None:
    head = frames.Upload(epoch=_E, slot=3, bits=bits, length=8)
    with pytest.raises(WireError, match=f"bits are {bits}; 16, 24 or 32 are allowed"):
        frames.decode_upload(frames.encode(head) + bytes(bits))


def test_a_huge_length_takes_no_memory() -> None:
    head = frames.Upload(epoch=_E, slot=0, bits=32, length=2**32 - 1)
    with pytest.raises(WireError, match="17179869180 bytes needed, 4 left"):
        frames.decode_upload(frames.encode(head) + bytes(4))


def _value(kind: str, raw: Any) -> Any:
    match kind:
        case "bytes":
            return bytes.fromhex(raw)
        case "tuple[bytes, ...]":
            return tuple(map(bytes.fromhex, raw))
        case "tuple[str, ...]":
            return tuple(raw)
        case "Kind":
            return Kind[raw]
        case _:
            return raw


@pytest.mark.parametrize("vector", VECTORS["positive"], ids=lambda v: v["type"])
def test_frozen_frames(vector: dict[str, Any]) -> None:
    kind = getattr(frames, vector["type"])
    message = kind(**{f.name: _value(str(f.type), vector["fields"][f.name]) for f in fields(kind)})
    assert frames.encode(message).hex() == by_hand(message).hex() == vector["frame"]
    assert frames.decode(bytes.fromhex(vector["frame"])) == message


@pytest.mark.parametrize("vector", VECTORS["negative"], ids=lambda v: v["why"])
def test_frozen_refusals(vector: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        frames.decode(bytes.fromhex(vector["frame"]))
    assert str(caught.value) == vector["error"]


def test_every_message_is_frozen() -> None:
    kinds = {vector["type"] for vector in VECTORS["positive"]}
    assert len(kinds) == len(VECTORS["positive"]) == 10
    numbers = {bytes.fromhex(vector["frame"])[2] for vector in VECTORS["positive"]}
    assert numbers == set(range(1, 11))
    assert len(VECTORS["negative"]) >= 23
