"""What a platform allows: how small a set, how often, how little change; and how sizes are padded.

Each side applies this to its own set and to what the partner announces. It keeps an honest partner, or one
whose operator asks too much, from telling about single persons; a partner whose software is changed can
pad a set of one person up to the minimum, which is why the number of linkages is limited as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from crossrec_model.errors import ConfigError
from crossrec_model.linkage.errors import (
    LargeSetError,
    SmallChangeError,
    SmallSetError,
    TooOftenError,
)
from crossrec_model.linkage.group import Rows
from crossrec_model.linkage.messages import MAX_ELEMENTS, Purpose

#: Sets are padded to a number of so many significant bits: a step is 1/16 to 1/32 of the size.
SIGNIFICANT_BITS: Final = 5
#: No set looks smaller than this.
SMALLEST_PADDED: Final = 256
#: Marks of elements, sorted: uint64 [n].
Marks = npt.NDArray[np.uint64]
DAY_S: Final = 86_400


def padded_size(elements: int) -> int:
    """Return the size that a set of so many elements shows: the next with 5 significant bits.

    Raises:
        LargeSetError: if that is above 2^24.
    """
    size = max(elements, SMALLEST_PADDED)
    step = 1 << max(0, size.bit_length() - SIGNIFICANT_BITS)
    size = -(-size // step) * step
    if size > MAX_ELEMENTS:
        raise LargeSetError(
            f"{elements} identifiers are too many for one linkage; at most {MAX_ELEMENTS}: split them"
        )
    return size


@dataclass(frozen=True, kw_only=True)
class Past:
    """Earlier linkages with one partner: when each began (Unix s), and the marks of each set."""

    times: tuple[int, ...] = ()
    sets: tuple[Marks, ...] = ()

    def since(self, time: int) -> Past:
        """Return those that began at `time` or later, and the last one in any case."""
        pairs = list(zip(self.times, self.sets, strict=True))
        kept = [pair for pair in pairs[:-1] if pair[0] >= time] + pairs[-1:]
        return Past(times=tuple(t for t, _ in kept), sets=tuple(s for _, s in kept))


class Memory(Protocol):
    """What outlives a session; one for each platform."""

    def past(self, partner: str, purpose: Purpose) -> Past:
        """Return what was recorded."""

    def record(self, partner: str, purpose: Purpose, past: Past) -> None:
        """Replace what was recorded, durably, before this returns."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """At most `most` linkages with one partner in `period_s`, sets of at least `least` elements.

    A set with new elements since the last linkage, or any other in the period, has at least `least_new` of
    them: the difference of two intersections would otherwise tell about the few. Removed elements never
    stop a linkage, since a revocation must take effect.
    """

    least: int = 100
    most: int = 4
    period_s: int = 30 * DAY_S
    least_new: int = 20

    def __post_init__(self) -> None:
        for name, value, least in (
            ("least", self.least, 0),
            ("most", self.most, 1),
            ("period_s", self.period_s, 1),
            ("least_new", self.least_new, 0),
        ):
            if value < least:
                raise ConfigError(f"linkage policy: {name} is {value}; at least {least} is needed")

    def permit(
        self, memory: Memory, partner: str, purpose: Purpose, digests: Rows, now: int
    ) -> Permit:
        """Return the permission to link a set, uint8 [n, 32], now; nothing is recorded yet.

        Raises:
            LinkageError: SmallSetError, LargeSetError, TooOftenError or SmallChangeError.
        """
        if len(digests) < self.least:
            raise SmallSetError(
                f"only {len(digests)} consenting identifiers; a linkage needs {self.least}"
            )
        padded_size(len(digests))
        past = memory.past(partner, purpose)
        # A time that lies ahead counts too: a clock that is set back buys nothing.
        recent = [time for time in past.times if now - time < self.period_s]
        if len(recent) >= self.most:
            days = (min(recent) + self.period_s - now) / DAY_S
            raise TooOftenError(
                f"{len(recent)} linkages with {partner} in {self.period_s / DAY_S:g} days, at most "
                f"{self.most} are allowed; wait {max(0.0, days):.1f} days"
            )
        marks = marks_of(digests)
        for earlier in past.sets:
            new = len(np.setdiff1d(marks, earlier, assume_unique=True))
            if 0 < new < self.least_new:
                raise SmallChangeError(
                    f"only {new} new identifiers since an earlier linkage with {partner}; "
                    f"wait until there are {self.least_new}, or link the set of then"
                )
        return Permit(
            policy=self, memory=memory, partner=partner, purpose=purpose, time=now, marks=marks
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Permit:
    """A permission for one session; it is used up before the first element leaves."""

    policy: Policy
    memory: Memory
    partner: str
    purpose: Purpose
    time: int
    marks: Marks

    def use(self) -> None:
        """Record the session, durably; what is older than the period is forgotten."""
        past = self.memory.past(self.partner, self.purpose)
        past = Past(times=(*past.times, self.time), sets=(*past.sets, self.marks))
        kept = past.since(self.time - self.policy.period_s)
        self.memory.record(self.partner, self.purpose, kept)

    def check_partner(self, announced: int) -> None:
        """Raise SmallSetError for a partner's set that is below the minimum even when padded."""
        if announced < padded_size(self.policy.least):
            raise SmallSetError(
                f"{self.partner} announces {announced} identifiers; a linkage needs "
                f"{padded_size(self.policy.least)}"
            )


def marks_of(digests: Rows) -> Marks:
    """Return the first 8 bytes of every digest, sorted, each once."""
    first = np.ascontiguousarray(digests[:, :8]).view("<u8")[:, 0]
    return np.unique(first)
