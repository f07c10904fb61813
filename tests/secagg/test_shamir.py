"""Enough shares give the secret, fewer say nothing: exhaustively where fields are small."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import SharesError
from crossrec_model.secagg.shamir import (
    PRIME,
    SHARE_BYTES,
    Field,
    combine,
    combine_many,
    share,
    share_many,
)

SYSTEM = SystemRandomness()


def _probably_prime(number: int) -> bool:
    """Miller-Rabin with 64 fixed random bases: wrong with a chance of at most 4^-64."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    source = random.Random(1)
    for _ in range(64):
        x = pow(source.randrange(2, number - 1), odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True


def test_the_modulus_is_the_least_prime_above_all_secrets() -> None:
    assert PRIME == 2**256 + 297
    assert _probably_prime(PRIME)
    assert not any(_probably_prime(2**256 + odd) for odd in range(1, 297, 2))


@pytest.mark.parametrize(("prime", "threshold"), [(7, 1), (7, 2), (7, 3), (7, 4), (11, 3)])
def test_every_polynomial_comes_back_from_every_set_of_shares(prime: int, threshold: int) -> None:
    field = Field(prime)
    polynomials = list(itertools.product(range(prime), repeat=threshold))
    values = {x: field.evaluate(polynomials, x) for x in range(1, prime)}
    for x, column in values.items():
        expected = [
            sum(c * pow(x, e, prime) for e, c in enumerate(one)) % prime for one in polynomials
        ]
        assert column == expected
    for xs in itertools.permutations(range(1, prime), threshold):
        weights = field.weights_at_zero(xs)
        for at, polynomial in enumerate(polynomials):
            assert field.dot(weights, [values[x][at] for x in xs]) == polynomial[0]


@pytest.mark.parametrize(("prime", "threshold"), [(7, 2), (7, 3), (7, 4), (11, 3)])
def test_fewer_shares_are_equally_likely_under_every_secret(prime: int, threshold: int) -> None:
    field = Field(prime)
    for xs in itertools.combinations(range(1, prime), threshold - 1):
        seen: list[Counter[tuple[int, ...]]] = []
        for secret in range(prime):
            tails = itertools.product(range(prime), repeat=threshold - 1)
            polynomials = [(secret, *tail) for tail in tails]
            columns = [field.evaluate(polynomials, x) for x in xs]
            seen.append(Counter(zip(*columns, strict=True)))
        assert all(counts == seen[0] for counts in seen)
        assert set(seen[0].values()) == {1}
        assert len(seen[0]) == prime ** (threshold - 1)


def test_coefficients_are_drawn_without_bias() -> None:
    # Reduction of 3 random bits modulo 5 would give 0, 1, 2 twice as often as 3, 4.
    counts = Counter(Field(5).draw(50_000, SYSTEM))
    assert set(counts) == set(range(5))
    assert all(abs(count - 10_000) < 800 for count in counts.values())  # 9 standard deviations
    # 131 of 256: a reduction would give the 6 largest half as often as the others.
    drawn = Field(131).draw(50_000, SYSTEM)
    assert set(drawn) <= set(range(131))
    high = sum(number >= 125 for number in drawn)
    assert abs(high - 50_000 * 6 / 131) < 420  # 9 standard deviations
    wide = Field(PRIME).draw(200, SYSTEM)
    assert len(set(wide)) == 200
    assert all(0 <= number < PRIME for number in wide)
    assert any(number > PRIME // 2 for number in wide)


@given(secret=st.binary(min_size=32, max_size=32), data=st.data())
@settings(max_examples=60)
def test_any_set_of_enough_shares_gives_the_secret(secret: bytes, data: st.DataObject) -> None:
    holders = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, holders))
    shares = share(secret, threshold=threshold, holders=holders, randomness=SYSTEM)
    assert len(shares) == holders
    assert all(len(one) == SHARE_BYTES for one in shares)
    xs = data.draw(
        st.lists(st.integers(1, holders), min_size=threshold, max_size=holders, unique=True)
    )
    assert combine({x: shares[x - 1] for x in xs}, threshold=threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\x80"])
def test_the_outermost_secrets_come_back(secret: bytes) -> None:
    shares = share(secret, threshold=34, holders=100, randomness=SYSTEM)
    assert combine(dict(enumerate(shares[66:], start=67)), threshold=34) == secret


def test_a_line_through_known_points() -> None:
    # f(x) = 5 + x · (p - 1), by hand: f(1) = 4, f(2) = 3.
    shares = {1: (4).to_bytes(33, "little"), 2: (3).to_bytes(33, "little")}
    assert combine(shares, threshold=2) == (5).to_bytes(32, "little")


def test_each_sharing_is_fresh_and_one_share_less_gives_something_else() -> None:
    secret = bytes(range(32))
    one = share(secret, threshold=3, holders=5, randomness=SYSTEM)
    other = share(secret, threshold=3, holders=5, randomness=SYSTEM)
    assert not set(one) & set(other)
    assert combine(dict(enumerate(one[:2], start=1)), threshold=2) != secret


def test_the_lowest_numbers_are_read() -> None:
    secret = bytes(range(32))
    shares = dict(enumerate(share(secret, threshold=2, holders=4, randomness=SYSTEM), start=1))
    shares[4] = bytes(33)
    assert combine(dict(reversed(shares.items())), threshold=2) == secret


def test_batches_are_the_same_arithmetic() -> None:
    secrets = [SYSTEM.bytes(32) for _ in range(7)]
    joined = share_many(secrets, threshold=3, holders=5, randomness=SYSTEM)
    assert [len(one) for one in joined] == [7 * SHARE_BYTES] * 5
    some = {x: joined[x - 1] for x in (5, 2, 4)}
    assert combine_many(some, threshold=3) == tuple(secrets)
    for at, secret in enumerate(secrets):
        part = {x: one[SHARE_BYTES * at : SHARE_BYTES * (at + 1)] for x, one in some.items()}
        assert combine(part, threshold=3) == secret


def test_no_secrets_are_no_shares() -> None:
    joined = share_many([], threshold=2, holders=3, randomness=SYSTEM)
    assert joined == (b"", b"", b"")
    assert combine_many({1: b"", 2: b""}, threshold=2) == ()


def test_a_key_agreement_of_a_hundred_is_quick() -> None:
    secrets = [SYSTEM.bytes(32) for _ in range(128)]
    start = time.process_time()
    joined = share_many(secrets, threshold=67, holders=100, randomness=SYSTEM)
    assert time.process_time() - start < 1.0
    assert combine_many(dict(enumerate(joined[33:], start=34)), threshold=67) == tuple(secrets)


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (-1, 3), (2, 256), (1, 0)])
def test_impossible_thresholds_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(SharesError, match=f"^{threshold} of {holders} shares can't be made"):
        share(bytes(32), threshold=threshold, holders=holders, randomness=SYSTEM)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(SharesError, match="not 32 bytes"):
        share_many([bytes(32), bytes(length)], threshold=1, holders=2, randomness=SYSTEM)


