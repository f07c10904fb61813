"""How many rows were read, kept, and dropped by which reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from crossrec_model.data.quarantine import Reason
from crossrec_model.errors import DataError, shown

_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class TableSummary:
    """How many rows of one table were read, kept, and dropped by which reason.

    Duplicates are counted apart from bad rows: an event delivered twice says nothing against the
    mapping, so it doesn't count towards the bound on bad rows.
    """

    table: str
    read: int
    dropped: Mapping[Reason, int]

    @property
    def kept(self) -> int:
        """Rows that passed every rule."""
        return self.read - sum(self.dropped.values())

    @property
    def bad(self) -> int:
        """Rows dropped for any reason other than being a duplicate."""
        return sum(n for reason, n in self.dropped.items() if reason is not Reason.DUPLICATE)

    @property
    def bad_share(self) -> float:
        """Bad rows over rows read, in [0, 1]; 0 for an empty table."""
        return self.bad / self.read if self.read else 0.0

    def largest_reason(self) -> Reason | None:
        """The reason of most bad rows (the earlier rule among equals), or None without any."""
        counts = {r: self.dropped.get(r, 0) for r in Reason if r is not Reason.DUPLICATE}
        reason = max(counts, key=counts.__getitem__)
        return reason if counts[reason] else None

    def lines(self) -> list[str]:
        """The table as lines to print: one for the totals, one per reason."""
        lines = [f"{self.table}: read {self.read:,}, kept {self.kept:,}"]
        counts = ((reason, self.dropped.get(reason, 0)) for reason in Reason)
        lines += [f"  dropped {n:,} ({n / self.read:.3%}) {reason}" for reason, n in counts if n]
        return lines


@dataclass(frozen=True, kw_only=True)
class CleaningSummary:
    """What cleaning did with one platform's source; counts of rows, users and items."""

    source: str
    tables: tuple[TableSummary, ...]
    users: int
    items: int
    first_time: datetime
    last_time: datetime

    def lines(self) -> list[str]:
        """The summary as lines to print."""
        lines = [f"{self.source}: {self.users:,} users with events, {self.items:,} items"]
        lines.append(f"events from {self.first_time:%Y-%m-%d} to {self.last_time:%Y-%m-%d} (UTC)")
        return lines + [line for table in self.tables for line in table.lines()]

    def to_json(self) -> str:
        """Indented JSON that `from_json` reads back."""
        tables = [
            {"table": t.table, "read": t.read, "kept": t.kept, "dropped": dict(t.dropped)}
            for t in self.tables
        ]
        content = {
            "format": _FORMAT,
            "source": self.source,
            "users": self.users,
            "items": self.items,
            "first_time": self.first_time.isoformat(),
            "last_time": self.last_time.isoformat(),
            "tables": tables,
        }
        return json.dumps(content, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> CleaningSummary:
        """Read what `to_json` wrote.

        Raises:
            DataError: the text is not a summary of this format.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            if content["format"] != _FORMAT:
                raise DataError(f"summary has format {shown(content['format'])}, not {_FORMAT}")
            tables = tuple(
                TableSummary(
                    table=_name(t["table"]),
                    read=_count(t["read"]),
                    dropped={Reason(reason): _count(n) for reason, n in t["dropped"].items()},
                )
                for t in content["tables"]
            )
            return CleaningSummary(
                source=_name(content["source"]),
                tables=tables,
                users=_count(content["users"]),
                items=_count(content["items"]),
                first_time=datetime.fromisoformat(content["first_time"]),
                last_time=datetime.fromisoformat(content["last_time"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"the summary is damaged ({error}); prepare the data again") from None


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{shown(value)} is no number of rows")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{shown(value)} is no name")
    return value


def by_reason(counts: Mapping[str, int]) -> dict[Reason, int]:
    """Counts above zero, in the order of the rules."""
    return {reason: counts[reason.value] for reason in Reason if counts.get(reason.value)}
