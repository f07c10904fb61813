"""Strict binary fields: every length is stated, bounded and used up; nothing is ever unpickled.

All numbers are little-endian. A field knows how to write one value and how to read it back, and it
applies the same bounds both ways, so that a peer can't be sent what it would have to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from crossrec_model.errors import WireError

FloatVector = npt.NDArray[np.float32]
#: Bytes in pieces: what counts is their concatenation.
Pieces = tuple[bytes | memoryview, ...]
T = TypeVar("T")
Code = TypeVar("Code", bound=IntEnum)

#: 2^27 numbers are 512 MiB, above the 10^8 that the design plans for.
MAX_VECTOR_LENGTH: Final = 1 << 27


class Reader:
    """Hands out exactly the bytes asked for, and knows whether any are left."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).toreadonly()
        self._offset = 0

    def take(self, count: int, what: str) -> memoryview:
        """Return the next `count` bytes; raises WireError if the message ends before them."""
        left = len(self._data) - self._offset
        if count > left:
            raise WireError(f"message ends inside {what}: {count} bytes needed, {left} left")
        start, self._offset = self._offset, self._offset + count
        return self._data[start : self._offset]

    def unsigned(self, size: int, what: str) -> int:
        """Return the next `size` bytes as an unsigned number."""
        return int.from_bytes(self.take(size, what), "little")

    def end(self) -> None:
        """Raise WireError unless every byte was used."""
        if left := len(self._data) - self._offset:
            raise WireError(f"{left} bytes left over after the last field; 0 are allowed")


class Field(Protocol[T]):
    """One field of a message."""

    def write(self, value: T) -> bytes:
        """Return the bytes of a value; raises WireError for a value outside the bounds."""

    def read(self, reader: Reader) -> T:
        """Return the next value; raises WireError for bytes outside the bounds."""


class Unsigned:
    """A whole number from `least` to 2^(8·size) - 1."""

    def __init__(self, size: int, what: str, *, least: int = 0) -> None:
        self._size, self._what, self._least = size, what, least
        self._most = (1 << (8 * size)) - 1

    def _checked(self, value: int) -> int:
        if not self._least <= value <= self._most:
            raise WireError(f"{self._what} is {value}; allowed: {self._least} to {self._most}")
        return value

    def write(self, value: int) -> bytes:
        """Return `size` little-endian bytes."""
        return self._checked(value).to_bytes(self._size, "little")

    def read(self, reader: Reader) -> int:
        """Return the number."""
        return self._checked(reader.unsigned(self._size, self._what))


class Fixed:
    """Exactly `size` bytes."""

    def __init__(self, size: int, what: str) -> None:
        self._size, self._what = size, what

    def write(self, value: bytes) -> bytes:
        """Return the bytes unchanged."""
        if len(value) != self._size:
            raise WireError(f"{self._what} has {len(value)} bytes; exactly {self._size} are needed")
        return value

    def read(self, reader: Reader) -> bytes:
        """Return a copy of the bytes."""
        return bytes(reader.take(self._size, self._what))


class Blob:
    """At most `most` bytes after a 32-bit length."""

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what

    def _check(self, length: int) -> None:
        if length > self._most:
            raise WireError(f"{self._what} has {length} bytes; at most {self._most} are allowed")

    def write(self, value: bytes) -> bytes:
        """Return length and bytes."""
        self._check(len(value))
        return len(value).to_bytes(4, "little") + value

    def read(self, reader: Reader) -> bytes:
        """Return a copy of the bytes."""
        length = reader.unsigned(4, self._what)
        self._check(length)
        return bytes(reader.take(length, self._what))


