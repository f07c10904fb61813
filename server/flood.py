"""How many refusals are written down: few of a kind in a minute, then how many more there were.

Pure: no I/O, and the time is handed in. Strangers choose what they are refused for, so neither the
number of lines nor the memory may grow with what they send.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

#: Events whose names begin so may be left out.
REFUSED: Final = "refused"
#: Lines a minute that are alike in every field.
MOST_ALIKE: Final = 3
#: Lines a minute that are of the same event and reason.
MOST_OF_A_KIND: Final = 20
#: Kinds a minute; all others count as one.
MOST_KINDS: Final = 32
#: The field of a count's line: so many more than were written.
NOT_WRITTEN: Final = "not_written"
WINDOW: Final = timedelta(minutes=1)

Fields = Mapping[str, str | int]
_Key = tuple[str, tuple[tuple[str, str | int], ...]]


@dataclass(frozen=True)
class Event:
    """What happened: a name, and fields of texts and whole numbers."""

    name: str
    fields: Fields

    @property
    def key(self) -> _Key:
        """Equal for equal events."""
        return self.name, tuple(sorted(self.fields.items()))


class Flood:
    """The refusals of the minute that runs; each minute begins with its first refusal."""

    def __init__(self) -> None:
        self._since: datetime | None = None
        self._alike: Counter[_Key] = Counter()
        self._kinds: Counter[_Key] = Counter()
        self._left_out: Counter[_Key] = Counter()

    def admits(self, event: Event, now: datetime) -> bool:
        """Return whether to write an event, and count it if not.

        Ask for what is `due` first: a minute that is over is not begun anew here.
        """
        if not event.name.startswith(REFUSED):
            return True
        if self._since is None:
            self._since = now
        kind = self._kind_of(event)
        if self._alike[event.key] >= MOST_ALIKE:
            self._left_out[event.key] += 1
            return False
        if self._kinds[kind] >= MOST_OF_A_KIND:
            self._left_out[kind] += 1
            return False
        self._alike[event.key] += 1
        self._kinds[kind] += 1
        return True

    def due(self, now: datetime, *, all: bool = False) -> list[Event]:
        """Return the counts to write if the minute is over, or in any case, and begin anew.

        A clock that was set back ends the minute too.
        """
        if self._since is None:
            return []
        if not all and timedelta(0) <= now - self._since < WINDOW:
            return []
        counts = [
            Event(name, {**dict(fields), NOT_WRITTEN: count})
            for (name, fields), count in sorted(self._left_out.items(), key=repr)
        ]
        self._since = None
        for counter in (self._alike, self._kinds, self._left_out):
            counter.clear()
        return counts

    def _kind_of(self, event: Event) -> _Key:
        reason = event.fields.get("reason")
        kind: _Key = (event.name, () if reason is None else (("reason", reason),))
        if kind in self._kinds or len(self._kinds) < MOST_KINDS:
            return kind
        return REFUSED, ()
