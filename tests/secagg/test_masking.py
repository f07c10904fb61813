"""Masks against a slow computation of their own, and numbers against their bytes."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.secagg.masking import (
    CHUNK_BYTES,
    WIDTHS,
    KeyStream,
    Masker,
    Numbers,
    add_packed,
    pack,
    unpack,
    zeros,
)

KEYS = tuple(bytes([n]) * 32 for n in range(1, 6))
#: Longer than two chunks of key stream, for numbers of 4 bytes.
LONG = 2 * CHUNK_BYTES // 4 + 1001


def _mask(key: bytes, length: int, bits: int) -> npt.NDArray[np.uint64]:
    """The mask of a key, block by block: AES of the big-endian block number, little-endian numbers."""
    size = 2 if bits == 16 else 4
    blocks = -(-length * size // 16)
    counters = b"".join(n.to_bytes(16, "big") for n in range(blocks))
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = cipher.update(counters) + cipher.finalize()
    return np.frombuffer(stream, dtype=f"<u{size}")[:length].astype(np.uint64)


def _numbers(length: int, bits: int, seed: int = 1) -> Numbers:
    values = np.random.default_rng(seed).integers(0, 1 << bits, length, dtype=np.uint64)
    result = zeros(length, bits)
    np.copyto(result, values, casting="unsafe")
    return result


def _modulo(values: npt.NDArray[np.generic], bits: int) -> list[int]:
    return [int(value) % (1 << bits) for value in values]


@pytest.mark.parametrize("bits", WIDTHS)
def test_masks_are_added_and_subtracted_modulo(bits: int) -> None:
    values = _numbers(LONG, bits)
    expected = values.astype(np.uint64)
    for key in KEYS[:3]:
        expected += _mask(key, LONG, bits)
    for key in KEYS[3:]:
        expected -= _mask(key, LONG, bits)
    Masker(bits, add=KEYS[:3], subtract=KEYS[3:]).apply(values)
    assert _modulo(values, bits) == _modulo(expected, bits)


@given(
    bits=st.sampled_from(WIDTHS),
    lengths=st.lists(
        st.one_of(st.integers(0, 40), st.integers(CHUNK_BYTES // 4 - 9, CHUNK_BYTES // 2 + 9)),
        max_size=5,
    ),
)
@settings(max_examples=30, deadline=None)
def test_it_does_not_matter_where_a_vector_is_cut(bits: int, lengths: list[int]) -> None:
    whole = _numbers(sum(lengths), bits)
    cut = whole.copy()
    Masker(bits, add=KEYS[:1], subtract=KEYS[1:2]).apply(whole)
    masker, start = Masker(bits, add=KEYS[:1], subtract=KEYS[1:2]), 0
    for length in lengths:
        masker.apply(cut[start : start + length])
        start += length
    assert np.array_equal(whole, cut)


@pytest.mark.parametrize("bits", WIDTHS)
def test_masks_of_pairs_leave_the_sum(bits: int) -> None:
    vectors = [_numbers(500, bits, seed) for seed in range(4)]
    total = sum((v.astype(np.uint64) for v in vectors), start=np.zeros(500, dtype=np.uint64))
    pairs = {pair: bytes([*pair]) * 16 for pair in combinations(range(4), 2)}
    wire = bytearray(500 * bits // 8)
    masked = zeros(500, bits)
    for me, vector in enumerate(vectors):
        before = vector.copy()
        add = [key for (low, _), key in pairs.items() if low == me]
        subtract = [key for (_, high), key in pairs.items() if high == me]
        Masker(bits, add=add, subtract=subtract).apply(vector)
        assert not np.array_equal(vector, before)
        pack(vector, bits, memoryview(wire))
        add_packed(masked, wire, bits)
    assert _modulo(masked, bits) == _modulo(total, bits)


def test_masks_depend_on_every_bit_of_the_key() -> None:
    seen = set()
    for bit in range(256):
        chunk = zeros(4, 32)
        Masker(32, add=[(1 << bit).to_bytes(32, "little")], subtract=[]).apply(chunk)
        seen.add(chunk.tobytes())
    assert len(seen) == 256


@given(bits=st.sampled_from(WIDTHS), values=st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_a_number_is_its_little_endian_bytes(bits: int, values: list[int]) -> None:
    numbers = zeros(len(values), bits)
    np.copyto(numbers, np.array(values, dtype=np.uint64), casting="unsafe")
    expected = b"".join((v % (1 << bits)).to_bytes(bits // 8, "little") for v in values)
    out = bytearray(b"\xaa" * (len(expected) + 5))
    pack(numbers, bits, memoryview(out))
    assert bytes(out) == expected + b"\xaa" * 5  # nothing beyond is touched
    assert unpack(expected, bits).tolist() == [v % (1 << bits) for v in values]


@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_vectors_are_added_wherever_they_lie_in_memory(bits: int) -> None:
    total, other = _numbers(LONG, bits), _numbers(LONG, bits, seed=2)
    expected = total.astype(np.uint64) + other
    frame = bytearray(3 + LONG * bits // 8)
    body = memoryview(frame)[3:]  # at an odd address
    pack(other, bits, body)
    add_packed(total, body.toreadonly(), bits)
    assert _modulo(total, bits) == _modulo(expected, bits)


def test_wrong_types_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="bits are 8"):
        Masker(8, add=[], subtract=[])
    with pytest.raises(ValueError, match="31 bytes"):
        KeyStream(bytes(31))
    with pytest.raises(ValueError, match="uint16 is needed"):
        Masker(16, add=KEYS, subtract=[]).apply(zeros(3, 32))
    with pytest.raises(ValueError, match="uint32 is needed"):
        pack(zeros(3, 16), 24, memoryview(bytearray(9)))
    with pytest.raises(ValueError, match="no whole count"):
        unpack(bytes(7), 24)
    with pytest.raises(ValueError, match="are not 3 numbers of 24 bits"):
        add_packed(zeros(3, 24), bytes(12), 24)
    with pytest.raises(ValueError, match="buffer"):
        pack(zeros(3, 32), 32, memoryview(bytearray(11)))


@pytest.mark.parametrize("bits", WIDTHS)
def test_memory_does_not_grow_with_the_vector(bits: int) -> None:
    values = zeros(5_000_000, bits)
    out = bytearray(5_000_000 * bits // 8)
    tracemalloc.start()
    try:
        Masker(bits, add=KEYS[:1], subtract=KEYS[1:2]).apply(values)
        pack(values, bits, memoryview(out))
        add_packed(values, out, bits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * CHUNK_BYTES
