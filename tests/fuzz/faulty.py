"""A worker whose targets are bad on purpose: each is so on the input `bad`, the third of its job."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import targets
import worker
from targets import Check, Target


def _take(mebibytes: int) -> None:
    taken = bytearray(mebibytes << 20)
    taken[::4096] = b"x" * len(taken[::4096])


FAULTS: dict[str, Callable[[], object]] = {
    "exception": lambda: {}["nothing"],
    "hang": lambda: time.sleep(60),
    "loop": lambda: sum(1 for _ in iter(int, 1)),
    "death": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: _take(100),
    "huge": lambda: bytearray(1 << 45),
    "warning": lambda: warnings.warn("odd", UserWarning, stacklevel=1),
}


def _checked(kind: str) -> Callable[[Path], Check]:
    def check(data: bytes) -> None:
        if data == b"bad":
            FAULTS[kind]()
        if kind == "seed":
            raise targets.CrossrecError("a seed that is refused")

    return lambda _folder: check


def _change(data: bytes, _rng: object) -> bytes:
    return data


def _target(kind: str) -> Target:
    bombs = [b"one", b"two", b"bad"]
    return Target(
        name=kind,
        seeds=lambda: [b"seed"],
        check=_checked(kind),
        changes=(_change,),
        bombs=lambda: bombs,
    )


worker.all_targets = lambda: tuple(_target(kind) for kind in (*FAULTS, "seed"))  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:]))
