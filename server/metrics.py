"""What the coordinator tells a monitoring system: Prometheus metrics and its health, on loopback.

Figures are about the run and the coordinator. Of one platform alone they say only whether its id is
online.
"""

from __future__ import annotations

import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from json import dumps
from typing import Any, Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from crossrec_model.errors import FederationError
from server.checkpoint import RoundRecord

HOST: Final = "127.0.0.1"
#: Upper bounds in seconds of the histogram's buckets.
SECONDS: Final = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)
#: Words that a refusal's label may be; strangers must not be able to make up more of them.
MOST_REASONS: Final = 20
OTHER: Final = "other"
_REASON: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
#: A client that sends nothing is let go after so many seconds.
_CLIENT_TIMEOUT_S: Final = 5.0


class Metrics(AbstractContextManager["Metrics"]):
    """Figures in a registry of their own; a `Progress` that hears what happens in a run.

    `clock` gives Unix seconds. Any thread may call any method.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.registry: Final = CollectorRegistry()
        self._clock, self._lock = clock, threading.Lock()
        self._state, self._round, self._rounds, self._missing = "starting", 0, 0, 0
        self._here: frozenset[str] = frozenset()
        self._reasons: set[str] = set()
        self._make_figures()

    def _make_figures(self) -> None:
        to = self.registry
        self._finished = Counter(
            "crossrec_rounds_finished", "Rounds finished since the start", registry=to
        )
        self._repeated = Counter(
            "crossrec_rounds_repeated", "Rounds that had to begin again", registry=to
        )
        self._seconds = Histogram(
            "crossrec_round_seconds", "Time of a round", buckets=SECONDS, registry=to
        )
        self._last = Gauge("crossrec_last_round", "Number of the last finished round", registry=to)
        self._last_at = Gauge(
            "crossrec_last_round_timestamp_seconds",
            "When a round was finished last, in Unix seconds; 0 for not since the start",
            registry=to,
        )
        self._planned = Gauge("crossrec_planned_rounds", "Rounds of the run's plan", registry=to)
        self._running = Gauge(
            "crossrec_run_active", "1 while a run goes on, 0 before and after", registry=to
        )
        self._online = Gauge("crossrec_platforms_online", "Platforms that are online", registry=to)
        self._online_id = Gauge(
            "crossrec_platform_online", "1 if this platform is online", ["platform"], registry=to
        )
        self._missing_now = Gauge(
            "crossrec_platforms_missing", "Platforms that a round waits for", registry=to
        )
        self._left_out = Counter(
            "crossrec_platforms_left_out", "Times that a round went on without one", registry=to
        )
        self._refused = Counter(
            "crossrec_refusals", "Requests and nodes refused", ["reason"], registry=to
        )
        self._audit = Gauge("crossrec_audit_lines", "Lines of the audit log", registry=to)
        Info("crossrec_build", "Version of crossrec", registry=to).info({"version": _version()})
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def __exit__(self, *_: object) -> None:
        return None

    def started(self, round: int, rounds: int) -> None:
        """A run begins, or goes on after so many of its rounds."""
        with self._lock:
            self._state, self._round, self._rounds = "running", round, rounds
        self._last.set(round)
        self._planned.set(rounds)
        self._running.set(1)

    def ended(self) -> None:
        """The run is over: finished, stopped or failed."""
        with self._lock:
            self._state, self._missing = "ended", 0
        self._missing_now.set(0)
        self._running.set(0)

    def waiting(self, here: tuple[str, ...], needed: int) -> None:
        """Platforms are missing; called many times a second."""
        missing = max(0, needed - len(here))
        with self._lock:
            self._state, self._missing = "waiting", missing
        self._missing_now.set(missing)
        self._seen(here)

    def round_started(self, number: int, rounds: int, cohort: tuple[str, ...]) -> None:
        """A round begins with this cohort."""
        self.started(number - 1, rounds)
        with self._lock:
            self._missing = 0
        self._missing_now.set(0)
        self._seen(cohort)

    def round_finished(self, record: RoundRecord, rounds: int) -> None:
        """A round is saved."""
        self.started(record.round, rounds)
        self._last_at.set(self._clock())
        self._finished.inc()
        self._seconds.observe(record.seconds)

    def note(self, text: str) -> None:
        """Say nothing: texts are no figures."""

    def round_repeated(self, number: int, reason: str) -> None:
        """A round begins again, since too few platforms were left."""
        self._repeated.inc()

    def left_out(self, platform: str, reason: str) -> None:
        """A round goes on without a platform."""
        self._left_out.inc()

    def refused(self, reason: str) -> None:
        """A request or a node was refused for a reason of a few lower-case words and dashes.

        Anything else, and what comes after `MOST_REASONS` of them, is counted as "other".
        """
        with self._lock:
            known = reason in self._reasons
            if not known and len(self._reasons) < MOST_REASONS and _REASON.fullmatch(reason):
                self._reasons.add(reason)
                known = True
        self._refused.labels(reason if known else OTHER).inc()

    def audited(self, lines: int) -> None:
        """So many lines are in the audit log."""
        self._audit.set(lines)

    def health(self) -> dict[str, Any]:
        """Return what /health tells: a status, finished rounds, who is here, how many are not."""
        with self._lock:
            return {
                "status": self._state,
                "round": self._round,
                "rounds": self._rounds,
                "platforms_online": sorted(self._here),
                "waiting_for": self._missing,
            }

    def _seen(self, here: tuple[str, ...]) -> None:
        with self._lock:
            left, self._here = self._here.difference(here), frozenset(here)
        for platform in here:
            self._online_id.labels(platform).set(1)
        for platform in left:
            self._online_id.labels(platform).set(0)
        self._online.set(len(here))


@contextmanager
def serving_metrics(metrics: Metrics, port: int) -> Iterator[int]:
    """Serve `/metrics` and `/health` on loopback while the context lasts; yield the port.

    Port 0 is any free one.

    Raises:
        FederationError: if the port is in use or none at all.
    """
    if not 0 <= port < 65536:
        raise FederationError(f"metrics port {port} is outside [0, 65535]; give another")
    try:
        server = _Server((HOST, port), _handler_for(metrics))
    except OSError as error:
        raise FederationError(
            f"metrics port {port} on {HOST} can't be used: {error.strerror}; "
            "give another --metrics-port"
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Closing never waits for a client.
    block_on_close = False

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _handler_for(metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry))
            elif path == "/health":
                self._answer(200, "application/json", dumps(metrics.health()).encode() + b"\n")
            else:
                self._answer(404, "text/plain", b"/metrics and /health are here\n")

        do_HEAD = do_GET  # noqa: N815

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response_only(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler


def _version() -> str:
    try:
        return version("crossrec")
    except PackageNotFoundError:
        return "unknown"
