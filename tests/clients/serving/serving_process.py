"""A real service on ephemeral ports of loopback, ended whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from clients.serving.proto import recommender_pb2_grpc as pb_grpc

ROOT = Path(__file__).resolve().parents[3]
_SERVES = re.compile(r"gRPC on (\S+?)( \(TLS\))?, HTTP on (\S+)")


class Running:
    """One `serve` process."""

    def __init__(self, state: Path, *options: str) -> None:
        self.child = subprocess.Popen(
            [
                *(sys.executable, "-m", "clients.platform", "serve", "--id", "A"),
                *("--state", str(state), "--grpc-port", "0", "--http-port", "0", *options),
            ],
            cwd=state,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.grpc = self.http = ""

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.output += line

    def wait_until_it_serves(self, within_s: float = 90.0) -> None:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if found := _SERVES.search(self.output):
                self.grpc, self.http = found.group(1), found.group(3)
                return
            if self.child.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.05)
        raise AssertionError(f"it does not serve:\n{self.output}")

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(20)

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(30)

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(20)
        self._reader.join(5)
        assert self.child.stdout is not None
        self.child.stdout.close()


@contextmanager
def running(state: Path, *options: str) -> Iterator[Running]:
    process = Running(state, *options)
    try:
        process.wait_until_it_serves()
        yield process
    finally:
        process.end()


@contextmanager
def stub_of(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Any]:
    secure = credentials is not None
    channel = (
        grpc.secure_channel(address, credentials) if secure else grpc.insecure_channel(address)
    )
    try:
        yield pb_grpc.RecommenderStub(channel)
    finally:
        channel.close()
