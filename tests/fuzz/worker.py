"""Tries inputs on targets, in a process of its own under limits of memory; `watchdog` starts it.

    python worker.py BOARD JOBS FOLDER

`JOBS` is a JSON file: a list of {"target", "seed", "count"}, or of {"target", "replay"} with the path of
a saved input. For each job one JSON line on standard output says what came of it. Inputs that show a
defect are written to `FOLDER`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from board import PREPARING, TRYING, Board
from mutators import mutate
from targets import Check, Target, all_targets, judge

#: Address space that all inputs together may add to what a target's own seeds need: 1 GiB.
_ADDRESS_SPACE: Final = 1 << 30
#: Defects that are kept of each target.
_MOST_DEFECTS: Final = 20
#: Accepted inputs that are changed further.
_POOL: Final = 64
_LONGEST_IN_POOL: Final = 20_000
_STATUS: Final = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)


class MemoryTakenError(Exception):
    """An input after which the process had taken more memory than its target may."""


@dataclass(frozen=True, kw_only=True)
class Defect:
    """What an input did, and where it is saved."""

    target: str
    kind: str
    text: str
    file: str


@dataclass(kw_only=True)
class Outcome:
    """What came of a job."""

    target: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    defects: list[Defect] = field(default_factory=list)


def save(folder: Path, target: str, data: bytes) -> Path:
    """Write an input to a file named after its contents."""
    path = folder / target / sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _largest_memory() -> int:
    """The most memory that this process ever had, in bytes; `getrusage` starts with its parent's."""
    status = os.pread(_STATUS, 4096, 0)
    at = status.index(b"VmHWM:")
    return int(status[at + 6 : status.index(b"kB", at)]) << 10


def _inputs(target: Target, job: dict[str, Any], found: list[bytes]) -> Iterator[bytes]:
    """Bombs, then changed seeds; the same ones for the same job."""
    if "replay" in job:
        yield Path(job["replay"]).read_bytes()
        return
    rng, seeds = random.Random(f"{job['seed']}/{target.name}"), list(target.seeds())
    bombs = list(target.bombs()) if job.get("bombs", True) else []
    yield from bombs
    for _ in range(job["count"] - len(bombs)):
        yield mutate(seeds, found, target.changes, rng)


def _kept(found: list[bytes], data: bytes, count: int) -> None:
    """Keep an accepted input for further changes, in place of an older one when there are many."""
    if len(data) > _LONGEST_IN_POOL:
        return
    if len(found) < _POOL:
        found.append(data)
    else:
        found[count % _POOL] = data


def work(target: Target, job: dict[str, Any], number: int, board: Board, folder: Path) -> Outcome:
    """Do one job."""
    outcome, found = Outcome(target=target.name), list[bytes]()
    with tempfile.TemporaryDirectory() as scratch:
        check = target.check(Path(scratch))
        _warm_up(target, check)
        _limit_memory()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            started, largest = time.monotonic(), _largest_memory()
            for data in _inputs(target, job, found):
                board.show(TRYING, number, outcome.inputs, data)
                began = time.monotonic()
                accepted, defect = _tried(check, data)
                outcome.accepted += accepted
                outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - began)
                outcome.inputs += 1
                before, largest = largest, _largest_memory()
                if defect is None and largest - before > target.memory_mib << 20:
                    taken = largest - before >> 20
                    defect = MemoryTakenError(f"{taken} MiB for {len(data)} bytes")
                if defect is not None:
                    _note(outcome, target, defect, data, folder)
                elif accepted:
                    _kept(found, data, outcome.accepted)
            outcome.seconds = time.monotonic() - started
        board.show(PREPARING, number, outcome.inputs)
    return outcome


def _warm_up(target: Target, check: Check) -> None:
    """Try every seed: each must be accepted, and what libraries take once is then taken."""
    for seed in target.seeds():
        if not judge(check, seed):
            raise RuntimeError(f"{target.name} refuses its seed {seed[:80]!r}")


def _tried(check: Check, data: bytes) -> tuple[bool, BaseException | None]:
    """Whether an input was accepted, and what it raised if that is a defect."""
    try:
        return judge(check, data), None
    except KeyboardInterrupt:
        raise
    # A panic of a library in Rust is no Exception.
    except BaseException as error:
        return False, error


def _note(
    outcome: Outcome, target: Target, error: BaseException, data: bytes, folder: Path
) -> None:
    if len(outcome.defects) < _MOST_DEFECTS:
        own = traceback.extract_tb(error.__traceback__)[-1:]
        where = f" at {Path(own[0].filename).name}:{own[0].lineno}" if own else ""
        outcome.defects.append(
            Defect(
                target=target.name,
                kind=type(error).__name__,
                text=f"{type(error).__name__}{where}: {str(error)[:300]}",
                file=str(save(folder, target.name, data)),
            )
        )


def main(arguments: list[str]) -> int:
    """Do all jobs."""
    board, jobs, folder = Board(Path(arguments[0])), Path(arguments[1]), Path(arguments[2])
    # Files are written with every input: in memory, where there is such a place.
    if Path("/dev/shm").is_dir():
        tempfile.tempdir = tempfile.mkdtemp(prefix="crossrec-fuzz-", dir="/dev/shm")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        board.show(PREPARING, 0, 0)
        targets = {target.name: target for target in all_targets()}
        for number, job in enumerate(json.loads(jobs.read_text(encoding="utf-8"))):
            board.show(PREPARING, number, 0)
            outcome = work(targets[job["target"]], job, number, board, folder)
            print(json.dumps(asdict(outcome)), flush=True)
    finally:
        if tempfile.tempdir is not None:
            shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
