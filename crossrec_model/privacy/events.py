"""What a platform did with its users' data, as events and records; the cost is `pricing.py`'s.

Two data sets are neighbours if one is the other with one user, her whole history, added or removed. A
mechanism's sensitivity is the most that this changes its output, in the Euclidean norm.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Self

from crossrec_model.errors import ConfigError
from crossrec_model.secagg.identity import FORMAT, canonical, check_exact, fields, parse

LEAST_MULTIPLIER: Final = 1e-3
MOST_MULTIPLIER: Final = 1e9
LEAST_RATE: Final = 1e-9
MOST_STEPS: Final = 10**9
#: As many as a roster can name.
MOST_HONEST: Final = 100
RUN_BYTES: Final = 16
#: What the first record names as the digest of the one before it.
_FIRST: Final = "0" * 64
_MOST_LINE: Final = 4096
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_WHAT: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,62}[A-Za-z0-9])?")
_TEXTS: Final = ("time", "run", "what", "previous", "sha256")
_RECORD: Final = {
    "format": int,
    "sequence": int,
    "round": int,
    "event": dict,
    "budget": dict,
    **dict.fromkeys(_TEXTS, str),
}
_BUDGET: Final = {"epsilon": float, "delta": float, "life_epsilon": float}


@dataclass(frozen=True, kw_only=True)
class SampledGaussian:
    """`steps` steps of Gaussian noise over a Poisson sample of users: user-level DP-SGD.

    Each user is in a step with probability `rate`, independently of all others; the noise of this one
    platform has the standard deviation `multiplier` × sensitivity (Abadi et al. 2016).

    Raises:
        ConfigError: for a value of another type or outside its bounds.
    """

    multiplier: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        _take_real(self, "multiplier", LEAST_MULTIPLIER, MOST_MULTIPLIER)
        _take_real(self, "rate", LEAST_RATE, 1.0)
        _check_whole("steps", self.steps, MOST_STEPS)


@dataclass(frozen=True, kw_only=True)
class GaussianRelease:
    """One release of all users' bounded values with Gaussian noise, added on this platform.

    The noise's standard deviation is `multiplier` × sensitivity.

    Raises:
        ConfigError: for a value of another type or outside its bounds.
    """

    multiplier: float

    def __post_init__(self) -> None:
        _take_real(self, "multiplier", LEAST_MULTIPLIER, MOST_MULTIPLIER)


@dataclass(frozen=True, kw_only=True)
class DistributedGaussian:
    """One release in a secure sum, each platform adding a share of discrete Gaussian noise.

    `multiplier` is what the shares of `honest` platforms alone come to, in units of the sensitivity
    *after* rounding to the grid; shares that the observer knows don't count. It holds only against
    whoever sees sums and nothing else: this platform's own message carries too little noise.

    Raises:
        ConfigError: for a value of another type or outside its bounds.
    """

    multiplier: float
    honest: int

    def __post_init__(self) -> None:
        _take_real(self, "multiplier", LEAST_MULTIPLIER, MOST_MULTIPLIER)
        _check_whole("honest", self.honest, MOST_HONEST)


Event = SampledGaussian | GaussianRelease | DistributedGaussian

_KINDS: Final[dict[str, type[Event]]] = {
    "sampled_gaussian": SampledGaussian,
    "gaussian_release": GaussianRelease,
    "distributed_gaussian": DistributedGaussian,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def to_document(event: Event) -> dict[str, Any]:
    """Write an event as a plain JSON object: its `kind` and its fields."""
    return {"kind": _NAMES[type(event)], **asdict(event)}


def from_document(document: object) -> Event:
    """Read `to_document` back, strictly.

    Raises:
        ConfigError: for an unknown kind, an unknown or missing key, or a value of another type (an int
            where a float belongs too) or outside its bounds.
    """
    if not isinstance(document, dict):
        raise ConfigError(f"an event is a {type(document).__name__}, not a JSON object")
    values = dict(document)
    name = values.pop("kind", None)
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(f"event kind {name!r:.80} is unknown; known: {', '.join(_KINDS)}")
    expected = {field.name: field for field in dataclasses.fields(_KINDS[name])}
    if values.keys() != expected.keys():
        raise ConfigError(
            f"a {name} event has the keys {sorted(map(str, values))!s:.200}, "
            f"not {sorted(expected)}; it is of another version or damaged"
        )
    for key, value in values.items():
        # Annotations are texts here.
        if type(value).__name__ != expected[key].type:
            raise ConfigError(f"{name}.{key} = {value!r:.80} is no {expected[key].type}")
    return _KINDS[name](**values)


def tally(events: Iterable[Event]) -> dict[Event, int]:
    """Count events of equal parameters; k steps count as k events of one step.

    The keys stand in a fixed order, so that equal histories give equal items. Events of different
    kinds are never merged, whatever their noise.
    """
    counts: dict[Event, int] = {}
    for event in events:
        one, count = event, 1
        if isinstance(event, SampledGaussian):
            one, count = dataclasses.replace(event, steps=1), event.steps
        counts[one] = counts.get(one, 0) + count
    return dict(sorted(counts.items(), key=lambda item: _order(item[0])))


def check_delta(delta: float) -> None:
    """Raise ConfigError unless `delta` is a number strictly between 0 and 1."""
    if not isinstance(delta, float) or not 0 < delta < 1:
        raise ConfigError(
            f"delta = {delta!r} is no number between 0 and 1; choose well below 1 / users, e.g. 1e-5"
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that one run, and all runs together, may cost a user, both at `delta`.

    Raises:
        ConfigError: for a value outside its bounds.
    """

    epsilon: float
    delta: float
    life_epsilon: float

    def __post_init__(self) -> None:
        for name in _BUDGET:
            value = getattr(self, name)
            if type(value) is int:
                object.__setattr__(self, name, float(value))
        check_delta(self.delta)
        for name in ("epsilon", "life_epsilon"):
            value = getattr(self, name)
            if not isinstance(value, float) or not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value!r} must be above 0 and finite; choose e.g. 4")
        if self.life_epsilon < self.epsilon:
            raise ConfigError(
                f"life_epsilon = {self.life_epsilon} is below epsilon = {self.epsilon} of a single "
                "run; raise the first or lower the second"
            )


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line: an event of one round, charged at a UTC `time` within a budget."""

    sequence: int
    time: str
    run: bytes
    round: int
    what: str
    event: Event
    budget: Budget
    previous: str

    def __post_init__(self) -> None:
        if len(self.run) != RUN_BYTES:
            raise ConfigError(f"run has {len(self.run)} bytes; {RUN_BYTES} are needed")
        if not 0 <= self.round < 2**32:
            raise ConfigError(f"round = {self.round} is outside [0, 2^32)")
        if not _WHAT.fullmatch(self.what):
            raise ConfigError(
                f"what = {self.what!r:.80} is not 1 to 64 letters, digits, spaces, dots or dashes"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the record, in hexadecimal."""
        return sha256(canonical(self._content())).hexdigest()

    @property
    def line(self) -> bytes:
        """The record as canonical JSON, without the end of the line."""
        return canonical(self._content() | {"sha256": self.digest})

    @classmethod
    def following(cls, after: Record | None, *, time: datetime, **charged: Any) -> Self:
        """Make the record after `after` of a charge at `time`; raises ConfigError."""
        return cls(
            sequence=after.sequence + 1 if after else 1,
            time=time.astimezone(UTC).strftime(_TIME),
            previous=after.digest if after else _FIRST,
            **charged,
        )

    @classmethod
    def from_line(cls, line: bytes, after: Record | None) -> Self:
        """Read `line` back as the record after `after`; any CrossrecError or ValueError is damage."""
        found = fields(parse(line, "it", most=_MOST_LINE), "it", _RECORD)
        record = cls.following(
            after,
            time=datetime.strptime(found["time"], _TIME).replace(tzinfo=UTC),
            run=bytes.fromhex(found["run"]),
            round=found["round"],
            what=found["what"],
            event=from_document(found["event"]),
            budget=Budget(**fields(found["budget"], "its budget", _BUDGET)),
        )
        # Written anew it must be the same: number, digests and all.
        check_exact(record.line, line, "it")
        return record

    def _content(self) -> dict[str, Any]:
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        content["event"], content["budget"] = to_document(self.event), asdict(self.budget)
        return content | {"format": FORMAT, "run": self.run.hex()}


def _order(event: Event) -> tuple[str, tuple[float, ...]]:
    return _NAMES[type(event)], dataclasses.astuple(event)


def _take_real(event: Event, name: str, low: float, high: float) -> None:
    """Check a real field, and make an int a float: equal events must have equal documents."""
    value = getattr(event, name)
    # `not (low <= value <= high)` also catches NaN.
    if type(value) not in {int, float} or not low <= value <= high:
        raise ConfigError(f"{name} = {value!r} is no number in [{low}, {high}]; choose one inside")
    object.__setattr__(event, name, float(value))


def _check_whole(name: str, value: object, most: int) -> None:
    # Not isinstance: True is an int.
    if type(value) is not int or not 1 <= value <= most:
        raise ConfigError(f"{name} = {value!r} is no whole number from 1 to {most}")
