"""A line of the audit log: canonical JSON, chained to the line before by SHA-256. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.secagg.identity import FORMAT, canonical, check_exact, fields, parse
from server.flood import NOT_WRITTEN, Event

MOST_TEXT: Final = 200
MOST_FIELDS: Final = 16
#: No line of so many fields of such texts is longer, in bytes.
MOST_LINE: Final = 64 << 10
_FIRST: Final = "0" * 64
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_LINE: Final = {
    "format": int,
    "sequence": int,
    "fields": dict,
    **dict.fromkeys(("time", "event", "previous", "sha256"), str),
}


@dataclass(frozen=True)
class Head:
    """The last line: its number, from 1 on (0: none yet), and its digest."""

    sequence: int = 0
    digest: str = _FIRST


def event_of(name: str, given: Mapping[str, object]) -> Event:
    """Return an event that a line can hold; texts are cut after `MOST_TEXT` characters.

    Raises:
        ConfigError: for too many fields, a name or a value that no line can hold.
    """
    if len(given) > MOST_FIELDS:
        raise ConfigError(f"event {name} has {len(given)} fields; at most {MOST_FIELDS} may be")
    for word in (name, *given):
        if not _NAME.fullmatch(word) or word == NOT_WRITTEN:
            raise ConfigError(f"{word!r:.80} can't name an event or a field of the audit log")
    kept: dict[str, str | int] = {}
    for key, value in given.items():
        if isinstance(value, str):
            kept[key] = value if len(value) <= MOST_TEXT else f"{value[: MOST_TEXT - 1]}…"
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            kept[key] = value
        else:
            raise ConfigError(f"{key} = {value!r:.80} is no text or whole number of 64 bits")
    return Event(name, kept)


def line_of(event: Event, after: Head, now: datetime) -> tuple[bytes, Head]:
    """Return an event's line after the one of `after`, without its end, and the head it makes."""
    content = {
        "format": FORMAT,
        "sequence": after.sequence + 1,
        "time": now.astimezone(UTC).strftime(_TIME),
        "event": event.name,
        "fields": dict(event.fields),
        "previous": after.digest,
    }
    digest = sha256(canonical(content)).hexdigest()
    return canonical(content | {"sha256": digest}), Head(after.sequence + 1, digest)


def head_of(line: bytes, after: Head | None = None) -> Head | None:
    """Return the head that a line makes, None if it is damaged or does not come after `after`."""
    try:
        found = fields(parse(line, "it", most=MOST_LINE), "it", _LINE)
        before = Head(found["sequence"] - 1, found["previous"])
        then = datetime.strptime(found["time"], _TIME).replace(tzinfo=UTC)
        # Written anew it must be the same: digest and all.
        written, head = line_of(Event(found["event"], found["fields"]), before, then)
        check_exact(written, line, "it")
    except (CrossrecError, ValueError, RecursionError):
        return None
    if before.sequence < 0 or (after is not None and before != after):
        return None
    return head


def spoilt(rest: bytes, after: Head) -> bool:
    """Whether bytes without the end of a line are a whole one and more: no cut-off write is so."""
    return head_of(rest[:-1], after) is not None
