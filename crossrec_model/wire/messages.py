"""The messages between coordinator and platforms, and how each becomes bytes.

A frame is: magic (4 bytes) · protocol version (2) · message type (1) · body length (4) · body.
The coordinator asks, a platform answers; both count rounds from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

from crossrec_model.errors import WireError
from crossrec_model.wire.codec import (
    MAX_VECTOR_LENGTH,
    Blob,
    Body,
    Choice,
    Field,
    Fixed,
    FloatVector,
    Pieces,
    Reader,
    Sequence,
    Text,
    Unsigned,
    Vector,
    size_of,
)

PROTOCOL_VERSION: Final = 2
MAGIC: Final = b"XREC"
MAX_BODY: Final = 4 * MAX_VECTOR_LENGTH + 1024
MAX_PLAN_BYTES: Final = 1 << 20
#: Longest frame of the secure sum but for masked vectors: a key list of 100 platforms.
MAX_SECURE_BYTES: Final = 8 << 20
MAX_TICKET_BYTES: Final = 64
PLATFORM_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class OtherVersionError(WireError):
    """The frame is of another protocol version."""


class FailureCode(IntEnum):
    """Why a platform could not answer. A code, never text: text could carry data."""

    MALFORMED = 1
    OTHER_VERSION = 2
    UNEXPECTED = 3
    PLAN_REFUSED = 4
    INTERNAL = 6
    LEFT_THE_SUM = 7
    BUDGET_SPENT = 8


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The coordinator asks a node who it is; `session` (16 bytes) names the coordinator's run."""

    session: bytes


@dataclass(frozen=True, kw_only=True)
class HelloReply:
    """A platform names itself."""

    platform: str
    protocol_version: int
    software_version: str


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The platform takes part; `plan` is `Plan.to_json()`."""

    plan: bytes


@dataclass(frozen=True, kw_only=True)
class WelcomeReply:
    """The platform accepts the plan.

    `dimension` is the length of its shared parameter vector; the two tuples name, in order, the
    metrics whose weighted sums end its UpdateReply and MetricsReply vectors.
    """

    dimension: int
    training_metrics: tuple[str, ...]
    evaluation_metrics: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """The platform may not take part, and why (shown to its operator)."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Ack:
    """Understood."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRequest:
    """Train from these shared parameters (float32 [d]) in round `round` of `rounds`.

    `ticket` names the sum that the answer is for.
    """

    run: bytes
    round: int
    rounds: int
    ticket: bytes
    parameters: FloatVector

    def __post_init__(self) -> None:
        if not 1 <= self.round <= self.rounds:
            raise WireError(f"round is {self.round}; allowed: 1 to {self.rounds}")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateRequest:
    """Evaluate these shared parameters (float32 [d]) on the validation users.

    `ticket` names the sum that the answer is for.
    """

    run: bytes
    round: int
    ticket: bytes
    parameters: FloatVector


@dataclass(frozen=True, kw_only=True, eq=False)
class SumReply:
    """One platform's part of a sum, as the aggregation wants it.

    `body` are pieces of bytes of which the concatenation counts; decoded, it is one view of the
    frame, without a copy.
    """

    run: bytes
    round: int
    body: Pieces


@dataclass(frozen=True, kw_only=True)
class Secure:
    """A frame of the secure sum, `secagg.messages`, in either direction."""

    frame: bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Finish:
    """The run is over after round `round`; these are the final shared parameters (float32 [d])."""

    run: bytes
    round: int
    parameters: FloatVector


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The platform could not answer."""

    code: FailureCode


Request = Hello | Welcome | Refuse | TrainRequest | EvaluateRequest | Finish | Secure
Reply = HelloReply | WelcomeReply | Ack | SumReply | Secure | Failure
Message = Request | Reply
M = TypeVar("M", bound=Message)

_RUN = ("run", Fixed(16, "run id"))
_ROUND = ("round", Unsigned(4, "round"))
_PARAMETERS = ("parameters", Vector("parameters"))
_TICKET = ("ticket", Blob(MAX_TICKET_BYTES, "ticket"))
_VERSION_TEXT = Text(32, "software version", r"[0-9A-Za-z.+!-]{1,32}")
_METRIC = Text(48, "metric name", r"[a-z0-9_@.]{1,48}")

