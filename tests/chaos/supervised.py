"""Processes in groups of their own, kept running as systemd would, and ended by id whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: A variable that all processes of a stage inherit, so that none can get lost.
MARKER: Final = "CROSSREC_CHAOS"
#: How long the supervisor waits before it starts a role again, in seconds.
RESTART_S: Final = 0.3


class Said:
    """Every line of every process, in order of arrival."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._began = time.monotonic()
        self.times: list[float] = []

    def add(self, name: str, line: str) -> None:
        with self._news:
            self._lines.append(f"{name}|{line}")
            self.times.append(time.monotonic())
            self._news.notify_all()

    def mark(self) -> int:
        """Where the next line will stand."""
        with self._news:
            return len(self._lines)

    def find(
        self, pattern: str, *, after: int = 0, within_s: float, times: int = 1
    ) -> tuple[int, re.Match[str]] | None:
        """Wait for the n-th line that matches; its place and match, None if it does not come."""
        end, at, seen = time.monotonic() + within_s, after, 0
        with self._news:
            while True:
                while at < len(self._lines):
                    at += 1
                    if found := re.search(pattern, self._lines[at - 1]):
                        seen += 1
                        if seen == times:
                            return at - 1, found
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self._news.wait(min(left, 0.2))

    def text(self, last: int = 100_000) -> str:
        with self._news:
            both = list(zip(self.times, self._lines, strict=True))[-last:]
        return "\n".join(f"{moment - self._began:7.2f} {line}" for moment, line in both)


@dataclass(eq=False)
class Running:
    """One process of a role, leader of its own group."""

    child: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    #: The signal that we ended it with, if any.
    killed: int = 0
    reader: threading.Thread | None = None

    @property
    def output(self) -> str:
        return "\n".join(list(self.lines))

    @property
    def errors(self) -> list[str]:
        return [line for line in list(self.lines) if line.startswith("error: ")]


class Role:
    """A coordinator or a platform: what to run, and all its processes so far."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        environment: dict[str, str],
        said: Said,
        *,
        tune: Callable[[int], object] = lambda _pid: None,
    ) -> None:
        self.name, self._command, self._environment, self._said = name, command, environment, said
        self.runs: list[Running] = []
        #: Start it again when it ends otherwise than well.
        self.restart = True
        #: Called with the process id of each new process.
        self.tune = tune
        self._lock = threading.Lock()
        self._ended_at = 0.0

    @property
    def current(self) -> Running:
        return self.runs[-1]

    @property
    def alive(self) -> bool:
        return bool(self.runs) and self.current.child.poll() is None

    @property
    def done(self) -> bool:
        """Whether its last process ended well."""
        return bool(self.runs) and self.current.child.poll() == 0

    def start(self) -> None:
        with self._lock:
            child = subprocess.Popen(
                [str(word) for word in self._command()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment,
                process_group=0,
            )
            self.tune(child.pid)
            running = Running(child)
            running.reader = threading.Thread(target=self._read, args=(running,), daemon=True)
            running.reader.start()
            self.runs.append(running)

    def signal(self, number: int) -> bool:
        """Send a signal to the present process's group; False if it has ended."""
        with self._lock:
            if not self.alive:
                return False
            if number in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}:
                self.current.killed = number
            with suppress(ProcessLookupError):
                os.killpg(self.current.child.pid, number)
            return True

    def look_after(self) -> None:
        """Start it again if it ended badly, a moment after."""
        if not self.runs or not self.restart or self.alive or self.done:
            self._ended_at = 0.0
            return
        self._ended_at = self._ended_at or time.monotonic()
        if time.monotonic() - self._ended_at >= RESTART_S:
            self._ended_at = 0.0
            self.start()

    def end(self) -> None:
        """End every process for good."""
        self.restart = False
        for running in self.runs:
            with suppress(ProcessLookupError):
                os.killpg(running.child.pid, signal.SIGKILL)
            running.child.wait(20)
            if running.reader is not None:
                running.reader.join(5)
            if running.child.stdout is not None:
                running.child.stdout.close()

    def _read(self, running: Running) -> None:
        assert running.child.stdout is not None
        with suppress(ValueError):
            for line in running.child.stdout:
                running.lines.append(line.rstrip("\n"))
                self._said.add(self.name, line.rstrip("\n"))
        running.child.wait()
        self._said.add(self.name, f"ended with {running.child.returncode}")


class Supervisor:
    """A thread that looks after roles."""

    def __init__(self) -> None:
        self.roles: list[Role] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(0.05):
            for role in list(self.roles):
                role.look_after()

    def end(self) -> None:
        """Stop looking after them, then end them all."""
        self._stop.set()
        self._thread.join(10)
        for role in self.roles:
            role.end()


def orphans(marker: str) -> list[str]:
    """Every process that carries a stage's marker, as "pid command"."""
    found = []
    wanted = f"{MARKER}={marker}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if int(folder.name) != os.getpid() and command:
                    found.append(f"{folder.name} {command}")
    return found
