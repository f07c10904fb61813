"""The frames of the secure sum: version (2 bytes) · type (1) · fields; strict in every length.

The steps are numbered as in docs/secagg.md. A frame travels inside a message of `wire.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, TypeVar

from crossrec_model.errors import WireError
from crossrec_model.secagg.derive import VERSION
from crossrec_model.wire.codec import Blob, Choice, Field, Fixed, Reader, Sequence, Text, Unsigned
from crossrec_model.wire.messages import PLATFORM_ID

#: Most slots that one key agreement may carry.
MAX_SLOTS: Final = 1024
SHARE_BYTES: Final = 33
#: Most platforms that one sum may have.
MAX_PLATFORMS: Final = 100
_TAG_BYTES: Final = 16


class Kind(IntEnum):
    """What a sum is for."""

    TRAIN = 1
    EVALUATE = 2


@dataclass(frozen=True, kw_only=True)
class Invite:
    """1. Coordinator: agree on keys for `slots` sums, under this roster and plan (digests)."""

    run: bytes
    epoch: bytes
    slots: int
    roster: bytes
    plan: bytes


@dataclass(frozen=True, kw_only=True)
class Keys:
    """1. Platform: its public keys, signed by its identity.

    `pairs` are `slots` X25519 public keys of 32 bytes, `commitments` the digests of as many seeds.
    """

    platform: str
    run: bytes
    epoch: bytes
    slots: int
    roster: bytes
    plan: bytes
    channel: bytes
    pairs: bytes
    commitments: bytes
    signature: bytes

    def pair(self, slot: int) -> bytes:
        """The public key of a slot, counted from 0."""
        return self.pairs[32 * slot : 32 * slot + 32]

    def commitment(self, slot: int) -> bytes:
        """The commitment to the self mask's seed of a slot, counted from 0."""
        return self.commitments[32 * slot : 32 * slot + 32]


@dataclass(frozen=True, kw_only=True)
class KeyList:
    """2. Coordinator: the frames `Keys` of all members, in order of platform id."""

    epoch: bytes
    keys: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """2. Platform: an encrypted bundle of shares for every other member, in order of their ids."""

    epoch: bytes
    transcript: bytes
    bundles: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """3. Coordinator: the bundles of every other member for this one, in order of their ids."""

    epoch: bytes
    bundles: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Ready:
    """3. Platform: it holds everybody's shares under this transcript."""

    epoch: bytes
    transcript: bytes


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """4. Coordinator: the sum that a request asks a contribution for."""

    epoch: bytes
    slot: int
    kind: Kind
    round: int
    bits: int
    levels: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Upload:
    """4. Platform: the head of a masked vector, `length` numbers of `bits` bits, that follows it."""

    epoch: bytes
    slot: int
    bits: int
    length: int

    @property
    def body_bytes(self) -> int:
        """Bytes of the vector after the head."""
        return self.length * self.bits // 8


@dataclass(frozen=True, kw_only=True)
class Unmask:
    """5. Coordinator: who uploaded and who did not."""

    epoch: bytes
    slot: int
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """5. Platform: its shares, 33 bytes each, in the order of the lists of `Unmask`.

    `seeds` of the survivors' self masks, `keys` of the dropped platforms' pair keys.
    """

    epoch: bytes
    slot: int
    seeds: bytes = field(repr=False)
    keys: bytes = field(repr=False)


Message = Invite | Keys | KeyList | Shares | Delivery | Ready | Ticket | Upload | Unmask | Reveal
M = TypeVar("M", bound=Message)

_RUN = ("run", Fixed(16, "run id"))
_EPOCH = ("epoch", Fixed(16, "epoch id"))
_ROUND = ("round", Unsigned(4, "round"))
_SLOT = ("slot", Unsigned(2, "slot"))
_SLOTS = ("slots", Unsigned(2, "slots", least=1))
_DIGESTS = (("roster", Fixed(32, "roster digest")), ("plan", Fixed(32, "plan digest")))
_TRANSCRIPT = ("transcript", Fixed(32, "transcript"))
_BITS = ("bits", Unsigned(1, "bits"))
_LENGTH = ("length", Unsigned(4, "length", least=1))
_PLATFORM: Final = Text(64, "platform id", PLATFORM_ID)
_PUBLICS = Blob(32 * MAX_SLOTS, "keys")
_BUNDLES = Sequence(Blob(2 * SHARE_BYTES * MAX_SLOTS + _TAG_BYTES, "bundle"), "bundles")
_REVEALED = Blob(SHARE_BYTES * MAX_PLATFORMS, "shares")
_KEY_FRAME = Blob(64 * MAX_SLOTS + 512, "keys of a member")

