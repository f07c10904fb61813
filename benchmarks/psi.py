"""Private set intersection: speed beside openmined-psi and beside libsodium's bare limit, and memory.

All run on the same cores, one after the other, in turns. `--peer-python` names a Python that has
openmined-psi (it pins a protobuf that Flower can't be with); without it a throw-away environment is made.
Writes benchmarks/results/psi.json.

Ours: both sides of one session in this process, from digests to the compared sets: hashing, padding,
shuffling, sealing, opening, checks. openmined-psi: setup message, request, answer and intersection, of
identifiers of the same number. The bare limit: four multiplications a pair of elements and nothing else, on
all cores. Memory: one side with a million identifiers read as rows, in a process of its own; a small
process plays the other side with the same number of elements.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from crossrec_model.evaluation.figures import Figure, write_figures
from crossrec_model.linkage.compared import Compared
from crossrec_model.linkage.elements import Person, people
from crossrec_model.linkage.group import Cores, Rows, Scalar
from crossrec_model.linkage.identifiers import Rules
from crossrec_model.linkage.intersection import Exchanging, Side
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.policy import Past, Policy
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.roster import Roster

RESULTS = Path(__file__).parent / "results" / "psi.json"
COMMAND = "python benchmarks/psi.py"
SYSTEM = SystemRandomness()
POLICY = Policy(least=0, most=1000, least_new=0)
PEER = """
import sys, time
import private_set_intersection.python as psi
n = int(sys.argv[1])
one = [f"user{k}@example.org" for k in range(n)]
two = [f"user{k}@example.org" for k in range(n // 2, n + n // 2)]
begin = time.perf_counter()
client, server = psi.client.CreateWithNewKey(True), psi.server.CreateWithNewKey(True)
setup = server.CreateSetupMessage(1e-9, n, two, psi.DataStructure.RAW)
answer = server.ProcessRequest(client.CreateRequest(one))
found = client.GetIntersection(setup, answer)
seconds = time.perf_counter() - begin
assert len(found) == n - n // 2, len(found)
print(seconds)
"""


class NoMemory:
    """Nothing is remembered from one session to the next."""

    def past(self, partner: str, purpose: Purpose) -> Past:
        return Past()

    def record(self, partner: str, purpose: Purpose, past: Past) -> None:
        return None


def digests(first: int, count: int) -> Rows:
    """uint8 [count, 32]."""
    made = bytearray()
    for number in range(first, first + count):
        made += hashlib.sha256(b"user%d@example.org" % number).digest()
    return np.frombuffer(bytes(made), dtype=np.uint8).reshape(count, 32)


def sides() -> tuple[Side, Side]:
    """Two platforms of one roster; their keys are the same in every process."""
    keys = [IdentityKey.from_bytes(bytes([number]) * 32) for number in (1, 2, 3)]
    members = tuple(Member(name, key.public) for name, key in zip("ABC", keys, strict=True))
    roster = Roster(federation="bench", version=1, members=members, signer=keys[2].public)
    return tuple(  # type: ignore[return-value]
        Side(roster=roster, platform=name, key=key)
        for name, key in zip("AB", keys[:2], strict=True)
    )


def link(one: Rows, two: Rows, cores: Cores) -> tuple[Compared, Compared]:
    """Run one session of both sides."""
    side_a, side_b = sides()
    now = int(time.time())
    to_b = POLICY.permit(NoMemory(), "B", Purpose.USERS, one, now)
    to_a = POLICY.permit(NoMemory(), "A", Purpose.USERS, two, now)
    offered, offer = side_a.offer(one, to_b, SYSTEM)
    accepted, accept = side_b.accept(offer, two, to_a, SYSTEM)
    opening, announcement = offered.accepted(accept)
    b, announced = accepted.announced(announcement)
    a = opening.announced(announced)
    to_a_box: SimpleQueue[bytes] = SimpleQueue()
    to_b_box: SimpleQueue[bytes] = SimpleQueue()

    def play(state: Exchanging, out: SimpleQueue[bytes], box: SimpleQueue[bytes]) -> Compared:
        state.advance(cores, out.put, box.get)
        return state.compare()

    # Both at once, as on two machines; they share the cores.
    with ThreadPoolExecutor(2) as both:
        at_a = both.submit(play, a, to_b_box, to_a_box)
        at_b = both.submit(play, b, to_a_box, to_b_box)
        return at_a.result(), at_b.result()


def ours(count: int) -> float:
    """Seconds of a session of count × count, half in common."""
    one, two = digests(0, count), digests(count // 2, count)
    with Cores() as cores:
        begin = time.perf_counter()
        a, b = link(one, two, cores)
        seconds = time.perf_counter() - begin
    assert len(a.elements) == len(b.elements) == count - count // 2
    return seconds


def peer(python: str, count: int) -> float:
    """Seconds of openmined-psi for the same."""
    done = subprocess.run(
        [python, "-c", PEER, str(count)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def bare(count: int) -> float:
    """Seconds of 4 · count multiplications on all cores, from a sample of an eighth."""
    scalar, sample = Scalar(os.urandom(64)), max(4096, count // 8)
    with Cores() as cores:
        points = cores.blind(digests(0, sample), scalar)
        begin = time.perf_counter()
        for _ in range(4):
            points = cores.multiply(points, scalar)
        return (time.perf_counter() - begin) * count / sample


def rows(first: int, count: int) -> Iterator[Person]:
    """The users' file, row by row."""
    for number in range(first, first + count):
        yield Person(user=f"u{number}", email=f"user{number}@example.org", phone="", consent=True)


def one_side(pipe: Connection, initiates: bool, count: int) -> None:
    """Play one side over a pipe; send the peak of resident memory at the end."""
    me = sides()[0 if initiates else 1]
    partner = "B" if initiates else "A"
    own = people(rows(0 if initiates else count // 2, count), Rules()).digests
    permit = POLICY.permit(NoMemory(), partner, Purpose.USERS, own, int(time.time()))
    if initiates:
        offered, offer = me.offer(own, permit, SYSTEM)
        pipe.send_bytes(offer)
        opening, announcement = offered.accepted(pipe.recv_bytes())
        pipe.send_bytes(announcement)
        state = opening.announced(pipe.recv_bytes())
    else:
        accepted, accept = me.accept(pipe.recv_bytes(), own, permit, SYSTEM)
        pipe.send_bytes(accept)
        state, announced = accepted.announced(pipe.recv_bytes())
        pipe.send_bytes(announced)
    with Cores() as cores:
        state.advance(cores, pipe.send_bytes, pipe.recv_bytes)
    assert len(state.compare().elements) == count - count // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send_bytes(json.dumps({"peak": peak}).encode())


def memory(count: int) -> float:
    """Peak MiB of the larger of two processes that link count × count."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=one_side, args=(ends[k][1], k == 0, count)) for k in range(2)]
    for worker in workers:
        worker.start()
    a, b = ends[0][0], ends[1][0]

    def relay(source: Connection, target: Connection) -> float:
        while not (frame := source.recv_bytes()).startswith(b"{"):
            target.send_bytes(frame)
        return float(json.loads(frame)["peak"])

    # A thread a direction, so that a full pipe stops nobody.
    with ThreadPoolExecutor(2) as both:
        peaks = [both.submit(relay, *way) for way in ((a, b), (b, a))]
        largest = max(peak.result() for peak in peaks)
    for worker in workers:
        worker.join()
    return largest


def peer_python(scratch: Path) -> str:
    """Make an environment with openmined-psi."""
    subprocess.run([sys.executable, "-m", "venv", str(scratch)], check=True)
    python = str(scratch / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "openmined-psi==2.0.6"], check=True)
    return python


def main() -> int:
    """Measure, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--million", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peer-python", help="a Python that has openmined-psi")
    parser.add_argument("--no-memory", action="store_true", help="leave out the million")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"ours": [], "peer": [], "bare": []}
    with tempfile.TemporaryDirectory() as scratch:
        python = options.peer_python or peer_python(Path(scratch) / "peer")
        for turn in range(options.turns):
            times["bare"].append(bare(options.count))
            times["ours"].append(ours(options.count))
            times["peer"].append(peer(python, options.count))
            print(
                f"turn {turn}: { ({k: round(v[-1], 2) for k, v in times.items()}) } s", flush=True
            )
    ratios = {
        "psi.speedup_vs_openmined_100k": (
            statistics.median(p / o for p, o in zip(times["peer"], times["ours"], strict=True)),
            ">=1.5",
        ),
        "psi.ratio_to_bare_limit": (
            statistics.median(b / o for b, o in zip(times["bare"], times["ours"], strict=True)),
            ">=0.8",
        ),
    }
    if not options.no_memory:
        ratios["psi.peak_mib_1m"] = (memory(options.million), "<=500")
    figures = [
        Figure(figure=name, value=round(value, 3), goal=goal, command=COMMAND, seeds=options.turns)
        for name, (value, goal) in ratios.items()
    ]
    write_figures(options.out, figures)
    for figure in figures:
        print(f"{figure.figure} {figure.value} (goal {figure.goal})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
