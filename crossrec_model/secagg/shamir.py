"""Secrets in shares: any `threshold` of them give the secret, fewer say nothing about it.

Shamir 1979, over the integers modulo p = 2^256 + 297, the least prime above all 32-byte secrets. A
share is the value of a random polynomial at x = 1, 2, ...; the secret is its value at 0. Numbers are
little-endian. Secrets go in and come out in batches, because a key agreement shares hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import Final, final

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import SharesError

PRIME: Final = (1 << 256) + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
#: Most shares of one secret.
MAX_HOLDERS: Final = 255


@final
class Field:
    """Polynomials over the integers modulo a prime; a polynomial is its coefficients from x^0 up."""

    def __init__(self, prime: int) -> None:
        self.prime = prime
        self._bits = prime.bit_length()
        self._bytes = (self._bits + 7) // 8

    def draw(self, count: int, randomness: SystemRandomness) -> list[int]:
        """Return `count` independent uniform elements: too large draws are thrown away."""
        size, mask = self._bytes, (1 << self._bits) - 1
        drawn: list[int] = []
        while len(drawn) < count:
            raw = randomness.bytes(size * (count - len(drawn)))
            numbers = (
                int.from_bytes(raw[at : at + size], "little") & mask
                for at in range(0, len(raw), size)
            )
            drawn += [number for number in numbers if number < self.prime]
        return drawn

    def evaluate(self, polynomials: Sequence[Sequence[int]], x: int) -> list[int]:
        """Return the value of every polynomial at one small x."""
        longest = max(map(len, polynomials), default=0)
        # Powers of a small x stay short, so one reduction at the end is enough.
        powers = [x**exponent for exponent in range(longest)]
        return [self.dot(one, powers) for one in polynomials]

    def weights_at_zero(self, xs: Sequence[int]) -> list[int]:
        """Return Lagrange's weights: f(0) is the sum of weight times f(x), over distinct xs."""
        weights = []
        for x in xs:
            above, below = 1, 1
            for other in xs:
                if other != x:
                    above = above * other % self.prime
                    below = below * (other - x) % self.prime
            weights.append(above * pow(below, -1, self.prime) % self.prime)
        return weights

    def dot(self, left: Iterable[int], right: Iterable[int]) -> int:
        """Return the sum of the products of two lists, up to the end of the shorter one."""
        total: int = sum(map(mul, left, right))
        return total % self.prime


_FIELD: Final = Field(PRIME)


def share_many(
    secrets: Sequence[bytes], *, threshold: int, holders: int, randomness: SystemRandomness
) -> tuple[bytes, ...]:
    """Share secrets of 32 bytes each.

    Returns:
        For each holder x = 1 ... `holders` its shares of all the secrets in their order, joined, 33
        bytes each.

    Raises:
        SharesError: for a secret of another length, or unless 1 <= threshold <= holders <= 255.
    """
    if not 1 <= threshold <= holders <= MAX_HOLDERS:
        raise SharesError(
            f"{threshold} of {holders} shares can't be made; "
            f"1 <= threshold <= holders <= {MAX_HOLDERS} is needed"
        )
    if any(len(secret) != SECRET_BYTES for secret in secrets):
        raise SharesError(f"a secret is not {SECRET_BYTES} bytes long; give exactly as many")
    degree = threshold - 1
    random = _FIELD.draw(degree * len(secrets), randomness)
    polynomials = [
        (int.from_bytes(secret, "little"), *random[at * degree : (at + 1) * degree])
        for at, secret in enumerate(secrets)
    ]
    return tuple(
        b"".join(value.to_bytes(SHARE_BYTES, "little") for value in _FIELD.evaluate(polynomials, x))
        for x in range(1, holders + 1)
    )


def share(
    secret: bytes, *, threshold: int, holders: int, randomness: SystemRandomness
) -> tuple[bytes, ...]:
    """Share one secret; see `share_many`."""
    return share_many([secret], threshold=threshold, holders=holders, randomness=randomness)


def combine_many(shares: Mapping[int, bytes], *, threshold: int) -> tuple[bytes, ...]:
    """Return the secrets from what at least `threshold` holders x have of them.

    Only the `threshold` holders with the lowest x are read. Wrong shares of the right form give a
    wrong secret: check it against a commitment.

    Raises:
        SharesError: for too few holders, x outside 1 ... 255, joined shares that are not of one
            length or not a multiple of 33 bytes, a share that is no element of the field, or a
            result that is no 32-byte secret.
    """
    if threshold < 1 or len(shares) < threshold:
        raise SharesError(f"{len(shares)} shares of a secret came, {max(threshold, 1)} are needed")
    if outside := [x for x in shares if not 1 <= x <= MAX_HOLDERS]:
        raise SharesError(f"a share is of holder {outside[0]}; 1 to {MAX_HOLDERS} are possible")
    xs = sorted(shares)[:threshold]
    length = len(shares[xs[0]])
    if length % SHARE_BYTES or any(len(shares[x]) != length for x in xs):
        raise SharesError(f"shares are not of one length, a multiple of {SHARE_BYTES} bytes")
    columns = [_values(x, shares[x]) for x in xs]
    weights = _FIELD.weights_at_zero(xs)
    return tuple(_secret(_FIELD.dot(weights, row)) for row in zip(*columns, strict=True))


def combine(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """Return one secret from its shares; see `combine_many`."""
    if any(len(one) != SHARE_BYTES for one in shares.values()):
        raise SharesError(f"a share is not {SHARE_BYTES} bytes long")
    return combine_many(shares, threshold=threshold)[0]


def _values(x: int, joined: bytes) -> list[int]:
    values = [
        int.from_bytes(joined[at : at + SHARE_BYTES], "little")
        for at in range(0, len(joined), SHARE_BYTES)
    ]
    if any(value >= PRIME for value in values):
        raise SharesError(f"a share of holder {x} is no element of the field")
    return values


def _secret(value: int) -> bytes:
    if value.bit_length() > 8 * SECRET_BYTES:
        raise SharesError("the shares don't fit together: they give no 32-byte secret")
    return value.to_bytes(SECRET_BYTES, "little")
