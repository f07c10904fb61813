"""What a federation of real processes survives, and what it costs to wait.

    python benchmarks/chaos.py [--runs N] [--first SEED] [--only runs|restart|idle|ports]

Random faults from a seed each (kills, stops, lines that are cut, full disks, damaged checkpoints, clocks,
older rosters); the time from killing the coordinator to the next completed round, less what a round takes;
the processor time of a platform that waits; and a scan of every port of this machine's addresses before and
after the coordinator starts. Every fifth random run is one of private platforms. Logs of runs that failed
are kept in `chaos-logs/`.

Writes results/chaos.json.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import ssl
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT),
    *(str(ROOT / "tests" / part) for part in ("clients", "transport", "chaos")),
]

import faults  # noqa: E402
from federation_stage import Cast, FederationStage  # noqa: E402
from random_run import run  # noqa: E402

from crossrec_model.evaluation.figures import Figure, merge_figures, read_figures, write_figures  # noqa: E402
from server.tls import TlsFiles, make_certificates  # noqa: E402

RESULT: Final = ROOT / "benchmarks" / "results" / "chaos.json"
LOGS: Final = ROOT / "chaos-logs"
COMMAND: Final = "python benchmarks/chaos.py"
KILLS: Final = 5
IDLE_S: Final = 60.0
ROUND: Final = r"coordinator\|round \d+/"


def random_runs(folder: Path, tls: TlsFiles, seeds: range) -> int:
    """How many runs with random faults ended with the right model, after clear stops only."""
    well = 0
    for seed in seeds:
        outcome = run(folder / f"run{seed}", tls, seed, private=seed % 5 == 4)
        print(outcome.line(), flush=True)
        if outcome.problem:
            LOGS.mkdir(exist_ok=True)
            (LOGS / f"{seed}.log").write_text(f"{outcome.line()}\n{outcome.problem}\n{outcome.log}")
            print(f"    {outcome.problem.splitlines()[0]} (chaos-logs/{seed}.log)", flush=True)
        well += not outcome.problem
    return well


def restart_seconds(folder: Path, tls: TlsFiles) -> float:
    """Median seconds from SIGKILL of the coordinator to the next completed round, less a calm round's."""
    cast = Cast(rounds=4 * KILLS, seconds=0.3, dawdle=0.0, flush=0.0)
    with FederationStage(folder / "restart", tls, cast) as stage:
        stage.start()
        mark, calm, waits = stage.expect(ROUND), [], []
        for _ in range(KILLS):
            before = stage.said.times[mark - 1]
            mark = stage.expect(ROUND, after=mark)
            calm.append(stage.said.times[mark - 1] - before)
            killed = time.monotonic()
            faults.kill(stage, "coordinator")
            mark = stage.expect(ROUND, after=stage.said.mark())
            waits.append(stage.said.times[mark - 1] - killed)
        stage.settle()
    took = statistics.median(calm)
    shown = ", ".join(f"{wait:.1f}" for wait in waits)
    print(f"killed {KILLS} times: next round after {shown} s; a calm round takes {took:.2f} s")
    return statistics.median(waits) - took


def idle_cpu_percent(folder: Path, tls: TlsFiles) -> float:
    """Most processor time of a real platform that waits for others, in percent of one core."""
    cast = Cast(private=True, wait=600.0)
    with FederationStage(folder / "idle", tls, cast) as stage:
        stage.start("ABC")
        stage.expect(r"coordinator\|waiting for platforms: 3 of 4")
        time.sleep(5)
        processes = {name: stage.platforms[name].current.child.pid for name in "ABC"}
        before = {name: _processor_s(pid) for name, pid in processes.items()}
        began = time.monotonic()
        time.sleep(IDLE_S)
        passed = time.monotonic() - began
        used = {n: 100 * (_processor_s(pid) - before[n]) / passed for n, pid in processes.items()}
    print("a waiting platform uses " + ", ".join(f"{n} {p:.2f}%" for n, p in used.items()))
    return max(used.values())


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_ports(folder: Path, tls: TlsFiles) -> int:
    """How many ports open when the coordinator starts, on all addresses; each must speak TLS 1.3 alone."""
    with FederationStage(folder / "ports", tls, Cast()) as stage:
        before = {address: scan(address) for address in addresses()}
        stage.start()
        stage.expect(r"coordinator\|round 1/")
        found = {
            (address, port)
            for address in addresses()
            for port in scan(address) - before[address]
            if port in _listening(stage.coordinator.current.child.pid)
        }
        print(f"ports that the coordinator opened: {sorted(found)}")
        for address, port in found:
            _check_tls(address, port, tls)
    return len({port for _, port in found})


