"""The group ristretto255 (RFC 9496), the only file that touches libsodium.

Every operation is libsodium's: hashing to the group, multiplication, the check of an encoding. What
stands here hands it arrays [n, 32] of bytes without a copy. A call lets other threads run meanwhile, so a
pool of threads keeps several cores busy and nothing is sent between processes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from types import TracebackType
from typing import Any, Final, NoReturn, Self, final

import numpy as np
import numpy.typing as npt

# The package first: it starts libsodium.
import rbcl as _rbcl
from rbcl._sodium import _sodium

from crossrec_model.linkage.errors import PointError
from crossrec_model.linkage.messages import POINT_BYTES, PROTOCOL, VERSION

#: Points, digests or scalars: uint8 [n, 32].
Rows = npt.NDArray[np.uint8]
WIDE_BYTES: Final = 64
#: Rows that one task of the pool takes: long enough to start, short enough to share out.
CHUNK: Final = 256
_DOMAIN: Final = f"{PROTOCOL}/{VERSION}/ristretto255".encode().ljust(WIDE_BYTES, b"\0")


def _function(name: str, arguments: int) -> Callable[..., int]:
    # By item, not by attribute: a function object of our own, whose types bind nobody else.
    function = _sodium[name]
    function.argtypes, function.restype = [ctypes.c_void_p] * arguments, ctypes.c_int
    found: Callable[..., int] = function
    return found


_FROM_HASH: Final = _function("crypto_core_ristretto255_from_hash", 2)
_MULTIPLY: Final = _function("crypto_scalarmult_ristretto255", 3)
_REDUCE: Final = _function("crypto_core_ristretto255_scalar_reduce", 2)
_IS_VALID: Final = _function("crypto_core_ristretto255_is_valid_point", 1)
# The binding leaves the library's file behind at every start; it is loaded, so it may go.
with suppress(OSError):
    os.unlink(_sodium._name)
BINDING: Final = _rbcl.__name__


@final
class Scalar:
    """A secret factor. It shows itself nowhere and can't be pickled or copied."""

    __slots__ = ("_buffer",)

    def __init__(self, wide: bytes) -> None:
        """Reduce 64 uniform bytes; raises ValueError for another length, or the one that gives 0."""
        if len(wide) != WIDE_BYTES:
            raise ValueError(f"{len(wide)} bytes for a scalar; {WIDE_BYTES} are needed")
        source = ctypes.create_string_buffer(wide, WIDE_BYTES)
        self._buffer = ctypes.create_string_buffer(POINT_BYTES)
        _REDUCE(ctypes.addressof(self._buffer), ctypes.addressof(source))
        if not any(self._buffer.raw):
            raise ValueError("the scalar is 0; draw another")

    @property
    def address(self) -> int:
        """Where libsodium finds it, for as long as this object lives."""
        return ctypes.addressof(self._buffer)

    def __repr__(self) -> str:
        return "Scalar(secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret scalar is not pickled or copied")


@final
class Cores:
    """Several cores, for the time of the context."""

    def __init__(self, count: int | None = None) -> None:
        self._count = count or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="linkage")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def blind(self, digests: Rows, scalar: Scalar) -> Rows:
        """Hash every digest uint8 [n, 32] to the group and multiply: points uint8 [n, 32]."""

        def work(source: Rows, target: Rows) -> None:
            _hash_into(source, target)
            _multiply_into(target, scalar, target)

        return self._spread(work, digests)

    def multiply(self, points: Rows, scalar: Scalar) -> Rows:
        """Multiply every point uint8 [n, 32].

        Raises:
            PointError: if one is not canonical, no point, or the identity.
        """

        def work(source: Rows, target: Rows) -> None:
            _multiply_into(source, scalar, target)

        return self._spread(work, points)

    def _spread(self, work: Callable[[Rows, Rows], None], rows: Rows) -> Rows:
        source = np.ascontiguousarray(rows)
        target = np.empty_like(source)
        tasks = [
            self._pool.submit(work, source[at : at + CHUNK], target[at : at + CHUNK])
            for at in range(0, len(source), CHUNK)
        ]
        errors = [task.exception() for task in tasks]
        for error in errors:
            if error is not None:
                raise error
        return target


def hash_to_group(digests: Rows) -> Rows:
    """Hash every digest uint8 [n, 32] to the group: points uint8 [n, 32]."""
    points = np.empty_like(digests)
    _hash_into(np.ascontiguousarray(digests), points)
    return points


def is_valid(point: bytes) -> bool:
    """Whether 32 bytes are the one encoding of a point other than the identity."""
    if len(point) != POINT_BYTES or not any(point):
        return False
    buffer = ctypes.create_string_buffer(point, POINT_BYTES)
    return _IS_VALID(ctypes.addressof(buffer)) == 1


def from_wide(wide: bytes) -> bytes:
    """Map 64 uniform bytes to a point (RFC 9496, 4.3.4): 32 bytes."""
    source = ctypes.create_string_buffer(wide, WIDE_BYTES)
    target = ctypes.create_string_buffer(POINT_BYTES)
    _FROM_HASH(ctypes.addressof(target), ctypes.addressof(source))
    return target.raw


def _hash_into(digests: Rows, points: Rows) -> None:
    hasher, width = hashlib.sha512(_DOMAIN), digests.shape[1]
    raw = digests.tobytes()
    wide = bytearray()
    for at in range(0, len(raw), width):
        one = hasher.copy()
        one.update(raw[at : at + width])
        wide += one.digest()
    buffer: Any = (ctypes.c_char * len(wide)).from_buffer(wide)
    source, count = ctypes.addressof(buffer), len(points)
    sources = range(source, source + WIDE_BYTES * count, WIDE_BYTES)
    # Each returns 0, so that all are asked for.
    any(map(_FROM_HASH, _addresses(points), sources))


def _multiply_into(points: Rows, scalar: Scalar, results: Rows) -> None:
    # Refused are what is not canonical or no point, and a result that is the identity.
    if any(map(_MULTIPLY, _addresses(results), repeat(scalar.address), _addresses(points))):
        raise PointError(
            "a point is malformed or the identity; the other side runs other software, or cheats"
        )


def _addresses(rows: Rows) -> range:
    start = rows.ctypes.data
    return range(start, start + POINT_BYTES * len(rows), POINT_BYTES)
