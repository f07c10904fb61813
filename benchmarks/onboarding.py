"""From two fresh folders to the first federated round: how many commands two operators type.

Runs them as real processes, in the README's order and words but for the data (a few made-up rows of three
platforms) and a free port. Platforms B and C type what A types; A's and the coordinator's are counted.

    python benchmarks/onboarding.py

Writes results/onboarding.json.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from crossrec_model.evaluation.figures import Figure, write_figures

RESULTS = Path(__file__).resolve().parent / "results"
COMMAND = "python benchmarks/onboarding.py"
PATIENCE_S = 240.0
PLATFORMS = "ABC"
USERS, ITEMS, EVENTS = 60, 30, 12
PLAN = """
[model]
buckets = 256
dimension = 8
tower = [16, 8, 1]
sketch_width = 256
[federation]
rounds = 3
"""
DESCRIPTION = """
[interactions]
files = "events.csv"
[interactions.columns]
user_id = "user"
item_id = "item"
event = "event"
time = "time"
[catalogue]
files = "items.csv"
[catalogue.columns]
item_id = "item"
shared_id = "item"
"""
COORDINATOR = (
    "server init --name demo --host 127.0.0.1 --port {port} --plan plan.toml",
    "server admit A.join B.join C.join",
    "server --federation federation",
)
PLATFORM = (
    "clients.platform init --id {id}",
    "clients.platform --id {id} --invitation federation/invitations/{id}.invitation "
    "--data rows/{id} --data-end 2026-06-30 --yes",
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_rows(home)
        seconds = first_round(home)
    count = len(COORDINATOR) + len(PLATFORM)
    print(f"{count} commands to the first round, {seconds:.1f} s after the last of them")
    figure = Figure(
        figure="ops.commands_to_first_round",
        value=float(count),
        goal="<=5",
        command=COMMAND,
        seeds=1,
    )
    write_figures(RESULTS / "onboarding.json", [figure])


def first_round(home: Path) -> float:
    """Type everything; return the seconds from the last command to the first round."""
    port = free_port()
    run(home, COORDINATOR[0].format(port=port))
    for name in PLATFORMS:
        run(home, PLATFORM[0].format(id=name))
    run(home, COORDINATOR[1])
    children = [start(home, COORDINATOR[2], "coordinator")]
    try:
        wait_for(home / "coordinator.log", r"coordinator on https://", children)
        children += [start(home, PLATFORM[1].format(id=name), name) for name in PLATFORMS]
        started = time.monotonic()
        wait_for(home / "coordinator.log", r"^round 1/3 .*A, B, C", children)
        return time.monotonic() - started
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(30)


def words(command: str) -> list[str]:
    return [sys.executable, "-u", "-m", *command.split()]


def run(home: Path, command: str) -> None:
    done = subprocess.run(words(command), cwd=home, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")


def start(home: Path, command: str, name: str) -> subprocess.Popen[bytes]:
    with (home / f"{name}.log").open("wb") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            words(command),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def wait_for(log: Path, pattern: str, children: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not re.search(pattern, text := log.read_text("utf-8"), re.MULTILINE):
        failed = [child.args for child in children if child.poll()]
        if failed or time.monotonic() > end:
            raise SystemExit(f"no {pattern!r}; ended: {failed}\n{text}")
        time.sleep(0.1)


def write_rows(home: Path) -> None:
    """A year of made-up purchases for each platform, and a plan that is small enough for them."""
    (home / "plan.toml").write_text(PLAN, encoding="utf-8")
    for seed, name in enumerate(PLATFORMS):
        source = random.Random(seed)
        folder = home / "rows" / name
        folder.mkdir(parents=True)
        (folder / "crossrec.toml").write_text(DESCRIPTION, encoding="utf-8")
        first = datetime(2025, 7, 1, tzinfo=UTC)
        with (folder / "events.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["user", "item", "event", "time"])
            for user in range(USERS):
                for _ in range(EVENTS):
                    when = first + timedelta(days=source.random() * 363)
                    item = int(ITEMS * source.random() ** 2)
                    writer.writerow([f"u{user}", f"i{item}", "purchase", when.isoformat()])
        with (folder / "items.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["item"])
            writer.writerows([f"i{item}"] for item in range(ITEMS))


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


if __name__ == "__main__":
    main()
