"""Frames on the wire, their pieces, and the transport's records around them."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from targets import OF_BYTES, OF_TEXT, Check, Cost, Target, same

from crossrec_model.config import Plan
from crossrec_model.errors import WireError
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.masking import pack, unpack
from crossrec_model.wire import messages as wire
from crossrec_model.wire.pieces import assemble

RUN: Final = bytes(range(16))
_LONG: Final = (2**32 - 1).to_bytes(4, "little")


def _vector(*numbers: float) -> Any:
    return np.array(numbers, dtype=np.float32)


def messages() -> list[wire.Message]:
    """One message of each type."""
    return [
        wire.Hello(session=RUN),
        wire.HelloReply(platform="A", protocol_version=2, software_version="0.1.0"),
        wire.Welcome(plan=Plan().to_json()),
        wire.WelcomeReply(dimension=3, training_metrics=("loss",), evaluation_metrics=("ndcg@10",)),
        wire.Refuse(reason="platform id A is taken – choose another"),
        wire.Ack(),
        wire.TrainRequest(
            run=RUN, round=2, rounds=5, ticket=b"slot 7", parameters=_vector(1, -2, 3.5)
        ),
        wire.EvaluateRequest(run=RUN, round=2, ticket=b"", parameters=_vector()),
        wire.SumReply(run=RUN, round=2, body=(b"head", b"\x00\xff")),
        wire.Secure(frame=b"\x01\x00frame"),
        wire.Finish(run=RUN, round=5, parameters=_vector(9)),
        wire.Failure(code=wire.FailureCode.INTERNAL),
    ]


def _message_bombs() -> list[bytes]:
    head = wire.encode(wire.Ack())[:7]
    last_fields = (
        wire.Finish(run=RUN, round=1, parameters=_vector()),
        wire.SumReply(run=RUN, round=1, body=()),
        wire.Secure(frame=b""),
        wire.Welcome(plan=b""),
    )
    return [head + _LONG, *(wire.encode(message)[:-4] + _LONG for message in last_fields)]


def _message(data: bytes) -> None:
    same(wire.encode(wire.decode(data)), data, "frame")


def secure_frames() -> list[bytes]:
    """One frame of the secure sum of each type."""
    epoch, digest = RUN, bytes(32)
    keys = frames.Keys(
        platform="A",
        run=RUN,
        epoch=epoch,
        slots=2,
        roster=digest,
        plan=digest,
        channel=digest,
        pairs=bytes(64),
        commitments=bytes(64),
        signature=bytes(64),
    )
    made: list[frames.Message] = [
        frames.Invite(run=RUN, epoch=epoch, slots=2, roster=digest, plan=digest),
        keys,
        frames.KeyList(epoch=epoch, keys=(frames.encode(keys),) * 2),
        frames.Shares(epoch=epoch, transcript=digest, bundles=(bytes(148),) * 2),
        frames.Delivery(epoch=epoch, bundles=(bytes(148), b"")),
        frames.Ready(epoch=epoch, transcript=digest),
        frames.Ticket(
            epoch=epoch, slot=1, kind=frames.Kind.TRAIN, round=3, bits=24, levels=99, length=7
        ),
        frames.Upload(epoch=epoch, slot=1, bits=24, length=7),
        frames.Unmask(epoch=epoch, slot=1, survivors=("A", "B", "C"), dropped=("D",)),
        frames.Reveal(epoch=epoch, slot=1, seeds=bytes(99), keys=bytes(33)),
    ]
    return [frames.encode(message) for message in made]


def _secure_frame(data: bytes) -> None:
    same(frames.encode(frames.decode(data)), data, "frame")


def _uploads() -> list[bytes]:
    heads = (
        frames.Upload(epoch=RUN, slot=1, bits=bits, length=length)
        for bits, length in ((16, 5), (24, 4), (32, 3), (32, 1))
    )
    return [frames.encode(head) + bytes(range(head.body_bytes)) for head in heads]


def _upload(data: bytes) -> None:
    head, body = frames.decode_upload(data)
    numbers, again = unpack(body, head.bits), bytearray(head.body_bytes)
    same(len(numbers), head.length, "length")
    pack(numbers, head.bits, memoryview(again))
    same(frames.encode(head) + bytes(again), data, "upload")


def split(data: bytes) -> list[bytes]:
    """Cut bytes into parts, each after its length in two bytes; the last may be shorter."""
    parts, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "little")
        parts.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return parts


def join(parts: Iterable[bytes]) -> bytes:
    """Undo `split`, for parts shorter than 64 KiB."""
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def in_part(data: bytes, rng: random.Random) -> bytes:
    """Change one part of several, and keep the lengths of all right."""
    parts = split(data)
    if not parts:
        return data
    at = rng.randrange(len(parts))
    parts[at] = rng.choice(OF_BYTES + OF_TEXT)(parts[at], rng)[:65_535]
    return join(parts)


def _pieced(size: int, order: bytes, *pieces: bytes) -> bytes:
    return join([size.to_bytes(8, "little"), order, *pieces])


def _assembled(data: bytes) -> None:
    """Parts: the size announced, a byte for each place that names its piece, the pieces."""
    first, order, *pieces = [*split(data), b"", b""][:300]
    names = [str(number) for number in order]
    whole = assemble(int.from_bytes(first[:8], "little"), names, iter(pieces))
    by_name = dict(zip(dict.fromkeys(names), pieces, strict=False))
    same(b"".join(by_name[name] for name in names), bytes(whole), "frame")


def _objects(records: ModuleType) -> list[tuple[str, bytes]]:
    """The transport's objects of a message, the message itself first: ids and contents."""
    inflatable = importlib.import_module("flwr.supercore.inflatable.inflatable_object")
    content = records.to_record((b"abc" * 40, b"defg"))
    flwr = importlib.import_module("flwr.app")
    metadata = flwr.Metadata(
        run_id=1,
        message_id="",
        src_node_id=2,
        dst_node_id=3,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=60.0,
        message_type="query",
    )
    message = records.Message(content, metadata=metadata)
    found = inflatable.get_all_nested_objects(message)
    return [(name, one.deflate()) for name, one in reversed(found.items())]


