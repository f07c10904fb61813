"""The real server and real platform processes on loopback, ended whatever happens."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from clients.keys import make_identity, write_card
from crossrec_model.config import Plan
from crossrec_model.errors import FederationError
from crossrec_model.randomness import SystemRandomness
from server.rosters import list_platforms
from server.tls import make_certificates

START_TIMEOUT_S: Final = 120.0
_ADDRESS: Final = re.compile(r"coordinator on (https://\S+)")


class Child:
    """One process; its lines are passed on under its name and its last one kept."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name, self.last = name, ""
        self.address = ""
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self.last = line.strip()
            if found := _ADDRESS.search(line):
                self.address = found.group(1)
            print(f"[{self.name}] {self.last}", flush=True)

    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """End the process: politely, then for good."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def _children() -> Iterator[list[Child]]:
    children: list[Child] = []
    try:
        yield children
    finally:
        for child in children:
            child.end()


def run_processes(
    plan: Plan, sources: Mapping[str, str], state: Path, *, evaluate_every: int
) -> None:
    """Run the plan with one process a platform (id → its --data); all state lies under `state`.

    Raises:
        FederationError: if a process ends with an error; the others are ended too.
    """
    state.mkdir(parents=True, exist_ok=True)
    coordinator_state = state / "coordinator"
    if (coordinator_state / "checkpoints").exists():
        raise FederationError(
            f"{coordinator_state} holds an earlier run; delete it or give another --work"
        )
    tls = make_certificates(state / "tls", [])
    roster = make_roster(state, sources)
    plan_file = state / "plan.toml"
    plan_file.write_text(as_toml(plan), encoding="utf-8")
    with _children() as children:
        server = Child(
            "coordinator",
            *("server", "--port", "0", "--state", str(coordinator_state)),
            *("--tls", str(tls.ca.parent), "--plan", str(plan_file)),
            *("--platforms", str(len(sources)), "--evaluate-every", str(evaluate_every)),
            *("--roster", str(roster)),
            *(() if plan.privacy.on else ("--no-privacy",)),
        )
        children.append(server)
        address = _address(server)
        for name, data in sources.items():
            children.append(
                Child(
                    f"platform {name}",
                    *("clients.platform", "--id", name, "--data", data, "--server", address),
                    *("--ca", str(tls.ca), "--state", str(state), "--roster", str(roster)),
                    *_privacy(plan),
                )
            )
        _wait(children)


def _privacy(plan: Plan) -> tuple[str, ...]:
    """A platform's options: exactly what the plan costs, or that it may do without privacy."""
    privacy = plan.privacy
    if not privacy.on:
        return ("--no-privacy",)
    numbers = {"--epsilon": privacy.epsilon, "--delta": privacy.delta}
    numbers["--life-epsilon"] = privacy.epsilon
    return tuple(word for name, value in numbers.items() for word in (name, repr(value)))


def make_roster(state: Path, platforms: Iterable[str]) -> Path:
    """Make every platform's identity and the signed roster, as operators would; return its file.

    Raises:
        SecureSumError: for fewer than three platforms.
    """
    cards = []
    for name in platforms:
        key, _new = make_identity(state / name, SystemRandomness())
        cards.append(state / f"{name}.platform")
        write_card(cards[-1], name, key)
    listed = list_platforms(state / "roster", federation="simulation", cards=cards, expel=())
    return listed.path


def as_toml(plan: Plan) -> str:
    """The plan as the TOML file that `python -m server --plan` reads."""
    lines = [f"seed = {plan.seed}"]
    for name in ("model", "training", "federation", "aggregation", "privacy"):
        lines.append(f"\n[{name}]")
        section = dataclasses.asdict(getattr(plan, name))
        # JSON's strings, numbers and arrays are TOML's.
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


def _address(server: Child) -> str:
    end = time.monotonic() + START_TIMEOUT_S
    while not server.address:
        if server.code() is not None or time.monotonic() > end:
            raise FederationError(f"the coordinator did not start: {server.last}")
        time.sleep(0.05)
    return server.address


def _wait(children: list[Child]) -> None:
    """Wait until all have ended well; the first that did not ends the rest."""
    while any(child.code() is None for child in children):
        for child in children:
            if child.code():
                raise FederationError(f"{child.name} ended with code {child.code()}: {child.last}")
        time.sleep(0.1)
    for child in children:
        if child.code():
            raise FederationError(f"{child.name} ended with code {child.code()}: {child.last}")
