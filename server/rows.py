"""Rows of the coordinator's database: what they say, how they are written and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sqlalchemy import Connection, RowMapping, Table, insert, update

from crossrec_model.errors import ConfigError, FederationError
from server.checkpoint import RoundRecord

RunStatus = Literal["running", "finished", "stopped", "failed"]
STATUSES: Final[tuple[str, ...]] = get_args(RunStatus)
RUN_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it stands: `rounds` are finished, `ended` is None until it is over."""

    run: bytes
    plan: str
    plan_version: int
    started: str
    ended: str | None
    status: RunStatus
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """When a platform was here, in UTC, and with what software."""

    platform: str
    first: str
    last: str
    software: str


def put(
    connection: Connection,
    table: Table,
    key: Mapping[str, object],
    row: Mapping[str, object],
    first: Mapping[str, object],
) -> None:
    """Change the row of a key, or add it, then with what `first` says too."""
    same = [table.c[name] == value for name, value in key.items()]
    if connection.execute(update(table).where(*same).values(**row)).rowcount == 0:
        connection.execute(insert(table).values(**key, **row, **first))


def round_row(record: RoundRecord) -> dict[str, object]:
    """Return a round's columns but its key; a mean that is no number is null."""
    means = {
        name: {metric: float(v) if math.isfinite(v) else None for metric, v in values.items()}
        for name, values in (("training", record.training), ("evaluation", record.evaluation))
    }
    return {
        "platforms": json.dumps(list(record.platforms)),
        "seconds": float(record.seconds),
        "means": json.dumps(means, sort_keys=True, allow_nan=False),
    }


def record_of(row: RowMapping) -> RoundRecord:
    """Read a round back; anything raised is damage, see `sound`."""
    means = json.loads(row["means"])
    training, evaluation = (
        {str(k): math.nan if v is None else float(v) for k, v in means[name].items()}
        for name in ("training", "evaluation")
    )
    return RoundRecord(
        round=int(row["number"]),
        platforms=names_of(row["platforms"]),
        seconds=float(row["seconds"]),
        training=training,
        evaluation=evaluation,
    )


def run_of(row: RowMapping) -> Run:
    """Read a run back; anything raised is damage, see `sound`."""
    if row["status"] not in STATUSES:
        raise ValueError(f"status {row['status']!r:.40}")
    rest = ("plan", "plan_version", "started", "ended", "status", "rounds")
    return Run(run=bytes.fromhex(row["id"]), **{name: row[name] for name in rest})


def names_of(text: str) -> tuple[str, ...]:
    """Read a list of platform ids back; anything raised is damage, see `sound`."""
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{text!r:.40} is no list of names")
    return tuple(found)


def hex_of(run: bytes) -> str:
    """Return a run's id as it stands in the tables; raises ConfigError unless it has 16 bytes."""
    if len(run) != RUN_BYTES:
        raise ConfigError(f"run has {len(run)} bytes; {RUN_BYTES} are needed")
    return run.hex()


@contextmanager
def sound(name: str) -> Iterator[None]:
    """Report a row that no version of ours wrote."""
    try:
        yield
    except (
        *(ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError),
    ) as error:
        raise FederationError(
            f"database {name} is damaged ({error}); move it away and start a new run: an old copy "
            "must not take its place"
        ) from None
