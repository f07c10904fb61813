"""A file that a worker and its watchdog share: which input is being tried, and how far it has come."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutators import MOST_BYTES

_HEAD: Final = struct.Struct("<QIIII")
_SIZE: Final = _HEAD.size + (MOST_BYTES << 1)
#: Nothing is being tried: the worker imports, or makes seeds.
PREPARING: Final = 0
TRYING: Final = 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is: `ticks` grows with each input, `job` and `count` say which one it is."""

    ticks: int
    state: int
    job: int
    count: int
    data: bytes


class Board:
    """The shared file; whoever makes it gives its path to the other."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._ticks = 0

    def show(self, state: int, job: int, count: int, data: bytes = b"") -> None:
        """Say what is being tried from now on."""
        self._ticks += 1
        data = data[: _SIZE - _HEAD.size]
        self._map[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._map, 0, self._ticks, state, job, count, len(data))

    def read(self) -> Place:
        """Return what was said last."""
        ticks, state, job, count, length = _HEAD.unpack_from(self._map, 0)
        data = bytes(self._map[_HEAD.size : _HEAD.size + length])
        return Place(ticks=ticks, state=state, job=job, count=count, data=data)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
