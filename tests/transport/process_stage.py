"""Real processes on loopback, ended by id whatever happens in the test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from server.tls import TlsFiles
from simulations.processes import make_roster

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Process:
    """A child with its output collected; waits are bounded and show the output on failure."""

    def __init__(self, script: str, *arguments: object, dimension: int = 8) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "CROSSREC_TEST_DIMENSION": str(dimension),
        }
        self._child = subprocess.Popen(
            [sys.executable, str(HERE / script), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()

    @property
    def output(self) -> str:
        with self._news:
            return "\n".join(self._lines)

    def expect(self, pattern: str, *, times: int = 1, within_s: float = 60.0) -> re.Match[str]:
        """Wait until the pattern occurs in so many lines of the output; return the last match."""
        end = time.monotonic() + within_s
        with self._news:
            while True:
                found = [match for line in self._lines if (match := re.search(pattern, line))]
                if len(found) >= times:
                    return found[-1]
                left = end - time.monotonic()
                ended = self._child.poll() is not None and not self._reader.is_alive()
                if left <= 0 or ended:
                    raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self._lines))
                self._news.wait(min(left, 0.2))

    def wait(self, *, within_s: float = 60.0) -> int:
        """Wait for the end and return the exit code."""
        try:
            code = self._child.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within_s} s:\n{self.output}") from None
        self._reader.join(5)
        return code

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait(10)
        self._reader.join(5)
        if self._child.stdout is not None:
            self._child.stdout.close()


class Stage:
    """Starts coordinators and platforms for one test."""

    def __init__(self, folder: Path, tls: TlsFiles) -> None:
        self.folder, self.tls = folder, tls
        self.state = folder / "state"
        self.platforms = folder / "platforms"
        #: Four platforms, of which a sum needs three.
        self.roster = make_roster(self.platforms, "ABCD")
        self._children: list[Process] = []

    def start(self, script: str, *arguments: object, dimension: int = 8) -> Process:
        child = Process(script, *arguments, dimension=dimension)
        self._children.append(child)
        return child

    def plan(self, text: str) -> Path:
        path = self.folder / "plan.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def coordinator(
        self, *arguments: object, port: int = 0, dimension: int = 8, tls: bool = True
    ) -> Process:
        secure = ("--tls", self.tls.ca.parent) if tls else ("--insecure",)
        return self.start(
            "small_coordinator.py",
            *("--port", port, "--state", self.state, "--roster", self.roster),
            # What these platforms send is not noised.
            *(*secure, "--no-privacy", *arguments),
            dimension=dimension,
        )

    def port(self, coordinator: Process) -> int:
        return int(coordinator.expect(r"coordinator on https?://.*:(\d+)").group(1))

    def platform(self, name: str, port: int, *arguments: object, ca: Path | None = None) -> Process:
        secure = () if "--insecure" in arguments else ("--ca", ca or self.tls.ca)
        return self.start(
            "counting_platform.py",
            *("--id", name, "--address", f"127.0.0.1:{port}"),
            *("--state", self.platforms, "--roster", self.roster, *secure, *arguments),
        )

    def end(self) -> None:
        for child in self._children:
            child.end()
