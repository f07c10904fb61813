"""Long-term Ed25519 identities (RFC 8032), the card that shows one, and the strict JSON they travel in.

A signature never covers a bare message, but `derive.domain(purpose, message)`: bytes signed for one
purpose, or by another version of the protocol, mean nothing elsewhere.

A file is one line of canonical JSON: keys sorted, no spaces, ASCII. A reader makes its object and
accepts only the bytes that this object writes, so that one object has one digest everywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, final

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.derive import KEY_BYTES, domain
from crossrec_model.secagg.errors import IdentityError, RosterError, SignatureError
from crossrec_model.wire.messages import PLATFORM_ID

FORMAT: Final = 1
#: Of a card or a roster.
MAX_BYTES: Final = 1 << 20
#: A key file has about 120 bytes; more is something else.
MAX_PEM_BYTES: Final = 4096
#: What a card's signature is for.
CARD: Final = "platform card"
_FIELD: Final = 2**255 - 19
#: y of a point whose order is 8 (RFC 8032, 5.1): d·y⁴ + 2·y² = 1.
_ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER: Final = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")
_CARD: Final = {"format": int, "platform": str, "public": str, "signature": str}


@final
@dataclass(frozen=True)
class PublicIdentity:
    """A public key: 32 bytes that name a platform, or the signer of a roster.

    Refused are encodings that are not the only one of their point, and the points of small order: under
    such a key anybody could make signatures that hold. That the bytes are a point of the curve at all
    shows at the first signature.

    Raises:
        IdentityError: for bytes that are no such key.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != KEY_BYTES:
            length = len(self.raw) if isinstance(self.raw, bytes | bytearray) else "no"
            raise IdentityError(f"a public key has {length} bytes; {KEY_BYTES} are needed")
        y = int.from_bytes(self.raw, "little") & (2**255 - 1)
        if y >= _FIELD:
            raise IdentityError(f"public key {self.hex} is not canonical; make a new identity")
        if y in _SMALL_ORDER:
            raise IdentityError(f"public key {self.hex} is of small order; make a new identity")

    @classmethod
    def from_hex(cls, text: str) -> PublicIdentity:
        """Read `hex` back; raises IdentityError for anything but 64 lower-case digits of a key."""
        if not _KEY.fullmatch(text):
            raise IdentityError(f"public key {text[:80]!r} is not 64 lower-case hexadecimal digits")
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        """The key as 64 lower-case hexadecimal digits."""
        return self.raw.hex()

    @property
    def fingerprint(self) -> str:
        """What two people compare by phone: 120 bits of SHA-256 as six groups in base 32."""
        text = base64.b32encode(hashlib.sha256(self.raw).digest()[:15]).decode("ascii")
        return "-".join(text[start : start + 4] for start in range(0, len(text), 4))

    def verify(self, purpose: str, message: bytes, signature: bytes) -> None:
        """Return if this identity signed `message` for `purpose`; raises SignatureError otherwise."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, domain(purpose, message))
        except (InvalidSignature, TypeError):
            raise SignatureError(
                f"the signature for {purpose!r} is not by the key {self.fingerprint}"
            ) from None


@final
class IdentityKey:
    """A private key. It shows itself nowhere and can't be pickled, copied or compared by value."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: Final = PublicIdentity(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, randomness: SystemRandomness) -> IdentityKey:
        """Make a new identity from the operating system's source."""
        return cls.from_bytes(randomness.bytes(KEY_BYTES))

    @classmethod
    def from_bytes(cls, raw: bytes) -> IdentityKey:
        """Read `to_bytes` back; raises IdentityError unless there are 32 bytes."""
        if len(raw) != KEY_BYTES:
            raise IdentityError(f"a private key has {len(raw)} bytes; {KEY_BYTES} are needed")
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    @classmethod
    def from_pem(cls, pem: bytes) -> IdentityKey:
        """Read `to_pem` back.

        Raises:
            IdentityError: unless it is exactly one unencrypted Ed25519 key in PKCS #8.
        """
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            # OpenSSL's words would not help, and must never quote the key.
            raise IdentityError("it holds no unencrypted private key in PEM") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError("its key is not for Ed25519")
        found = cls(key)
        if found.to_pem() != pem:
            raise IdentityError("it holds more than one Ed25519 key in PKCS #8")
        return found

    def to_bytes(self) -> bytes:
        """The 32 secret bytes."""
        return self._key.private_bytes_raw()

    def to_pem(self) -> bytes:
        """The secret as unencrypted PKCS #8 in PEM, for a file that only its owner can read."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Sign `domain(purpose, message)`: 64 bytes, the same ones each time."""
        return self._key.sign(domain(purpose, message))

    def __repr__(self) -> str:
        return f"IdentityKey(secret of {self.public.fingerprint})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an identity's private key is not pickled or copied")


