"""Shifts a child process's wall clock by the seconds in a file, which may change while it runs.

Python imports this by its name when it stands on the path. `time.monotonic` stays as it is, as it does
when a real clock jumps. `datetime` is exchanged in our modules and Flower's alone: libraries in other
languages recognise the real class only.
"""

from __future__ import annotations

import datetime
import importlib.machinery
import mmap
import os
import struct
import sys
import time
from types import ModuleType, SimpleNamespace

SHIFTED = ("flwr", "clients", "server", "crossrec_model")
REAL = datetime.datetime


class Same(type):
    """Instances of the real class are instances of the shifted one."""

    def __instancecheck__(cls, other: object) -> bool:
        return isinstance(other, REAL)


class ShiftedDatetime(REAL, metaclass=Same):
    """The real class with another idea of now."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return REAL.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> datetime.datetime:
        return REAL.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


class Finder:
    """Exchanges `datetime` in each module of ours right after it was loaded."""

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        if name.partition(".")[0] not in SHIFTED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        load = spec.loader.exec_module

        def exchanged(module: ModuleType) -> None:
            load(module)
            found = vars(module).get("datetime")
            if found is REAL:
                module.datetime = ShiftedDatetime
            elif found is datetime:
                module.datetime = SimpleNamespace(**{**vars(datetime), "datetime": ShiftedDatetime})

        spec.loader.exec_module = exchanged
        return spec


def _install(path: str) -> None:
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time
    time.time = lambda: real() + struct.unpack("<d", shared[:8])[0]
    time.time_ns = lambda: int(time.time() * 1e9)
    sys.meta_path.insert(0, Finder())


if _path := os.environ.get("CROSSREC_CHAOS_CLOCK"):
    _install(_path)