def addresses() -> list[str]:
    """This machine's addresses of version 4: loopback, and where others reach it."""
    known = {"127.0.0.1"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            known.add(probe.getsockname()[0])
        except OSError:
            pass
    return sorted(known)


def scan(address: str) -> set[int]:
    """Every port that takes a connection."""

    def some(ports: range) -> list[int]:
        taken = []
        for port in ports:
            with socket.socket() as probe:
                probe.settimeout(2.0)
                if probe.connect_ex((address, port)) == 0:
                    taken.append(port)
        return taken

    parts = [range(first, min(first + 1024, 65_536)) for first in range(1, 65_536, 1024)]
    with ThreadPoolExecutor(8) as pool:
        return {port for part in pool.map(some, parts) for port in part}


def _listening(pid: int) -> set[int]:
    """Ports that a process and its children listen at."""
    family = {pid, *(int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())}
    sockets = set()
    for one in family:
        for handle in Path(f"/proc/{one}/fd").iterdir():
            try:
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(handle))
            except OSError:
                continue
            if found:
                sockets.add(found[1])
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {int(r[1].rpartition(":")[2], 16) for r in rows if r[3] == "0A" and r[9] in sockets}


def _check_tls(address: str, port: int, tls: TlsFiles) -> None:
    """TLS 1.3 is spoken, 1.2 and plain HTTP are not; SystemExit otherwise."""
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.check_hostname = False
    with (
        socket.create_connection((address, port), 5) as plain,
        context.wrap_socket(plain) as spoken,
    ):
        if spoken.version() != "TLSv1.3":
            raise SystemExit(f"port {port} speaks {spoken.version()}")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with socket.create_connection((address, port), 5) as plain, context.wrap_socket(plain):
            raise SystemExit(f"port {port} speaks TLS 1.2")
    except (ssl.SSLError, OSError):
        pass
    with socket.create_connection((address, port), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = plain.recv(64)
        except OSError:
            answer = b""
        if answer.startswith(b"HTTP"):
            raise SystemExit(f"port {port} speaks plain HTTP")


def main() -> int:
    """Measure what was asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="how many random runs")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--only", choices=("runs", "restart", "idle", "ports"))
    options = parser.parse_args()
    wanted = {options.only} if options.only else {"runs", "restart", "idle", "ports"}
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tls = make_certificates(folder / "tls", [])
        if "ports" in wanted:
            ports = float(open_ports(folder, tls))
            figures.append(_figure("ops.open_ports", ports, "<=1"))
        if "idle" in wanted:
            percent = idle_cpu_percent(folder, tls)
            figures.append(_figure("ops.idle_cpu_percent", percent, "<=1"))
        if "restart" in wanted:
            seconds = restart_seconds(folder, tls)
            figures.append(_figure("ops.restart_seconds", seconds, "<=10", seeds=KILLS))
        if "runs" in wanted:
            seeds = range(options.first, options.first + options.runs)
            well = random_runs(folder, tls, seeds)
            figures.append(_figure("ops.chaos_runs_ok", well, ">=50", seeds=options.runs))
    for figure in figures:
        print(f"{figure.figure} {figure.value:.2f} (goal {figure.goal})")
    older = read_figures(RESULT) if RESULT.exists() else []
    write_figures(RESULT, merge_figures(older, figures))
    return 0 if all(figure.met for figure in figures) else 1


def _figure(name: str, value: float, goal: str, *, seeds: int = 1) -> Figure:
    return Figure(figure=name, value=round(value, 3), goal=goal, command=COMMAND, seeds=seeds)


if __name__ == "__main__":
    sys.exit(main())
