"""The frames of a linkage: version (2 bytes) · type (1) · fields; strict in every length.

An offer and its acceptance are signed and in clear. All else is sealed for the partner: the courier sees
the session's id, a stream, a number and how long the ciphertext is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

from crossrec_model.errors import WireError
from crossrec_model.wire.codec import Blob, Choice, Field, Fixed, Reader, Text, Unsigned
from crossrec_model.wire.messages import PLATFORM_ID

PROTOCOL: Final = "crossrec/linkage"
VERSION: Final = 1
#: Points in a block, but for the last one of a set.
BLOCK: Final = 4096
POINT_BYTES: Final = 32
TAG_BYTES: Final = 16
#: Longest ciphertext: a whole block and its tag.
MAX_SEALED: Final = BLOCK * POINT_BYTES + TAG_BYTES
#: Longest frame of all.
MAX_FRAME: Final = MAX_SEALED + 64
#: Most elements of a set, padding included.
MAX_ELEMENTS: Final = 1 << 24
#: Most bytes of a batch of profiles.
MAX_BATCH: Final = 1 << 30


class Purpose(IntEnum):
    """What the elements of an intersection are, or that profiles are carried (`linkage.carried`)."""

    USERS = 1
    ITEMS = 2
    PROFILES = 3


class Stream(IntEnum):
    """What a sealed frame carries; each stream counts its frames from 0."""

    ANNOUNCE = 1
    BLINDED = 2
    RETURNED = 3
    PROFILES = 4
    RECEIPT = 5


@dataclass(frozen=True, kw_only=True)
class Offer:
    """`initiator` asks `responder` for a linkage with this ephemeral X25519 key, signed."""

    federation: bytes
    initiator: str
    responder: str
    purpose: Purpose
    ephemeral: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Accept:
    """The responder's ephemeral X25519 key; its signature covers the offer, whose digest `offer` is."""

    offer: bytes
    ephemeral: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """Frame `number` of a stream, encrypted for the partner."""

    session: bytes
    stream: Stream
    number: int
    ciphertext: bytes


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """Travels sealed: how many elements will come, padding included, in blocks of `block`."""

    size: int
    block: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_ELEMENTS:
            raise WireError(f"size is {self.size}; allowed: 1 to {MAX_ELEMENTS}")
        if self.block != BLOCK:
            raise WireError(f"block is {self.block}; {BLOCK} is needed")


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """Travels sealed: how many bytes of profiles will come."""

    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_BATCH:
            raise WireError(f"a batch has {self.size} bytes; allowed: 1 to {MAX_BATCH}")


Message = Offer | Accept | Sealed | Announcement | BatchSize
M = TypeVar("M", bound=Message)

_ID = Text(64, "platform id", PLATFORM_ID)
_LAYOUTS: Final[dict[type[Any], tuple[int, tuple[tuple[str, Field[Any]], ...]]]] = {
    Offer: (
        1,
        (
            ("federation", Fixed(32, "federation")),
            ("initiator", _ID),
            ("responder", _ID),
            ("purpose", Choice(Purpose, "purpose")),
            ("ephemeral", Fixed(32, "ephemeral key")),
            ("signature", Fixed(64, "signature")),
        ),
    ),
    Accept: (
        2,
        (
            ("offer", Fixed(32, "offer's digest")),
            ("ephemeral", Fixed(32, "ephemeral key")),
            ("signature", Fixed(64, "signature")),
        ),
    ),
    Sealed: (
        3,
        (
            ("session", Fixed(16, "session")),
            ("stream", Choice(Stream, "stream")),
            ("number", Unsigned(4, "block number")),
            ("ciphertext", Blob(MAX_SEALED, "ciphertext")),
        ),
    ),
    Announcement: (4, (("size", Unsigned(4, "size")), ("block", Unsigned(4, "block")))),
    BatchSize: (5, (("size", Unsigned(4, "size")),)),
}
_TYPES: Final = {number: (kind, fields) for kind, (number, fields) in _LAYOUTS.items()}


def encode(message: Message) -> bytes:
    """Return the frame of a message; raises WireError for a value outside its field's bounds."""
    number, fields = _LAYOUTS[type(message)]
    head = VERSION.to_bytes(2, "little") + bytes((number,))
    return head + b"".join(field.write(getattr(message, name)) for name, field in fields)


def decode(data: bytes | memoryview) -> Message:
    """Return the message in a frame.

    Raises:
        WireError: for anything but exactly one whole, valid frame of this version.
    """
    reader = Reader(data)
    if (version := reader.unsigned(2, "version")) != VERSION:
        raise WireError(
            f"linkage version is {version}, this side speaks {VERSION}; "
            "install the same crossrec on both sides"
        )
    number = reader.unsigned(1, "linkage frame's type")
    if number not in _TYPES:
        raise WireError(f"linkage frame's type {number} is not known")
    kind, fields = _TYPES[number]
    values = {name: field.read(reader) for name, field in fields}
    reader.end()
    message: Message = kind(**values)
    return message


def decode_as(kind: type[M], data: bytes | memoryview) -> M:
    """Return the message in a frame that must be of one kind; raises WireError otherwise."""
    message = decode(data)
    if not isinstance(message, kind):
        raise WireError(f"{type(message).__name__} came where {kind.__name__} was due")
    return message
