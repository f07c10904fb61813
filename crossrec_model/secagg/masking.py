"""Masks: key streams that are added to a vector of integers modulo 2^bits, and taken off again.

A mask is the AES-256-CTR key stream of its own key from a zero nonce (6.8 GB/s where ChaCha20 gave
4.9), so that a key must never serve twice. Numbers of 24 and 32 bits are held as uint32 and use 4
bytes of key stream each: 2^24 divides 2^32, so what is right modulo 2^32 is right modulo 2^24. Numbers
of 16 bits are held as uint16 and use 2 bytes. All additions wrap; that is the arithmetic, not an accident.

Whatever a vector's length, nothing here takes more memory than a few chunks of 256 KiB, except for
the results of `zeros` and `unpack`. On the wire a number takes bits / 8 bytes, little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Numbers = npt.NDArray[np.uint32] | npt.NDArray[np.uint16]

#: Bits that a number may have.
WIDTHS: Final = (16, 24, 32)
#: Bytes of key stream that are made at once.
CHUNK_BYTES: Final = 1 << 18
_NONCE: Final = bytes(16)
_ZEROS: Final = memoryview(bytes(CHUNK_BYTES))


def number_type(bits: int) -> np.dtype[np.uint32] | np.dtype[np.uint16]:
    """Return the type that holds numbers of 16, 24 or 32 bits; raises ValueError for others."""
    if bits not in WIDTHS:
        raise ValueError(f"bits are {bits}; 16, 24 or 32 are possible")
    return np.dtype(np.uint16) if bits == 16 else np.dtype(np.uint32)


def _checked(values: Numbers, bits: int) -> np.dtype[np.uint32] | np.dtype[np.uint16]:
    """The type of numbers of `bits` bits, if the values are of it."""
    kind = number_type(bits)
    if values.dtype != kind:
        raise ValueError(f"numbers are {values.dtype}; {kind} is needed")
    return kind


def zeros(length: int, bits: int) -> Numbers:
    """Return a vector of zeros of the type that holds numbers of `bits` bits."""
    return np.zeros(length, dtype=number_type(bits))


@final
class KeyStream:
    """The AES-256-CTR key stream of a 32-byte key, from its start. Use a key for one stream only."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"the key has {len(key)} bytes; 32 are needed")
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(_NONCE)).encryptor()

    def fill(self, target: npt.NDArray[np.uint8]) -> None:
        """Write the next bytes of the stream over an array of at most `CHUNK_BYTES` bytes."""
        self._cipher.update_into(_ZEROS[: len(target)], target.data)


@final
class Masker:
    """Adds and subtracts whole masks, one chunk of the vector after the other.

    Args:
        bits: 16, 24 or 32.
        add, subtract: the keys of the masks, 32 bytes each, every one used in this vector only.
    """

    def __init__(self, bits: int, *, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
        self._type = number_type(bits)
        self._add = tuple(map(KeyStream, add))
        self._subtract = tuple(map(KeyStream, subtract))
        self._scratch = np.empty(CHUNK_BYTES, dtype=np.uint8)

    def apply(self, chunk: Numbers) -> None:
        """Mask the numbers that follow those of the call before, in place, wrapping.

        Args:
            chunk: contiguous uint32 for 24 and 32 bits (the topmost 8 bits of 24-bit numbers become
                arbitrary; `pack` drops them), uint16 for 16 bits; of any length.
        """
        if chunk.dtype != self._type:
            raise ValueError(f"numbers are {chunk.dtype}; {self._type} is needed")
        size = self._type.itemsize
        most = CHUNK_BYTES // size
        for start in range(0, len(chunk), most):
            part = chunk[start : start + most]
            raw = self._scratch[: len(part) * size]
            mask = raw.view(self._type.newbyteorder("<"))
            for stream in self._add:
                stream.fill(raw)
                np.add(part, mask, out=part)
            for stream in self._subtract:
                stream.fill(raw)
                np.subtract(part, mask, out=part)


def pack(values: Numbers, bits: int, out: memoryview) -> None:
    """Write numbers modulo 2^bits over the first len(values) * bits / 8 bytes of `out`.

    `out` must not share memory with `values`.
    """
    kind = _checked(values, bits)
    target = np.frombuffer(out, dtype=np.uint8, count=len(values) * bits // 8)
    if bits != 24:
        target.view(kind.newbyteorder("<"))[:] = values
        return
    raw = values.astype(kind.newbyteorder("<"), copy=False).view(np.uint8)
    # One byte position at a time: 6 times as fast as copying groups of three.
    for position in range(3):
        target[position::3] = raw[position::4]


def unpack(raw: bytes | bytearray | memoryview, bits: int) -> Numbers:
    """Return the numbers in their wire form; raises ValueError for a part of a number left over."""
    count, left = divmod(8 * len(raw), bits)
    if left:
        raise ValueError(f"{len(raw)} bytes are no whole count of {bits}-bit numbers")
    values = zeros(count, bits)
    _add(values, np.frombuffer(raw, dtype=np.uint8), bits)
    return values


def add_packed(total: Numbers, raw: bytes | bytearray | memoryview, bits: int) -> None:
    """Add a vector in its wire form to `total` in place, wrapping; the lengths must fit."""
    if len(total) * bits != 8 * len(raw):
        raise ValueError(f"{len(raw)} bytes are not {len(total)} numbers of {bits} bits")
    _add(total, np.frombuffer(raw, dtype=np.uint8), bits)


def _add(total: Numbers, raw: npt.NDArray[np.uint8], bits: int) -> None:
    kind = _checked(total, bits)
    if bits != 24:
        np.add(total, raw.view(kind.newbyteorder("<")), out=total)
        return
    most = CHUNK_BYTES // kind.itemsize
    wide = np.zeros(4 * min(most, len(total)), dtype=np.uint8)
    for start in range(0, len(total), most):
        part = total[start : start + most]
        for position in range(3):
            wide[position : 4 * len(part) : 4] = raw[3 * start + position :: 3][: len(part)]
        np.add(part, wide[: 4 * len(part)].view("<u4"), out=part)
