"""Keys and digests, each separated from every other by what it is for.

A domain is written as protocol, version, purpose and parts, every part with its type and length, so
that no two different domains give the same bytes.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PROTOCOL: Final = "crossrec/secagg"
VERSION: Final = 1
KEY_BYTES: Final = 32

Part = bytes | str | int


def domain(purpose: str, *parts: Part) -> bytes:
    """Return the unambiguous bytes of a purpose and its parts; an int is 0 to 2^64 - 1."""
    return b"".join(map(_part, (PROTOCOL, VERSION, purpose, *parts)))


def _part(value: Part) -> bytes:
    if isinstance(value, bytes):
        kind, raw = b"b", value
    elif isinstance(value, str):
        kind, raw = b"s", value.encode()
    else:
        kind, raw = b"i", value.to_bytes(8, "little")
    return kind + len(raw).to_bytes(4, "little") + raw


def derive(secret: bytes, purpose: str, *parts: Part) -> bytes:
    """Return a 32-byte key from a secret: HKDF-SHA256 (RFC 5869) with the domain as its info."""
    info = domain(purpose, *parts)
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def digest(purpose: str, *parts: Part) -> bytes:
    """Return the SHA-256 of a domain, 32 bytes."""
    hasher = hashes.Hash(hashes.SHA256())
    hasher.update(domain(purpose, *parts))
    return hasher.finalize()
