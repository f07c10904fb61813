"""What a platform and the courier say to each other about a linkage's frames.

For every pair of platforms and purpose the courier keeps one box a direction. Frames in it are numbered
from 0 on; one that was sent again is taken once, and asking for one says that all before it came.
So each is received exactly once, in order, though requests, answers and processes may be lost. A thread (16
bytes, chosen by the initiator) names one attempt; the frames themselves are opaque here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

from crossrec_model.errors import WireError
from crossrec_model.linkage.messages import MAX_FRAME, Purpose
from crossrec_model.wire.codec import Blob, Choice, Field, Fixed, Reader, Text, Unsigned
from crossrec_model.wire.messages import PLATFORM_ID

POST_VERSION: Final = 1
THREAD_BYTES: Final = 16
#: Stands for whatever thread the partner has begun.
ANY_THREAD: Final = bytes(THREAD_BYTES)
#: In the place of a number received: the courier has no box of this thread.
NO_BOX: Final = 2**32 - 1
#: Longest request or answer.
MAX_POST: Final = MAX_FRAME + 256


class Status(IntEnum):
    """How a request ended."""

    DONE = 1
    NOTHING = 2
    FULL = 3
    OTHER_THREAD = 4
    NO_THREAD = 5
    OUT_OF_ORDER = 6
    UNKNOWN_PARTNER = 7


@dataclass(frozen=True, kw_only=True)
class Push:
    """Frame `number` for the partner. One that `opens` begins a box, or begins it anew."""

    partner: str
    purpose: Purpose
    thread: bytes
    opens: bool
    number: int
    frame: bytes


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Ask for frame `number` of the partner; all before it were received."""

    partner: str
    purpose: Purpose
    thread: bytes
    number: int


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The answer to a push: the partner has received all own frames before `received`."""

    status: Status
    received: int


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """The answer to a pull: the frame, and what `Pushed` tells of the own box."""

    status: Status
    received: int
    thread: bytes
    frame: bytes


PostMessage = Push | Pull | Pushed | Pulled
P = TypeVar("P", bound=PostMessage)


class _Flag:
    """A truth value in one byte."""

    def write(self, value: bool) -> bytes:
        return bytes((int(value),))

    def read(self, reader: Reader) -> bool:
        number = reader.unsigned(1, "flag")
        if number > 1:
            raise WireError(f"flag is {number}; 0 or 1 is needed")
        return number == 1


_TO = (
    ("partner", Text(64, "platform id", PLATFORM_ID)),
    ("purpose", Choice(Purpose, "purpose")),
    ("thread", Fixed(THREAD_BYTES, "thread")),
)
_NUMBER = ("number", Unsigned(4, "frame number"))
_RECEIVED = ("received", Unsigned(4, "received"))
_FRAME = ("frame", Blob(MAX_FRAME, "frame"))
_STATUS = ("status", Choice(Status, "status"))
_LAYOUTS: Final[dict[type[Any], tuple[int, tuple[tuple[str, Field[Any]], ...]]]] = {
    Push: (1, (*_TO, ("opens", _Flag()), _NUMBER, _FRAME)),
    Pull: (2, (*_TO, _NUMBER)),
    Pushed: (3, (_STATUS, _RECEIVED)),
    Pulled: (4, (_STATUS, _RECEIVED, ("thread", Fixed(THREAD_BYTES, "thread")), _FRAME)),
}
_TYPES: Final = {number: (kind, fields) for kind, (number, fields) in _LAYOUTS.items()}


def encode_post(message: PostMessage) -> bytes:
    """Return the bytes of a message; raises WireError for a value outside its field's bounds."""
    number, fields = _LAYOUTS[type(message)]
    head = POST_VERSION.to_bytes(2, "little") + bytes((number,))
    return head + b"".join(field.write(getattr(message, name)) for name, field in fields)


def decode_post(data: bytes | memoryview) -> PostMessage:
    """Return the message that is the whole of `data`; raises WireError for anything else."""
    reader = Reader(data)
    if (version := reader.unsigned(2, "version")) != POST_VERSION:
        raise WireError(f"post version is {version}, this side speaks {POST_VERSION}")
    number = reader.unsigned(1, "post message's type")
    if number not in _TYPES:
        raise WireError(f"post message's type {number} is not known")
    kind, fields = _TYPES[number]
    values = {name: field.read(reader) for name, field in fields}
    reader.end()
    message: PostMessage = kind(**values)
    return message


def decode_post_as(kind: type[P], data: bytes | memoryview) -> P:
    """Return a message that must be of one kind; raises WireError otherwise."""
    message = decode_post(data)
    if isinstance(message, kind):
        return message
    raise WireError(f"{type(message).__name__} came where {kind.__name__} was due")