_LAYOUTS: Final[dict[type[Any], tuple[int, tuple[tuple[str, Field[Any]], ...]]]] = {
    Hello: (1, (("session", Fixed(16, "session id")),)),
    HelloReply: (
        2,
        (
            ("platform", Text(64, "platform id", PLATFORM_ID)),
            ("protocol_version", Unsigned(2, "protocol version")),
            ("software_version", _VERSION_TEXT),
        ),
    ),
    Welcome: (3, (("plan", Blob(MAX_PLAN_BYTES, "plan")),)),
    WelcomeReply: (
        4,
        (
            ("dimension", Unsigned(4, "dimension", least=1)),
            ("training_metrics", Sequence(_METRIC, "training metrics")),
            ("evaluation_metrics", Sequence(_METRIC, "evaluation metrics")),
        ),
    ),
    # No control characters: the reason is printed on the platform's terminal.
    Refuse: (5, (("reason", Text(1024, "reason", r"[^\x00-\x1f\x7f-\x9f]{1,512}")),)),
    Ack: (6, ()),
    TrainRequest: (7, (_RUN, _ROUND, ("rounds", Unsigned(4, "rounds")), _TICKET, _PARAMETERS)),
    SumReply: (8, (_RUN, _ROUND, ("body", Body("body", most=4 * MAX_VECTOR_LENGTH + 512)))),
    EvaluateRequest: (9, (_RUN, _ROUND, _TICKET, _PARAMETERS)),
    Finish: (11, (_RUN, _ROUND, _PARAMETERS)),
    Failure: (12, (("code", Choice(FailureCode, "failure code")),)),
    Secure: (13, (("frame", Blob(MAX_SECURE_BYTES, "secure sum's frame")),)),
}
_TYPES: Final = {number: (kind, fields) for kind, (number, fields) in _LAYOUTS.items()}


def encode(message: Message) -> bytes:
    """Return the frame of a message; raises WireError for a value outside its field's bounds."""
    return b"".join(encode_pieces(message))


def encode_pieces(message: Message) -> Pieces:
    """Return the frame of a message as pieces that share a long vector's memory.

    Raises:
        WireError: for a value outside its field's bounds.
    """
    number, fields = _LAYOUTS[type(message)]
    body: list[bytes | memoryview] = []
    for name, field in fields:
        value = getattr(message, name)
        if isinstance(field, Vector | Body):
            body += field.pieces(value)
        else:
            body.append(field.write(value))
    head = MAGIC + PROTOCOL_VERSION.to_bytes(2, "little") + bytes((number,))
    return (head + size_of(body).to_bytes(4, "little"), *body)


def decode(data: bytes | memoryview) -> Message:
    """Return the message in a frame.

    Raises:
        WireError: for anything but exactly one whole, valid frame of this protocol version.
    """
    reader = Reader(data)
    if (magic := bytes(reader.take(4, "magic"))) != MAGIC:
        raise WireError(f"magic is {magic!r}; {MAGIC!r} is needed")
    if (version := reader.unsigned(2, "protocol version")) != PROTOCOL_VERSION:
        raise OtherVersionError(
            f"protocol version is {version}, this side speaks {PROTOCOL_VERSION}; "
            "install the same crossrec on both sides"
        )
    number = reader.unsigned(1, "message type")
    if number not in _TYPES:
        raise WireError(f"message type {number} is not known")
    length = reader.unsigned(4, "body length")
    if length > MAX_BODY:
        raise WireError(f"body has {length} bytes; at most {MAX_BODY} are allowed")
    body = Reader(reader.take(length, "body"))
    reader.end()
    kind, fields = _TYPES[number]
    values = {name: field.read(body) for name, field in fields}
    body.end()
    message: Message = kind(**values)
    return message


def decode_as(kind: type[M], data: bytes | memoryview) -> M:
    """Return the message in a frame that must be of one kind; raises WireError otherwise."""
    message = decode(data)
    if isinstance(message, kind):
        return message
    if isinstance(message, Failure):
        raise WireError(f"the platform failed with code {message.code.name}")
    raise WireError(f"{type(message).__name__} came where {kind.__name__} was due")
