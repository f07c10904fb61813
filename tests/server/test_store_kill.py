"""SIGKILL at any moment: a list that was acknowledged is the one that is found, on either database."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossrec_model.secagg.messages import Kind
from server.store import Store

ROOT = Path(__file__).parent.parent.parent
KILLS = 12
RUN = bytes(range(16))

#: Imports once, then forks a coordinator for every line that it is sent.
FACTORY = """
import json, os, sys
from crossrec_model.secagg.messages import Kind
from server.checkpoint import RoundRecord
from server.store import Store

RUN = bytes(range(16))

def coordinator(first):
    told = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with Store.open(sys.argv[1]) as store:
        store.begin_run(RUN, b"{}")
        openings = store.openings(RUN)
        for number in range(first, 10**6):
            platforms = tuple(f"P{number + n}" for n in range(3))
            openings.begin(Kind.TRAIN, number, platforms)
            # The list goes out: from now on it may never be another one.
            os.write(told, (json.dumps(["opened", number, platforms]) + "\\n").encode())
            store.save_round(RUN, RoundRecord(
                round=number, platforms=platforms, seconds=1.0, training={}, evaluation={}))
            os.write(told, (json.dumps(["finished", number, platforms]) + "\\n").encode())

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            coordinator(int(line))
        finally:
            os._exit(1)
    print(child, flush=True)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


def _told(path: Path) -> list[tuple[str, int, tuple[str, ...]]]:
    """Whole lines only: one that was cut off was seen by nobody."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(what, number, tuple(names)) for what, number, names in map(json.loads, lines)]


@pytest.mark.processes
def test_a_kill_at_any_moment_loses_no_opening_and_no_round(url: str, tmp_path: Path) -> None:
    told, chance = tmp_path / "told", random.Random(7)
    Store.open(url).close()
    factory = subprocess.Popen(
        [sys.executable, "-c", FACTORY, url, str(told)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert factory.stdin is not None
        assert factory.stdout is not None
        assert factory.stdout.readline() == "ready\n"
        for kill in range(KILLS):
            first = 1 + max((number for _, number, _ in _told(told)), default=0)
            before = len(_told(told))
            factory.stdin.write(f"{first}\n")
            factory.stdin.flush()
            child = int(factory.stdout.readline())
            end = time.monotonic() + 60
            # The first kills may come before anything was written.
            while kill > 2 and len(_told(told)) < before + 3 and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
            assert int(factory.stdout.readline()) == signal.SIGKILL
            _check(url, told, kill + 1)
    finally:
        factory.kill()
        factory.wait(10)
        for stream in (factory.stdin, factory.stdout):
            if stream:
                stream.close()
    assert len(_told(told)) > 2 * KILLS


def _check(url: str, told: Path, kills: int) -> None:
    opened = [(number, names) for what, number, names in _told(told) if what == "opened"]
    finished = [(number, names) for what, number, names in _told(told) if what == "finished"]
    # Patient: PostgreSQL notices a moment later that a client is gone, and drops its lock then.
    with Store.open(url, patience_s=60) as store:
        openings, rounds = store.openings(RUN), store.rounds(RUN)
        kept = [(record.round, record.platforms) for record in rounds]
        # A kill leaves at most one round that stands there and was not acknowledged.
        assert set(finished) <= set(kept)
        assert len(kept) <= len(finished) + kills
        if opened:
            number, names = opened[-1]
            # The next list may be there too: killed before it could be told, it went to nobody.
            following = openings.of(Kind.TRAIN, number + 1)
            assert openings.of(Kind.TRAIN, number) == names or following is not None
        # All in one piece, and nothing half-written.
        assert all(len(record.platforms) == 3 for record in rounds)
