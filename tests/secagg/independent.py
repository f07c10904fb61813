"""The secure sum's arithmetic once more, slow and from its definitions, with nothing of the package.

HKDF is RFC 5869 over `hmac`, X25519 the ladder of RFC 7748, section 5, a key stream AES-256 of the block
numbers, shares are Lagrange's formula.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PRIME = 2**256 + 297
_CURVE = 2**255 - 19


def domain(purpose: str, *parts: bytes | str | int) -> bytes:
    """Protocol, version, purpose and parts, each as type, length (4 bytes) and content."""
    raw = bytearray()
    for part in ("crossrec/secagg", 1, purpose, *parts):
        if isinstance(part, int):
            raw += b"i\x08\0\0\0" + bytes(part >> 8 * at & 255 for at in range(8))
            continue
        content = part if isinstance(part, bytes) else part.encode("ascii")
        length = len(content)
        raw += b"b" if isinstance(part, bytes) else b"s"
        raw += bytes(length >> 8 * at & 255 for at in range(4)) + content
    return bytes(raw)


def hkdf(secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 with an empty salt, 32 bytes: one block of the expansion."""
    pseudorandom = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(pseudorandom, info + b"\x01", hashlib.sha256).digest()


def x25519(private: bytes, public: bytes) -> bytes:
    """The shared secret of two keys."""
    scalar = int.from_bytes(private, "little") & ~7 & (2**255 - 1) | 2**254
    x1 = int.from_bytes(public, "little") % 2**255
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for at in reversed(range(255)):
        bit = scalar >> at & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a, c * b
        x3, z3 = (da + cb) ** 2 % _CURVE, x1 * (da - cb) ** 2 % _CURVE
        e = a * a - b * b
        x2, z2 = a * a * b * b % _CURVE, e * (a * a + 121665 * e) % _CURVE
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _CURVE - 2, _CURVE) % _CURVE).to_bytes(32, "little")


def public_key(private: bytes) -> bytes:
    """The public key of a private one."""
    return x25519(private, (9).to_bytes(32, "little"))


def mask(key: bytes, length: int, bits: int) -> list[int]:
    """The numbers of a mask: 2 bytes of key stream each for 16 bits, otherwise 4."""
    size = 2 if bits == 16 else 4
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = range(-(-length * size // 16))
    stream = b"".join(cipher.update(number.to_bytes(16, "big")) for number in blocks)
    numbers = (stream[at : at + size] for at in range(0, length * size, size))
    return [int.from_bytes(raw, "little") % (1 << bits) for raw in numbers]


def numbers_of(body: bytes, bits: int) -> list[int]:
    """The numbers of a masked vector after its head."""
    size = bits // 8
    return [int.from_bytes(body[at : at + size], "little") for at in range(0, len(body), size)]


def at_zero(shares: Mapping[int, bytes]) -> bytes:
    """The value at 0 of the polynomial of least degree through all these shares, its low 32 bytes."""
    total = 0
    for x, raw in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != x:
                above, below = above * -other % PRIME, below * (x - other) % PRIME
        total += int.from_bytes(raw, "little") * above * pow(below, -1, PRIME)
    return (total % PRIME).to_bytes(33, "little")[:32]


def unmasked(
    body: bytes,
    platform: str,
    bits: int,
    *,
    parts: tuple[bytes | int, ...],
    pair_key: bytes,
    publics: Mapping[str, bytes],
    seed: bytes,
) -> list[int]:
    """Take all masks off one platform's vector, with its secrets.

    Args:
        parts: what every mask of the sum depends on: run, transcript, subject, slot, kind, round, bits,
            levels, length.
        publics: the other members' public keys of the slot.
    """
    total = numbers_of(body, bits)
    masks = [(-1, hkdf(seed, domain("self mask", *parts, platform)))]
    for other, public in publics.items():
        low, high = sorted((platform, other))
        secret = x25519(pair_key, public)
        sign = -1 if platform == low else 1
        masks.append((sign, hkdf(secret, domain("pair mask", *parts, low, high))))
    for sign, key in masks:
        for at, number in enumerate(mask(key, len(total), bits)):
            total[at] += sign * number
    return [number % (1 << bits) for number in total]