class Text:
    """UTF-8 text of which the whole must match `pattern`, at most `most` bytes."""

    def __init__(self, most: int, what: str, pattern: str) -> None:
        self._blob, self._what = Blob(most, what), what
        self._pattern = re.compile(pattern)

    def _checked(self, value: str) -> str:
        if not self._pattern.fullmatch(value):
            raise WireError(f"{self._what} {value[:80]!r} must match {self._pattern.pattern}")
        return value

    def write(self, value: str) -> bytes:
        """Return length and UTF-8 bytes."""
        try:
            return self._blob.write(self._checked(value).encode())
        except UnicodeEncodeError:
            raise WireError(f"{self._what} {value[:80]!r} can't be written as UTF-8") from None

    def read(self, reader: Reader) -> str:
        """Return the text."""
        raw = self._blob.read(reader)
        try:
            return self._checked(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise WireError(f"{self._what} is not UTF-8 (byte {error.start})") from None


class Sequence(Generic[T]):
    """At most 255 values of one field after an 8-bit count."""

    def __init__(self, item: Field[T], what: str) -> None:
        self._item, self._count = item, Unsigned(1, f"number of {what}")

    def write(self, value: tuple[T, ...]) -> bytes:
        """Return count and values."""
        return self._count.write(len(value)) + b"".join(map(self._item.write, value))

    def read(self, reader: Reader) -> tuple[T, ...]:
        """Return the values."""
        return tuple(self._item.read(reader) for _ in range(self._count.read(reader)))


class Choice(Generic[Code]):
    """One member of an enumeration, in one byte."""

    def __init__(self, codes: Callable[[int], Code], what: str) -> None:
        self._codes, self._byte, self._what = codes, Unsigned(1, what), what

    def write(self, value: Code) -> bytes:
        """Return the byte."""
        return self._byte.write(int(value))

    def read(self, reader: Reader) -> Code:
        """Return the member; raises WireError for a number that names none."""
        number = self._byte.read(reader)
        try:
            return self._codes(number)
        except ValueError:
            raise WireError(f"{self._what} {number} is not known") from None


class Vector:
    """A one-dimensional float32 vector of finite numbers after a 32-bit count."""

    def __init__(self, what: str, *, most: int = MAX_VECTOR_LENGTH) -> None:
        self._what, self._most = what, most

    def _checked(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if value.ndim != 1 or value.dtype != np.float32:
            raise WireError(
                f"{self._what} is {value.dtype} of shape {value.shape}; float32 [n] is needed"
            )
        self._check_length(len(value))
        if not np.isfinite(value).all():
            bad = int(np.count_nonzero(~np.isfinite(value)))
            raise WireError(f"{self._what} holds {bad} numbers that are NaN or infinite; 0 allowed")
        return value

    def _check_length(self, length: int) -> None:
        if length > self._most:
            raise WireError(f"{self._what} has {length} numbers; at most {self._most} are allowed")

    def write(self, value: FloatVector) -> bytes:
        """Return count and numbers."""
        return b"".join(self.pieces(value))

    def pieces(self, value: FloatVector) -> Pieces:
        """Return count and numbers; the numbers share the vector's memory."""
        checked = np.ascontiguousarray(self._checked(value), dtype="<f4")
        return len(checked).to_bytes(4, "little"), checked.view(np.uint8).data

    def read(self, reader: Reader) -> FloatVector:
        """Return a read-only float32 view [n] of the message's own bytes."""
        length = reader.unsigned(4, self._what)
        self._check_length(length)
        raw = reader.take(4 * length, self._what)
        return self._checked(np.frombuffer(raw, dtype="<f4")).astype(np.float32, copy=False)


def size_of(pieces: Iterable[bytes | memoryview]) -> int:
    """Return the bytes of all pieces together, whatever a view's items are."""
    return sum(memoryview(piece).nbytes for piece in pieces)


class Body:
    """Long bytes after a 32-bit length: written in pieces, read as a view, never copied."""

    def __init__(self, what: str, *, most: int) -> None:
        self._what, self._most = what, most

    def _check(self, length: int) -> None:
        if length > self._most:
            raise WireError(f"{self._what} has {length} bytes; at most {self._most} are allowed")

    def write(self, value: Pieces) -> bytes:
        """Return length and bytes."""
        return b"".join(self.pieces(value))

    def pieces(self, value: Pieces) -> Pieces:
        """Return length and the pieces as they are."""
        length = size_of(value)
        self._check(length)
        return length.to_bytes(4, "little"), *value

    def read(self, reader: Reader) -> Pieces:
        """Return one view of the message's own bytes."""
        length = reader.unsigned(4, self._what)
        self._check(length)
        return (reader.take(length, self._what),)