def not_private(status: os.stat_result, user: int) -> str | None:
    """Say why a key's file, or the folder around it, is not `user`'s alone; None if it is.

    `status` is of the opened file, so that it can't be swapped after the check.
    """
    folder = stat.S_ISDIR(status.st_mode)
    if not folder and not stat.S_ISREG(status.st_mode):
        return "is no plain file; move it away"
    if status.st_uid != user:
        return f"belongs to user {status.st_uid}, not to {user} who runs this; change its owner"
    if status.st_mode & 0o077:
        remedy = "chmod 700" if folder else "chmod 600"
        return f"is open to others (mode {stat.S_IMODE(status.st_mode):04o}); {remedy} it"
    if not folder and status.st_size > MAX_PEM_BYTES:
        return f"has {status.st_size} bytes, a key at most {MAX_PEM_BYTES}; restore it"
    return None


@dataclass(frozen=True)
class Member:
    """A platform by its id and its pinned key; raises RosterError for an id no message can carry."""

    platform: str
    public: PublicIdentity

    def __post_init__(self) -> None:
        if not re.fullmatch(PLATFORM_ID, self.platform):
            raise RosterError(
                f"platform id {self.platform[:80]!r} is not 1 to 64 letters, digits, dots, dashes "
                "or underscores that start with a letter or digit; choose another"
            )


@dataclass(frozen=True)
class Card:
    """What a platform sends to be put on a roster: itself, signed by its own key.

    Safe to show. The signature says that whoever made the card holds the private key.

    Raises:
        SignatureError: unless `signature` is by the member's key.
    """

    member: Member
    signature: bytes

    def __post_init__(self) -> None:
        self.member.public.verify(CARD, canonical(_unsigned(self.member)), self.signature)

    @classmethod
    def of(cls, platform: str, key: IdentityKey) -> Card:
        """Make the card of the platform that holds `key`; raises RosterError for a wrong id."""
        member = Member(platform, key.public)
        return cls(member, key.sign(CARD, canonical(_unsigned(member))))

    @classmethod
    def from_json(cls, data: bytes) -> Card:
        """Read `to_json` back.

        Raises:
            SecureSumError: RosterError, IdentityError or SignatureError, for anything else.
        """
        found = fields(parse(data, "the card"), "the card", _CARD)
        member = Member(found["platform"], PublicIdentity.from_hex(found["public"]))
        card = cls(member, signature_of(found["signature"], "the card"))
        check_exact(card.to_json(), data, "the card")
        return card

    def to_json(self) -> bytes:
        """The card's file."""
        return canonical(_unsigned(self.member) | {"signature": self.signature.hex()})


def canonical(document: Mapping[str, Any]) -> bytes:
    """Write a document as one line of canonical JSON."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse(data: bytes, what: str, *, most: int = MAX_BYTES) -> object:
    """Read JSON of at most `most` bytes; `what` names it in a message.

    Raises:
        RosterError: for more bytes, other than ASCII, a key twice in an object, NaN, or no JSON.
    """
    if len(data) > most:
        raise RosterError(f"{what} has {len(data)} bytes; at most {most} are allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key twice")
        return found

    try:
        text = data.decode("ascii")
        return json.loads(text, object_pairs_hook=unique, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        reason = "a key twice" if str(error) == "a key twice" else "no valid JSON in ASCII"
        raise RosterError(f"{what} is damaged ({reason}); get it anew") from None


def fields(value: object, what: str, expected: Mapping[str, type]) -> dict[str, Any]:
    """Return `value` if it is an object of exactly these keys with values of exactly these types.

    Raises:
        RosterError: naming the first key that is unknown or missing, or of another type or format.
    """
    if not isinstance(value, dict):
        raise RosterError(f"{what} is damaged (no JSON object); get it anew")
    for key in sorted(value.keys() | expected.keys()):
        if key not in expected or key not in value:
            state = "missing" if key in expected else "unknown"
            raise RosterError(f"{what} is damaged (key {key[:80]!r} is {state}); get it anew")
        # Not isinstance: True is an int.
        if type(value[key]) is not expected[key]:
            kind = expected[key].__name__
            raise RosterError(f"{what} is damaged (key {key!r} is no {kind}); get it anew")
    if value.get("format", FORMAT) != FORMAT:
        raise RosterError(
            f"{what} is of format {str(value['format'])[:20]}, this side reads {FORMAT}; "
            "install the same crossrec on all sides"
        )
    return value


def check_exact(written: bytes, data: bytes, what: str) -> None:
    """Raise RosterError unless what was read is what its object writes."""
    if written != data:
        raise RosterError(f"{what} is not in its canonical form; get it anew")


def _unsigned(member: Member) -> dict[str, Any]:
    return {"format": FORMAT, "platform": member.platform, "public": member.public.hex}


def signature_of(text: str, what: str) -> bytes:
    """Read a signature in hexadecimal; raises RosterError unless it is 128 lower-case digits."""
    if not _SIGNATURE.fullmatch(text):
        raise RosterError(f"{what}'s signature is not 128 lower-case hexadecimal digits")
    return bytes.fromhex(text)


def _not_json(_constant: str) -> NoReturn:
    raise ValueError("NaN and infinities are no JSON")
