"""What a federated round over real processes costs beyond the slowest platform's training.

Starts the real coordinator and three platform processes over TLS on loopback. A round's figure is

    round seconds / (1.3 · slowest platform's training seconds + 0.5 s)             goal: <= 1

with the seconds from the end of one round to the end of the next, checkpoint included. The figure
`round.overhead_ratio` is the median over the training rounds of the Complete Journey with the default
plan, where every platform says how long it trained. Beside it stand cases whose handlers train for a
known time (a wait, so that they don't compete for the cores that the measurement needs) and send a
vector of a given size: medians of their rounds.

Run: python benchmarks/round_overhead.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from crossrec_model.config import Plan  # noqa: E402
from crossrec_model.wire import messages as wire  # noqa: E402
from crossrec_model.wire.codec import FloatVector  # noqa: E402
from crossrec_model.wire.contribution import pack  # noqa: E402
from server.tls import make_certificates  # noqa: E402

PLATFORMS = ("A", "B", "C")
RESULTS = ROOT / "benchmarks" / "results" / "round_overhead.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement: the vector's size and the three training times in seconds."""

    megabytes: float
    seconds: tuple[float, float, float]

    @property
    def dimension(self) -> int:
        """The number of float32 parameters."""
        return int(self.megabytes * 2**18)

    @property
    def allowed(self) -> float:
        """The seconds that a round may take."""
        return 1.3 * max(self.seconds) + 0.5


CASES = (
    Case(megabytes=8, seconds=(1.0, 1.5, 2.0)),
    Case(megabytes=8, seconds=(5.0, 5.0, 5.0)),
    Case(megabytes=16, seconds=(1.0, 1.5, 2.0)),
    Case(megabytes=16, seconds=(5.0, 5.0, 5.0)),
)


def coordinator(arguments: list[str], dimension: int) -> int:
    """Be the coordinator, with a first model of random numbers."""
    from server.__main__ import main as serve_coordinator

    def initial(_plan: Plan) -> FloatVector:
        return np.random.default_rng(1).standard_normal(dimension, dtype=np.float32)

    return serve_coordinator(arguments, initial=initial)


def platform(name: str, address: str, ca: Path, dimension: int, seconds: float) -> None:
    """Be a platform that waits in place of training."""
    from clients.flower import serve

    update = np.random.default_rng(ord(name)).standard_normal(dimension) * 1e-3

    def handle(payload: bytes) -> bytes:
        message = wire.decode(payload)
        reply: wire.Reply = wire.Ack()
        if isinstance(message, wire.Hello):
            reply = wire.HelloReply(platform=name, protocol_version=1, software_version="bench")
        elif isinstance(message, wire.Welcome):
            reply = wire.WelcomeReply(
                dimension=dimension, training_metrics=("loss",), evaluation_metrics=()
            )
        elif isinstance(message, wire.TrainRequest):
            time.sleep(seconds)
            contribution = pack(update, 100.0, (0.5,))
            reply = wire.UpdateReply(
                run=message.run, round=message.round, contribution=contribution
            )
        return wire.encode(reply)

    serve(handle, address=address, ca=ca, report=lambda _line: None)


