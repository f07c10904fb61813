"""A real coordinator and real platforms over TLS, each behind a proxy, kept running by a supervisor."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from dropping_proxy import DroppingProxy
from platform_rows import write_platform
from supervised import MARKER, Role, Said, Supervisor, orphans
from truth import PLAN

from crossrec_model.config import Plan
from crossrec_model.privacy.planning import private_plan
from server.checkpoint import Checkpoint, CheckpointStore
from server.tls import TlsFiles
from simulations.processes import as_toml, make_roster

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
PRIVATE: Final = """seed = 5
[model]
buckets = 128
dimension = 4
neighbours = 2
sketch_width = 64
tower = [8, 4, 1]
[training]
users_per_step = 20
history = 8
positives = 4
negatives = 16
[federation]
rounds = {rounds}
round_timeout_s = {deadline}
"""


@dataclass(frozen=True, kw_only=True)
class Cast:
    """What is run: `private` platforms are the real ones with noise, the others are exact.

    `seconds` an exact platform trains; `deadline` seconds a round may take; `wait` seconds the
    coordinator waits for platforms; `platforms` are waited for, None for all.
    """

    names: str = "ABCD"
    private: bool = False
    rounds: int = 6
    seconds: float = 0.3
    dawdle: float = 0.03
    deadline: float = 5.0
    wait: float = 90.0
    platforms: int | None = None
    evaluate_every: int = 1
    connect_timeout: float = 60.0
    flush: float = 0.02


class FederationStage:
    """One federation for one test; a context manager that leaves no process behind."""

    def __init__(self, folder: Path, tls: TlsFiles, cast: Cast) -> None:
        self.folder, self.tls, self.cast = folder, tls, cast
        self.marker = secrets.token_hex(8)
        self.state, self.homes = folder / "state", folder / "platforms"
        self.journals, self.clocks = folder / "journals", folder / "clocks"
        for made in (self.state, self.homes, self.journals, self.clocks):
            made.mkdir(parents=True)
        self.roster, self.older_roster = _rosters(self.homes, cast.names)
        self.roster_in_use = self.roster
        self.plan_file = folder / "plan.toml"
        self.plan_file.write_text(_plan(cast))
        self.port = _free_port()
        self.said, self.supervisor = Said(), Supervisor()
        self.proxy = DroppingProxy(cast.names, self.port)
        self.coordinator = self._role("coordinator", self.coordinator_command)
        self.platforms = {
            name: self._role(name, lambda name=name: self.platform_command(name))
            for name in cast.names
        }
        #: What must be undone at the end, e.g. a mount.
        self.undo: list = []

    def coordinator_command(self) -> list[str]:
        """The coordinator's command line: it begins a run, or goes on with the one that is there."""
        begun = any((self.state / "checkpoints").glob("round-*.json"))
        first = ("--plan", self.plan_file, *(() if self.cast.private else ("--no-privacy",)))
        waited = self.cast.platforms or len(self.cast.names)
        words = [
            *(sys.executable, HERE / "slow_coordinator.py"),
            *("--port", self.port, "--state", self.state, "--roster", self.roster_in_use),
            *("--tls", self.tls.ca.parent, "--platforms", waited, "--wait", self.cast.wait),
            *("--evaluate-every", self.cast.evaluate_every),
            *(("--resume",) if begun else first),
        ]
        return [str(word) for word in words]

    def platform_command(self, name: str) -> list[str]:
        """A platform's command line."""
        where = (
            *("--id", name, "--server", self.address_for(name), "--ca", self.tls.ca),
            *("--state", self.homes, "--roster", self.roster),
            *("--connect-timeout", self.cast.connect_timeout),
        )
        if self.cast.private:
            words = [
                *(sys.executable, "-m", "clients.platform", *where),
                *("--data", self._rows(name), "--data-end", "2024-07-19"),
                # Rounds that are noised again cost more than the plan says.
                *("--epsilon", 60, "--life-epsilon", 60, "--own-network"),
            ]
        else:
            words = [
                *(sys.executable, HERE / "exact_platform.py", *where),
                *("--seconds", self.cast.seconds, "--dawdle", self.cast.dawdle),
                *("--journal", self.journals / f"{name}.jsonl"),
            ]
        return [str(word) for word in words]

    def address_for(self, name: str) -> str:
        """Where a platform reaches the coordinator: through its own port of the proxy."""
        return f"https://127.0.0.1:{self.proxy.ports[name]}"

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start the coordinator, then these platforms (all by default)."""
        self.coordinator.start()
        for name in self.cast.names if names is None else names:
            self.platforms[name].start()

    @property
    def roles(self) -> list[Role]:
        return [self.coordinator, *self.platforms.values()]

    def role(self, name: str) -> Role:
        return self.coordinator if name == "coordinator" else self.platforms[name]

    def expect(
        self, pattern: str, *, after: int = 0, within_s: float = 240.0, times: int = 1
    ) -> int:
        """Wait for the n-th line "ROLE|TEXT" that matches; return where the next one stands."""
        found = self.said.find(pattern, after=after, within_s=within_s, times=times)
        if found is None:
            raise AssertionError(f"no {pattern!r} in {within_s} s in:\n{self.said.text()}")
        return found[0] + 1

    def shift_clock(self, role: str, seconds: float) -> None:
        """Set a role's wall clock so many seconds off, from now on."""
        with (self.clocks / role).open("r+b") as file:
            file.write(struct.pack("<d", seconds))

    def final(self) -> Checkpoint:
        last = CheckpointStore(self.state).latest()
        assert last is not None, self.said.text()
        return last

    def plan(self) -> Plan:
        return self.final().plan

    def settle(self, within_s: float = 400.0) -> int:
        """Wait, with no further fault, until everybody has ended well.

        A platform that was away at the run's end gets the final model from a coordinator that is
        started again. Returns how often that was needed; AssertionError if somebody never ends.
        """
        end, handed, idle_since = time.monotonic() + within_s, 0, time.monotonic()
        while not all(role.done for role in self.roles):
            if time.monotonic() > end:
                left = ", ".join(role.name for role in self.roles if not role.done)
                raise AssertionError(f"{left} did not end in {within_s} s:\n{self.said.text()}")
            if not self.coordinator.done:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > 12:
                self.coordinator.start()
                handed += 1
            time.sleep(0.1)
        return handed

    def __enter__(self) -> FederationStage:
        self.proxy.__enter__()
        self.supervisor.roles = self.roles
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.supervisor.end()
        finally:
            self.proxy.__exit__()
            for step in reversed(self.undo):
                step()
        left = orphans(self.marker)
        assert not left, f"processes were left behind: {left}"

    def _role(self, name: str, command) -> Role:
        (self.clocks / name).write_bytes(struct.pack("<d", 0.0))
        paths = (HERE / "clock", ROOT, ROOT / "tests" / "transport")
        environment = {
            **os.environ,
            MARKER: self.marker,
            "CROSSREC_CHAOS_CLOCK": str(self.clocks / name),
            "CROSSREC_CHAOS_FLUSH_S": str(self.cast.flush),
            "CROSSREC_CHAOS_MODEL": "plan" if self.cast.private else "zeros",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",
        }
        return Role(name, command, environment, self.said)

    def _rows(self, name: str) -> Path:
        folder = self.folder / "rows" / name
        if not folder.exists():
            write_platform(folder, seed=ord(name))
        return folder


def _rosters(homes: Path, names: str) -> tuple[Path, Path]:
    """Sign a roster without the last platform, then one of all; return the newer and the older.

    Of three platforms there is one roster only, since two make none.
    """
    if len(names) == 3:
        return make_roster(homes, names), homes / "none"
    older = make_roster(homes, names[:-1])
    kept = older.with_name("older.json")
    kept.write_bytes(older.read_bytes())
    return make_roster(homes, names), kept


def _plan(cast: Cast) -> str:
    text = (PRIVATE if cast.private else PLAN).format(rounds=cast.rounds, deadline=cast.deadline)
    return _with_noise(text, len(cast.names)) if cast.private else text


@lru_cache
def _with_noise(text: str, platforms: int) -> str:
    """Find the noise here and once: each coordinator would take seconds for it."""
    plan = Plan.from_document(tomllib.loads(text))
    honest = platforms - (platforms - 1) // 3
    return as_toml(private_plan(plan, noise="local", epsilon=8.0, delta=1e-5, honest=honest))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
