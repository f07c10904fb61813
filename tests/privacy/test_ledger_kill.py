"""SIGKILL at any moment: what was released was charged, and no charge is ever lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossrec_model.privacy.events import GaussianRelease
from crossrec_model.privacy.ledger import LEDGER, Budget, Ledger, Record

ROOT = Path(__file__).parent.parent.parent
KILLS = 25
RUN = bytes(range(16))
EVENT = GaussianRelease(multiplier=1e6)
BUDGET = Budget(epsilon=4.0, delta=1e-5, life_epsilon=4.0)

#: Imports once, then forks a platform for every line that it is sent: 25 starts of an interpreter
#: would take most of the test's time.
FACTORY = """
import os, sys
from pathlib import Path
from crossrec_model.privacy.events import GaussianRelease
from crossrec_model.privacy.ledger import Budget, Ledger
from crossrec_model.privacy.pricing import epsilon

event = GaussianRelease(multiplier=1e6)
budget = Budget(epsilon=4.0, delta=1e-5, life_epsilon=4.0)

def platform():
    released = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ledger = Ledger.open(Path(sys.argv[1]))
    for number in range(1_000_000):
        record = ledger.charge(
            event, run=bytes(range(16)), round=number, what="statistics", budget=budget
        ).record
        # The release: whoever sees it needs to find its charge.
        os.write(released, f"{record.sequence} {record.digest}\\n".encode())
        os.fsync(released)

epsilon([event], 1e-5)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            platform()
        finally:
            os._exit(1)
    print(child, flush=True)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


def _released(path: Path) -> list[tuple[int, str]]:
    """Whole lines only: the last one may have been cut off, then it was seen by nobody."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


@pytest.mark.processes
def test_a_kill_at_any_moment_loses_no_charge(tmp_path: Path) -> None:
    path, seen = tmp_path / LEDGER, tmp_path / "released"
    chance = random.Random(20)
    before: tuple[Record, ...] = ()
    factory = subprocess.Popen(
        [sys.executable, "-c", FACTORY, str(path), str(seen)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert factory.stdin is not None
        assert factory.stdout is not None
        assert factory.stdout.readline() == "ready\n"
        for _ in range(KILLS):
            factory.stdin.write("\n")
            factory.stdin.flush()
            child = int(factory.stdout.readline())
            time.sleep(chance.uniform(0.002, 0.3))
            os.kill(child, signal.SIGKILL)
            assert int(factory.stdout.readline()) == signal.SIGKILL
            with Ledger.open(path) as ledger:
                found = ledger.records
                # Never shrinks, never changes.
                assert found[: len(before)] == before
                for sequence, digest in _released(seen):
                    assert found[sequence - 1].digest == digest
                mine = [r for r in found if r.what == "statistics"]
                assert len(_released(seen)) <= len(mine)
                ledger.charge(EVENT, run=RUN, round=1, what="by the parent", budget=BUDGET)
                before = ledger.records
    finally:
        factory.kill()
        factory.wait(10)
        for stream in (factory.stdin, factory.stdout):
            if stream:
                stream.close()
    released = len(_released(seen))
    statistics = sum(record.what == "statistics" for record in before)
    assert released > 2 * KILLS
    # A kill leaves at most one charge without its release; some did, or the test shows nothing.
    assert released < statistics <= released + KILLS
