"""Starts workers, and turns a hang, a dead process or an exception into a saved input.

An input hangs if it takes more than `LIMIT_S` seconds of the processor, or `WAIT_S` seconds on the clock,
twice: a busy machine may stop a process for long, so it is tried once more by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from board import TRYING, Board, Place
from worker import Defect, MemoryTakenError, Outcome, save

LIMIT_S: Final = 5.0
WAIT_S: Final = 60.0
#: Imports and seeds take no longer than this, on a busy machine too.
_PREPARING_S: Final = 300.0
_LOOK_EVERY_S: Final = 0.1
_WORKER: Final = Path(__file__).with_name("worker.py")
_ROOT: Final = Path(__file__).resolve().parents[2]
_ENVIRONMENT: Final = {
    "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    # Two processes use two cores, and little address space.
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

Job = dict[str, Any]


@dataclass(kw_only=True)
class Ended:
    """How a worker ended: well, or where it was when it died or was killed."""

    outcomes: list[Outcome] = field(default_factory=list)
    place: Place | None = None
    reason: str = ""


def run(jobs: Sequence[Job], folder: Path, *, processes: int = 2) -> list[Outcome]:
    """Do jobs, dealt out over so many processes; defects are in the outcomes and in `folder`."""
    hands = [list(jobs[number::processes]) for number in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        done = pool.map(lambda hand: _supervised(hand, folder), hands)
        return [outcome for outcomes in done for outcome in outcomes]


def _supervised(jobs: list[Job], folder: Path) -> list[Outcome]:
    """Do jobs one after the other, going on behind an input that stopped the process."""
    outcomes: list[Outcome] = []
    while jobs:
        ended = _worker(jobs, folder)
        for outcome in ended.outcomes:
            outcome.defects = [one for one in outcome.defects if _again(one, folder)]
        outcomes += ended.outcomes
        if ended.place is None:
            return outcomes
        jobs = jobs[len(ended.outcomes) :]
        outcome, rest = _stopped(jobs[0], ended, folder)
        outcomes.append(outcome)
        jobs = [*rest, *jobs[1:]]
    return outcomes


def _again(defect: Defect, folder: Path) -> bool:
    """Whether memory is taken again by the same input alone: the system counts it in lumps."""
    if defect.kind != MemoryTakenError.__name__:
        return True
    ended = _worker([{"target": defect.target, "replay": defect.file}], folder)
    return ended.place is not None or any(outcome.defects for outcome in ended.outcomes)


def _stopped(job: Job, ended: Ended, folder: Path) -> tuple[Outcome, list[Job]]:
    """What a job came to that was stopped by an input, and what is left of it."""
    place = ended.place
    if place is None:
        raise ValueError("the worker ended well")
    outcome = Outcome(target=job["target"], inputs=place.count + 1)
    file = save(folder, job["target"], place.data)
    if ended.reason == "hang" and "replay" not in job:
        again = _worker([{"target": job["target"], "replay": str(file)}], folder)
        outcome.defects += [defect for one in again.outcomes for defect in one.defects]
        if again.place is None:
            ended.reason = ""
    if ended.reason:
        outcome.defects.append(
            Defect(target=job["target"], kind=ended.reason, text=ended.reason, file=str(file))
        )
    left = job.get("count", 0) - outcome.inputs
    again_seed = f"{job.get('seed')}/after {outcome.inputs}"
    rest = {"target": job["target"], "seed": again_seed, "count": left, "bombs": False}
    return outcome, [rest] if left > 0 else []


def _worker(jobs: Sequence[Job], folder: Path) -> Ended:
    """Run one process until it is done, dies or hangs."""
    with tempfile.TemporaryDirectory() as scratch:
        place, listed = Path(scratch) / "board", Path(scratch) / "jobs.json"
        board = Board(place, create=True)
        listed.write_text(json.dumps(list(jobs)), encoding="utf-8")
        output, errors = Path(scratch) / "out", Path(scratch) / "err"
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, str(_WORKER), str(place), str(listed), str(folder)],
                stdout=out,
                stderr=err,
                env=os.environ | _ENVIRONMENT,
            )
            try:
                reason = _watched(process, board)
            finally:
                process.kill()
                process.wait()
        ended = Ended(outcomes=[_outcome(line) for line in output.read_text().splitlines()])
        if reason:
            ended.place, ended.reason = board.read(), reason
            if ended.place.state != TRYING:
                last = errors.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the worker broke before it tried an input: {last}")
        board.close()
        return ended


def _watched(process: subprocess.Popen[bytes], board: Board) -> str:
    """Return "" once the process ended well, else why it did not."""
    seen, since, used = board.read(), time.monotonic(), _processor_s(process.pid)
    while process.poll() is None:
        time.sleep(_LOOK_EVERY_S)
        now = board.read()
        if now.ticks != seen.ticks:
            seen, since, used = now, time.monotonic(), _processor_s(process.pid)
        trying = seen.state == TRYING
        if time.monotonic() - since > (WAIT_S if trying else _PREPARING_S):
            return "hang"
        if trying and _processor_s(process.pid) - used > LIMIT_S:
            return "hang"
    return "" if process.returncode == 0 else f"ended by signal or exit {process.returncode}"


def _processor_s(pid: int) -> float:
    """Seconds of the processor that a process and its ended children have used; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _outcome(line: str) -> Outcome:
    found = json.loads(line)
    return Outcome(**{**found, "defects": [Defect(**defect) for defect in found["defects"]]})
