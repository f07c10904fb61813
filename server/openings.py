"""Which sums the coordinator has begun to open, and over whom.

Platforms open one list of survivors a round. A coordinator that forgot the list, by a failed try or a
restart, would ask for another one and never get it, so it is written down before anybody is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Protocol

from crossrec_model.durable import write_durably
from crossrec_model.errors import FederationError
from crossrec_model.secagg.messages import Kind

FILE: Final = "openings.json"


class KeptOpenings(Protocol):
    """Remembers which sums were begun to be opened, whatever keeps it."""

    def of(self, kind: Kind, number: int) -> tuple[str, ...] | None:
        """The platforms over whom a round was begun to be opened, None if it was not."""

    def begin(self, kind: Kind, number: int, platforms: tuple[str, ...]) -> None:
        """Write down an opening; it is durable when this returns."""


class Openings:
    """The latest opening of each kind in a run; in a file, or in memory alone.

    Raises:
        FederationError: for a file that is damaged, or can't be written.
    """

    def __init__(self, run: bytes, path: Path | None = None) -> None:
        self._path, self._run = path, run.hex()
        self._latest: dict[str, Any] = {}
        if path is not None and path.exists():
            self._latest = self._read(path)

    def of(self, kind: Kind, number: int) -> tuple[str, ...] | None:
        """The platforms over whom a round was begun to be opened, None if it was not."""
        found = self._latest.get(kind.name)
        return tuple(found["platforms"]) if found and found["round"] == number else None

    def begin(self, kind: Kind, number: int, platforms: tuple[str, ...]) -> None:
        """Write down an opening; it is on the disk when this returns."""
        self._latest[kind.name] = {"round": number, "platforms": list(platforms)}
        if self._path is None:
            return
        document = {"run": self._run, "openings": self._latest}
        try:
            write_durably(self._path, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise FederationError(
                f"can't write {self._path}: {error.strerror}; free the disk and start again with "
                "--resume"
            ) from None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            document = json.loads(path.read_bytes())
            if bytes.fromhex(document["run"]).hex() != self._run:
                return {}
            return {
                kind.name: {
                    "round": int(document["openings"][kind.name]["round"]),
                    "platforms": [str(p) for p in document["openings"][kind.name]["platforms"]],
                }
                for kind in Kind
                if kind.name in document["openings"]
            }
        except (
            *(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError),
        ) as error:
            raise FederationError(
                f"{path} is damaged ({error}); move it away and start a new run in another --state"
            ) from None