_LAYOUTS: Final[dict[type[Any], tuple[int, tuple[tuple[str, Field[Any]], ...]]]] = {
    Invite: (1, (_RUN, _EPOCH, _SLOTS, *_DIGESTS)),
    Keys: (
        2,
        (
            ("platform", _PLATFORM),
            *(_RUN, _EPOCH, _SLOTS, *_DIGESTS),
            ("channel", Fixed(32, "channel key")),
            ("pairs", _PUBLICS),
            ("commitments", _PUBLICS),
            ("signature", Fixed(64, "signature")),
        ),
    ),
    KeyList: (3, (_EPOCH, ("keys", Sequence(_KEY_FRAME, "members")))),
    Shares: (4, (_EPOCH, _TRANSCRIPT, ("bundles", _BUNDLES))),
    Delivery: (5, (_EPOCH, ("bundles", _BUNDLES))),
    Ready: (6, (_EPOCH, _TRANSCRIPT)),
    Ticket: (
        7,
        (
            *(_EPOCH, _SLOT, ("kind", Choice(Kind, "kind of sum")), _ROUND, _BITS),
            ("levels", Unsigned(4, "levels", least=1)),
            _LENGTH,
        ),
    ),
    Upload: (8, (_EPOCH, _SLOT, _BITS, _LENGTH)),
    Unmask: (
        9,
        (
            *(_EPOCH, _SLOT),
            ("survivors", Sequence(_PLATFORM, "survivors")),
            ("dropped", Sequence(_PLATFORM, "dropped platforms")),
        ),
    ),
    Reveal: (10, (_EPOCH, _SLOT, ("seeds", _REVEALED), ("keys", _REVEALED))),
}
_TYPES: Final = {number: (kind, fields) for kind, (number, fields) in _LAYOUTS.items()}


def encode(message: Message) -> bytes:
    """Return the frame of a message; raises WireError for a value outside its field's bounds."""
    number, fields = _LAYOUTS[type(message)]
    head = VERSION.to_bytes(2, "little") + bytes((number,))
    return head + b"".join(field.write(getattr(message, name)) for name, field in fields)


def decode(data: bytes | memoryview) -> Message:
    """Return the message that is the whole of `data`; raises WireError for anything else."""
    reader = Reader(data)
    message = _read(reader)
    reader.end()
    return message


def decode_as(kind: type[M], data: bytes | memoryview) -> M:
    """Return a message that must be of one kind; raises WireError otherwise."""
    message = decode(data)
    if isinstance(message, kind):
        return message
    raise WireError(f"{type(message).__name__} came where {kind.__name__} was due")


def decode_upload(data: bytes | memoryview) -> tuple[Upload, memoryview]:
    """Return the head of a masked vector and its numbers' bytes, a view without a copy.

    Raises:
        WireError: for another message, or a body that is not exactly as long as the head says.
    """
    reader = Reader(data)
    head = _read(reader)
    if not isinstance(head, Upload):
        raise WireError(f"{type(head).__name__} came where Upload was due")
    if head.bits not in {16, 24, 32}:
        raise WireError(f"bits are {head.bits}; 16, 24 or 32 are allowed")
    body = reader.take(head.body_bytes, "masked vector")
    reader.end()
    return head, body


def _read(reader: Reader) -> Message:
    if (version := reader.unsigned(2, "version")) != VERSION:
        raise WireError(
            f"secure aggregation version is {version}, this side speaks {VERSION}; "
            "install the same crossrec on both sides"
        )
    number = reader.unsigned(1, "message type")
    if number not in _TYPES:
        raise WireError(f"message type {number} is not known")
    kind, fields = _TYPES[number]
    message: Message = kind(**{name: field.read(reader) for name, field in fields})
    return message