def measure(case: Case, rounds: int) -> list[float]:
    """Return the seconds from round to round of one run, checkpoints included."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tls = make_certificates(folder / "tls", [])
        own = [sys.executable, __file__]
        wanted = ["--port", "0", "--state", str(folder / "state"), "--tls", str(folder / "tls")]
        wanted += ["--platforms", str(len(PLATFORMS)), "--rounds", str(rounds + 1)]
        size = ["--dimension", str(case.dimension)]
        children = [
            subprocess.Popen(
                [*own, "--as-coordinator", *size, "--", *wanted], stdout=subprocess.PIPE, text=True
            )
        ]
        try:
            address = _address(children[0])
            for name, seconds in zip(PLATFORMS, case.seconds, strict=True):
                one = ["--as-platform", name, "--address", address, "--ca", str(tls.ca)]
                children.append(subprocess.Popen([*own, *one, *size, "--seconds", str(seconds)]))
            ends = _round_ends(children[0])
        finally:
            for child in children:
                child.kill()
                child.wait()
    if len(ends) != rounds + 1:
        raise RuntimeError("the run did not finish; see the output above")
    return [after - before for before, after in itertools.pairwise(ends)]


def _round_ends(child: subprocess.Popen[str]) -> list[float]:
    """Return when each round was done and saved, in seconds of the monotonic clock."""
    lines = child.stdout or ()
    return [time.monotonic() for line in lines if line.startswith("round ")]


def _address(child: subprocess.Popen[str]) -> str:
    if child.stdout is None:
        raise RuntimeError("the coordinator's output is not piped")
    for line in child.stdout:
        if line.startswith("coordinator on https://"):
            return line.strip().removeprefix("coordinator on https://")
    raise RuntimeError("the coordinator ended before it listened; see the output above")


def measure_real(rounds: int) -> list[float]:
    """Return the ratio of each training round but the first of the Complete Journey."""
    trained = re.compile(r"round (\d+)/\d+: trained, .* ([0-9.]+) s$")
    slowest: dict[int, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tls = make_certificates(folder / "tls", [])
        python = [sys.executable, "-u", "-m"]
        wanted = [
            "--port",
            "0",
            "--state",
            str(folder / "coordinator"),
            "--tls",
            str(folder / "tls"),
        ]
        wanted += ["--platforms", "3", "--rounds", str(rounds + 3), "--evaluate-every", "0"]
        children = [_piped([*python, "server", *wanted])]
        try:
            address = _address(children[0])
            for name in PLATFORMS:
                one = ["--id", name, "--data", "complete-journey", "--server", f"https://{address}"]
                one += ["--ca", str(tls.ca), "--state", str(folder / "platforms")]
                children.append(_piped([*python, "clients.platform", *one]))
            readers = [ThreadPoolExecutor(1) for _ in PLATFORMS]
            lines = [
                reader.submit(_lines_until, child, f"round {rounds + 2}/")
                for reader, child in zip(readers, children[1:], strict=True)
            ]
            ends = _round_ends(children[0])
            for line in itertools.chain.from_iterable(work.result() for work in lines):
                if found := trained.search(line):
                    number = int(found.group(1))
                    slowest[number] = max(slowest[number], float(found.group(2)))
        finally:
            for child in children:
                child.kill()
                child.wait()
    # Round 1 and the last carry statistics; round 2 also warms everything up.
    seconds = {n: ends[n - 1] - ends[n - 2] for n in range(3, rounds + 3)}
    for number, took in seconds.items():
        print(f"  round {number}: {took:.2f} s, slowest training {slowest[number]:.2f} s")
    return [took / (1.3 * slowest[n] + 0.5) for n, took in seconds.items()]


def _piped(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _lines_until(child: subprocess.Popen[str], last: str) -> list[str]:
    """Read lines up to the one that starts with `last`; the pipe is drained after it too."""
    lines: list[str] = []
    for line in child.stdout or ():
        lines.append(line.rstrip())
        if line.startswith(last):
            break
    return lines


def main() -> int:
    """Measure all cases, print a table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds a case")
    parser.add_argument("--as-coordinator", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--as-platform", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--ca", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dimension", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_coordinator:
        return coordinator(options.rest, options.dimension)
    if options.as_platform:
        platform(
            options.as_platform, options.address, options.ca, options.dimension, options.seconds
        )
        return 0
    ratios = []
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for case in CASES:
        seconds = measure(case, options.rounds)
        median = statistics.median(seconds)
        ratios.append(median / case.allowed)
        print(
            f"{case.megabytes:4g} MB, training {max(case.seconds):.1f} s: round {median:.2f} s "
            f"(worst {max(seconds):.2f}), allowed {case.allowed:.2f}, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print("Complete Journey, default plan:")
    real = measure_real(options.rounds)
    figure = {
        "figure": "round.overhead_ratio",
        "value": round(statistics.median(real), 3),
        "goal": "<=1",
        "command": "python benchmarks/round_overhead.py",
        "seeds": 1,
        "rounds": [round(ratio, 3) for ratio in real],
        "known_times": {
            f"{case.megabytes:g} MB, {max(case.seconds):g} s": round(ratio, 3)
            for case, ratio in zip(CASES, ratios, strict=True)
        },
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps([figure], indent=1) + "\n", encoding="utf-8")
    print(f"round.overhead_ratio {figure['value']} (goal <=1), written to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
