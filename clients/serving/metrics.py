"""What the service tells a monitoring system: counts and times of calls, nothing of a user or an item."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

#: Upper bounds in seconds of the histogram's buckets.
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Figures in a registry of their own; any thread may call any method."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        to = self.registry
        self._calls = Counter(
            "crossrec_serving_calls",
            "Calls answered or refused",
            ["interface", "call", "code"],
            registry=to,
        )
        self._seconds = Histogram(
            "crossrec_serving_seconds",
            "Time of a call in the service",
            ["interface", "call"],
            buckets=SECONDS,
            registry=to,
        )
        self._events = Counter("crossrec_serving_events", "Events kept", registry=to)
        self._swaps = Counter(
            "crossrec_serving_models_taken_over", "Models taken over", registry=to
        )
        self._failed = Counter(
            "crossrec_serving_models_refused", "Models on disk that can't be served", registry=to
        )
        self._loaded = Gauge(
            "crossrec_serving_model_timestamp_seconds",
            "When the model was taken over, in Unix seconds",
            registry=to,
        )
        self._candidates = Gauge(
            "crossrec_serving_candidates", "Items that are ranked", registry=to
        )
        Info("crossrec_build", "Version of crossrec", registry=to).info({"version": _version()})
        ProcessCollector(registry=to)
        PlatformCollector(registry=to)

    def called(self, interface: str, call: str, code: str, seconds: float) -> None:
        """A call was answered, or refused with a code."""
        self._calls.labels(interface, call, code).inc()
        self._seconds.labels(interface, call).observe(seconds)

    def kept(self) -> None:
        """An event is on the disk."""
        self._events.inc()

    def taken_over(self, at: float, candidates: int) -> None:
        """A model is served from now, in Unix seconds, on."""
        self._swaps.inc()
        self._loaded.set(at)
        self._candidates.set(candidates)

    def refused_model(self) -> None:
        """What lies on the disk can't be served; the earlier model goes on."""
        self._failed.inc()

    def text(self) -> bytes:
        """The figures as Prometheus reads them."""
        return generate_latest(self.registry)


def _version() -> str:
    try:
        return version("crossrec")
    except PackageNotFoundError:
        return "unknown"
