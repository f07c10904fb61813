"""Round trips, and refusal of everything that is not exactly one valid frame."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.errors import WireError
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import MAX_VECTOR_LENGTH, Body, Vector

RUN = bytes(range(16))


def _vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


ONE_OF_EACH: list[wire.Message] = [
    wire.Hello(session=RUN),
    wire.HelloReply(platform="A", protocol_version=2, software_version="0.1.0"),
    wire.Welcome(plan=b'{"seed":1}'),
    wire.WelcomeReply(dimension=3, training_metrics=("loss",), evaluation_metrics=("ndcg@10",)),
    wire.Refuse(reason="platform id A is taken – choose another"),
    wire.Ack(),
    wire.TrainRequest(run=RUN, round=2, rounds=5, ticket=b"slot 7", parameters=_vector(1, -2, 3.5)),
    wire.EvaluateRequest(run=RUN, round=2, ticket=b"", parameters=_vector()),
    wire.SumReply(run=RUN, round=2, body=(b"head", memoryview(b"\x00\xff"), b"")),
    wire.Secure(frame=b"\x01\x00frame"),
    wire.Finish(run=RUN, round=5, parameters=_vector(9)),
    wire.Failure(code=wire.FailureCode.INTERNAL),
]
each_message = pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: type(m).__name__)


def _fields(message: Any) -> dict[str, object]:
    plain = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    if isinstance(message, wire.SumReply):
        # Pieces may be cut differently on the way; their bytes may not differ.
        plain["body"] = b"".join(message.body)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in plain.items()}


def test_every_message_type_is_covered() -> None:
    assert {type(m) for m in ONE_OF_EACH} == set(wire._LAYOUTS)


@each_message
def test_round_trip(message: wire.Message) -> None:
    again = wire.decode(wire.encode(message))
    assert type(again) is type(message)
    assert _fields(again) == _fields(message)


@each_message
def test_every_truncation_is_refused(message: wire.Message) -> None:
    frame = wire.encode(message)
    for length in range(len(frame)):
        with pytest.raises(WireError):
            wire.decode(frame[:length])


@each_message
def test_trailing_bytes_are_refused(message: wire.Message) -> None:
    frame = wire.encode(message)
    with pytest.raises(WireError, match="left over"):
        wire.decode(frame + b"\0")
    # The same byte counted into the body is left over inside it.
    length = int.from_bytes(frame[7:11], "little") + 1
    with pytest.raises(WireError, match="left over"):
        wire.decode(frame[:7] + length.to_bytes(4, "little") + frame[11:] + b"\0")


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(data)


@settings(max_examples=300)
@given(
    index=st.integers(0, len(ONE_OF_EACH) - 1),
    position=st.integers(0, 10_000),
    value=st.integers(0, 255),
)
def test_one_changed_byte_is_refused_or_still_a_whole_message(
    index: int, position: int, value: int
) -> None:
    frame = bytearray(wire.encode(ONE_OF_EACH[index]))
    frame[position % len(frame)] = value
    try:
        message = wire.decode(bytes(frame))
    except WireError:
        return
    # Canonical: whatever is accepted encodes to the very bytes that were read.
    assert wire.encode(message) == bytes(frame)


@settings(max_examples=50)
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50),
    round_number=st.integers(1, 2**32 - 1),
    run=st.binary(min_size=16, max_size=16),
)
def test_vectors_keep_every_bit(numbers: list[float], round_number: int, run: bytes) -> None:
    sent = np.array(numbers, dtype=np.float32)
    message = wire.Finish(run=run, round=round_number, parameters=sent)
    again = wire.decode_as(wire.Finish, wire.encode(message))
    assert again.parameters.tobytes() == sent.tobytes()
    assert (again.run, again.round) == (run, round_number)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_both_ways(bad: float) -> None:
    message = wire.Finish(run=RUN, round=1, parameters=_vector(1, bad))
    with pytest.raises(WireError, match="1 numbers that are NaN or infinite"):
        wire.encode(message)
    frame = wire.encode(dataclasses.replace(message, parameters=_vector(1, 2)))
    smuggled = frame[:-4] + np.float32(bad).tobytes()
    with pytest.raises(WireError, match="NaN or infinite"):
        wire.decode(smuggled)


def test_another_version_is_named() -> None:
    frame = bytearray(wire.encode(wire.Ack()))
    frame[4] = 9
    with pytest.raises(WireError, match="protocol version is 9, this side speaks 2"):
        wire.decode(bytes(frame))


def test_oversize_lengths_are_refused_before_anything_is_read() -> None:
    head = wire.encode(wire.Ack())[:7]
    with pytest.raises(WireError, match="at most"):
        wire.decode(head + (2**32 - 1).to_bytes(4, "little"))
    # A message's last field states more than it may hold, of which not a byte follows.
    last_fields = (
        (wire.Finish(run=RUN, round=1, parameters=_vector()), MAX_VECTOR_LENGTH),
        (wire.SumReply(run=RUN, round=1, body=()), 4 * MAX_VECTOR_LENGTH + 512),
        (wire.Secure(frame=b""), wire.MAX_SECURE_BYTES),
    )
    for message, most in last_fields:
        frame = wire.encode(message)
        with pytest.raises(WireError, match=f"at most {most} are allowed"):
            wire.decode(frame[:-4] + (most + 1).to_bytes(4, "little"))
        with pytest.raises(WireError, match="message ends inside"):
            wire.decode(frame[:-4] + most.to_bytes(4, "little"))
    with pytest.raises(WireError, match="at most 2"):
        Vector("x", most=2).write(_vector(1, 2, 3))
    with pytest.raises(WireError, match="x has 3 bytes; at most 2"):
        Body("x", most=2).write((b"ab", b"c"))


def test_a_body_is_the_concatenation_of_its_pieces_and_is_never_copied() -> None:
    whole = bytes(range(200))
    cuts = ((), (0,), (1, 1, 7), (199,), (200,))
    frames = set()
    for cut in cuts:
        at = (0, *cut, len(whole))
        body = tuple(memoryview(whole)[a:b] for a, b in itertools.pairwise(at))
        message = wire.SumReply(run=RUN, round=3, body=body)
        pieces = wire.encode_pieces(message)
        assert b"".join(pieces) == wire.encode(message)
        # Its pieces are sent as they are …
        assert all(any(piece is sent for sent in pieces) for piece in body)
        frames.add(wire.encode(message))
    assert len(frames) == 1
    # … and what came is a view of the frame's own memory.
    frame = bytearray(frames.pop())
    (view,) = wire.decode_as(wire.SumReply, memoryview(frame)).body
    frame[-1] ^= 0xFF
    assert bytes(view) == whole[:-1] + bytes((whole[-1] ^ 0xFF,))
    assert isinstance(view, memoryview)
    assert view.readonly


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (wire.Hello, {"session": b"short"}),
        (wire.HelloReply, {"platform": "", "protocol_version": 1, "software_version": "1"}),
        (wire.HelloReply, {"platform": "a/b", "protocol_version": 1, "software_version": "1"}),
        (wire.HelloReply, {"platform": "A\n", "protocol_version": 1, "software_version": "1"}),
        (wire.HelloReply, {"platform": "A", "protocol_version": 70_000, "software_version": "1"}),
        (wire.Welcome, {"plan": b"x" * (wire.MAX_PLAN_BYTES + 1)}),
        (wire.Refuse, {"reason": "\x1b[2J"}),
        (wire.Finish, {"run": RUN, "round": 1, "parameters": np.zeros(3)}),
        (wire.Finish, {"run": RUN, "round": 1, "parameters": np.zeros((2, 2), np.float32)}),
        (wire.Finish, {"run": RUN, "round": -1, "parameters": _vector(1)}),
        (wire.SumReply, {"run": RUN, "round": -1, "body": (b"x",)}),
        (wire.SumReply, {"run": RUN[1:], "round": 1, "body": (b"x",)}),
        (wire.Secure, {"frame": b"x" * (wire.MAX_SECURE_BYTES + 1)}),
        (
            wire.EvaluateRequest,
            {
                "run": RUN,
                "round": 1,
                "ticket": b"x" * (wire.MAX_TICKET_BYTES + 1),
                "parameters": _vector(1),
            },
        ),
    ],
)
def test_values_outside_their_bounds_are_not_encoded(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        wire.encode(kind(**values))


def test_a_round_beyond_the_last_is_refused() -> None:
    with pytest.raises(WireError, match="round is 6; allowed: 1 to 5"):
        wire.TrainRequest(run=RUN, round=6, rounds=5, ticket=b"", parameters=_vector(1))


def test_a_message_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(WireError, match="Ack came where SumReply was due"):
        wire.decode_as(wire.SumReply, wire.encode(wire.Ack()))
    for code in wire.FailureCode:
        failure = wire.encode(wire.Failure(code=code))
        with pytest.raises(WireError, match=f"failed with code {code.name}$"):
            wire.decode_as(wire.SumReply, failure)