_GOOD = (7).to_bytes(33, "little")


@pytest.mark.parametrize(
    ("shares", "threshold", "message"),
    [
        ({}, 1, "0 shares of a secret came, 1 are needed"),
        ({1: _GOOD, 2: _GOOD}, 3, "2 shares of a secret came, 3 are needed"),
        ({1: _GOOD}, 0, "1 are needed"),
        ({0: _GOOD, 1: _GOOD}, 2, "holder 0; 1 to 255"),
        ({1: _GOOD, 256: _GOOD}, 1, "holder 256; 1 to 255"),
        ({1: _GOOD, 2: _GOOD[:-1]}, 2, "33 bytes"),
        ({1: _GOOD, 2: _GOOD + b"\0"}, 2, "33 bytes"),
        ({1: b"", 2: b""}, 2, "33 bytes"),
        ({1: _GOOD, 2: PRIME.to_bytes(33, "little")}, 2, "holder 2 is no element"),
        ({1: b"\xff" * 33}, 1, "holder 1 is no element"),
        ({1: (2**256).to_bytes(33, "little")}, 1, "no 32-byte secret"),
        ({1: (PRIME - 1).to_bytes(33, "little")}, 1, "no 32-byte secret"),
    ],
)
def test_malformed_shares_are_refused(
    shares: dict[int, bytes], threshold: int, message: str
) -> None:
    with pytest.raises(SharesError, match=message):
        combine(shares, threshold=threshold)


def test_batches_of_different_lengths_are_refused() -> None:
    with pytest.raises(SharesError, match="not of one length"):
        combine_many({1: _GOOD, 2: _GOOD * 2}, threshold=2)
    with pytest.raises(SharesError, match="multiple of 33"):
        combine_many({1: _GOOD + b"\0", 2: _GOOD + b"\0"}, threshold=2)