def _record_seeds(module: str) -> list[bytes]:
    objects = _objects(importlib.import_module(module))
    return [join(content for _, content in objects)]


def _record(module: str, _folder: Path) -> Check:
    records = importlib.import_module(module)
    objects = _objects(records)
    names = [name for name, _ in objects]
    pieces = {name for name, content in objects if content.startswith(b"ArrayChunk")}

    def check(data: bytes) -> None:
        contents = dict(zip(names, split(data), strict=False))
        heads = {name: one for name, one in contents.items() if name not in pieces}
        payload = records.to_payload(
            dict(heads), lambda wanted: (contents[name] for name in wanted if name in contents)
        )
        message = records.to_message(names[0], dict(heads), payload)
        read = records.from_record(message.content) if message.has_content() else None
        if payload is not None and read is not None:
            same(bytes(read), bytes(payload), "frame")

    return check


def _tree_seeds() -> list[bytes]:
    from flwr.proto.message_pb2 import ObjectTree

    def tree(depth: int, width: int) -> Any:
        below = [tree(depth - 1, width) for _ in range(width if depth else 0)]
        return ObjectTree(object_id="a" * 64, children=below)

    return [tree(depth, width).SerializeToString() for depth, width in ((4, 1), (2, 3), (60, 1))]


def _tree(module: str, _folder: Path) -> Check:
    from flwr.proto.message_pb2 import ObjectTree
    from google.protobuf.message import DecodeError

    records = importlib.import_module(module)

    def check(data: bytes) -> None:
        try:
            tree = ObjectTree.FromString(data)
        except DecodeError:
            # The transport's own parser comes before us.
            raise WireError("no tree of objects") from None
        paths = list(itertools.islice(records.paths_to(tree), 10_000))
        same(max(map(len, paths)) <= 4, True, "depth")

    return check


TARGETS: Final = (
    Target(
        name="wire.messages",
        seeds=lambda: [wire.encode(message) for message in messages()],
        check=lambda _: _message,
        bombs=_message_bombs,
    ),
    Target(
        name="wire.pieces",
        seeds=lambda: [
            _pieced(5, bytes((0, 1)), b"abc", b"de"),
            _pieced(9, bytes((7, 7, 7)), b"abc"),
            _pieced(0, b""),
        ],
        check=lambda _: _assembled,
        changes=(*OF_BYTES, *(in_part,) * len(OF_BYTES)),
        bombs=lambda: [
            _pieced(1 << 60, b"\0", b"abc"),
            _pieced(1 << 29, b"\0", b"abc"),
            _pieced(wire.MAX_BODY, bytes(200), b"a"),
        ],
    ),
    Target(
        name="secagg.frames",
        seeds=secure_frames,
        check=lambda _: _secure_frame,
        bombs=lambda: [frame[:-4] + _LONG for frame in secure_frames()],
    ),
    Target(name="secagg.upload", seeds=_uploads, check=lambda _: _upload),
    *(
        Target(
            name=f"{module}",
            seeds=partial(_record_seeds, module),
            check=partial(_record, module),
            changes=(*OF_BYTES, *(in_part,) * 2 * len(OF_BYTES)),
            cost=Cost.CHEAP,
        )
        for module in ("server.records", "clients.records")
    ),
    *(
        Target(name=f"{module}.tree", seeds=_tree_seeds, check=partial(_tree, module))
        for module in ("server.records", "clients.records")
    ),
)
