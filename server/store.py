"""The coordinator's state in a database: runs, rounds, openings, platforms.

Every write is one transaction that is on the disk when the call returns. The model itself is in the
checkpoint files; a platform's update is nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from sqlalchemy import Connection, func, select, update

from crossrec_model.errors import ConfigError, FederationError
from server import schema
from server.checkpoint import RoundRecord
from server.database import Database
from server.rows import (
    STATUSES,
    Run,
    RunStatus,
    Seen,
    hex_of,
    put,
    record_of,
    round_row,
    run_of,
    sound,
)
from server.stored_openings import StoredOpenings

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_PLATFORM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_SOFTWARE: Final = 64
#: How exact it is known when a platform was here last.
SEEN_EVERY: Final = timedelta(minutes=1)


class Store:
    """The coordinator's database; made by `open`, used by any thread.

    Every method raises FederationError, naming the database without its password, where that is
    damaged or refuses, and DatabaseUnavailableError, which is one, where it can't be reached.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock
        self._seen: dict[str, tuple[str, datetime]] = {}

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        create: bool = True,
        patience_s: float = 5.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Open the database of a URL, and make its tables where there are none and `create` is set.

        A path is a SQLite file. `clock` gives aware times; `patience_s` is how long to wait for a
        server or a lock.

        Raises:
            FederationError: for a URL, a driver, a file or a version of the tables that won't do.
            DatabaseUnavailableError: for a server that is not there, or a file that is locked.
        """
        database = Database.open(url, create=create, patience_s=patience_s)
        try:
            _make_tables(database, create=create)
            return cls(database, clock)
        except BaseException:
            database.close()
            raise

    @property
    def name(self) -> str:
        """The database's URL without its password."""
        return self._database.name

    def begin_run(self, run: bytes, plan: bytes, plan_version: int = 0) -> None:
        """Write down that a run begins, or goes on; `plan` is its canonical JSON.

        When it began first stays.
        """
        table, key = schema.runs, {"id": hex_of(run)}
        row = {"plan": plan.decode(), "plan_version": plan_version, "status": "running"}
        with self._database.writing() as connection:
            last = connection.execute(select(func.max(table.c.sequence))).scalar() or 0
            with sound(self.name):
                last = int(last)
            first = {"started": self._now(), "sequence": last + 1}
            put(connection, table, key, {**row, "ended": None}, first)

    def end_run(self, run: bytes, status: RunStatus) -> None:
        """Write down how a run ended; it may go on later with `begin_run`.

        Raises:
            FederationError: for a run that was never begun.
        """
        if status == "running" or status not in STATUSES:
            raise ConfigError(f"status {status!r} is no end; give finished, stopped or failed")
        table = schema.runs
        with self._database.writing() as connection:
            changed = connection.execute(
                update(table)
                .where(table.c.id == hex_of(run))
                .values(status=status, ended=self._now())
            )
            if changed.rowcount != 1:
                raise self._unknown(run)

    def save_round(self, run: bytes, record: RoundRecord) -> None:
        """Write down a finished round; one that stands there already is replaced.

        Raises:
            FederationError: for a run that was never begun.
        """
        with self._database.writing() as connection:
            self._save(connection, run, [record])

    def take_over(self, run: bytes, history: Sequence[RoundRecord]) -> None:
        """Make the rounds of a run those of a checkpoint, all at once; do it when it goes on.

        What a kill kept from the database comes in, and rounds of a checkpoint that was lost go.

        Raises:
            FederationError: for a run that was never begun.
        """
        table, last = schema.rounds, max((record.round for record in history), default=0)
        with self._database.writing() as connection:
            self._save(connection, run, history)
            beyond = table.delete().where(table.c.run == hex_of(run), table.c.number > last)
            connection.execute(beyond)

    def saw(self, platforms: Mapping[str, str]) -> None:
        """Write down that platforms are here now, each with its software's version.

        Cheap if called often: what was written within a minute is not written again.
        """
        for platform in platforms:
            if not _PLATFORM.fullmatch(platform):
                raise ConfigError(f"platform id {platform!r:.80} is none; nothing was written")
        now = self._clock()
        news = {
            platform: software
            for platform, software in sorted(platforms.items())
            if not self._fresh(platform, software, now)
        }
        if not news:
            return
        time = _text(now)
        with self._database.writing() as connection:
            for platform, software in news.items():
                row = {"last_seen": time, "software": _one_line(software)}
                put(connection, schema.platforms, {"id": platform}, row, {"first_seen": time})
        self._seen |= {platform: (software, now) for platform, software in news.items()}

    def openings(self, run: bytes) -> StoredOpenings:
        """Return the openings of a run, as they stand in the database."""
        return StoredOpenings(self._database, run)

    def runs(self) -> list[Run]:
        """Return all runs, the oldest first."""
        run, rounds = schema.runs, schema.rounds
        done = (
            select(func.count()).where(rounds.c.run == run.c.id).scalar_subquery().label("rounds")
        )
        with self._database.reading() as connection:
            found = connection.execute(select(run, done).order_by(run.c.sequence))
            rows = found.mappings().all()
        with sound(self.name):
            return [run_of(row) for row in rows]

    def unfinished(self) -> Run | None:
        """Return the latest run if it is not finished."""
        latest = self.runs()[-1:]
        return latest[0] if latest and latest[0].status != "finished" else None

    def rounds(self, run: bytes) -> list[RoundRecord]:
        """Return the finished rounds of a run in order."""
        table = schema.rounds
        with self._database.reading() as connection:
            found = connection.execute(
                select(table).where(table.c.run == hex_of(run)).order_by(table.c.number)
            )
            rows = found.mappings().all()
        with sound(self.name):
            return [record_of(row) for row in rows]

    def platforms(self) -> list[Seen]:
        """Return all platforms that were ever here, by id."""
        table = schema.platforms
        with self._database.reading() as connection:
            found = connection.execute(select(table).order_by(table.c.id)).all()
        return [
            Seen(platform=r.id, first=r.first_seen, last=r.last_seen, software=r.software)
            for r in found
        ]

    def status(self) -> list[str]:
        """Say to the operator what is there: each run, its last round, and each platform."""
        runs, lines = self.runs(), [f"database {self.name}, tables of version {schema.VERSION}"]
        if not runs:
            lines.append("no run was begun yet")
        for run in runs:
            end = f", {run.status} {run.ended}" if run.ended else f", {run.status}"
            lines.append(f"run {run.run.hex()[:8]}: begun {run.started}{end}, rounds {run.rounds}")
        if runs and (done := self.rounds(runs[-1].run)):
            over = ", ".join(done[-1].platforms)
            lines.append(f"  round {done[-1].round} over {over} in {done[-1].seconds:.2f} s")
        seen = self.platforms()
        width = max((len(platform.platform) for platform in seen), default=0)
        lines += [
            f"platform {p.platform:{width}}  last here {p.last}, since {p.first}, with {p.software}"
            for p in seen
        ]
        return [_one_line(line, most=len(line)) for line in lines]

    def close(self) -> None:
        """Let the database go; harmless when closed."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _now(self) -> str:
        return _text(self._clock())

    def _fresh(self, platform: str, software: str, now: datetime) -> bool:
        """Whether the same was written less than a minute ago; not after a clock was set back."""
        if platform not in self._seen:
            return False
        known, when = self._seen[platform]
        return known == software and timedelta(0) <= now - when < SEEN_EVERY

    def _save(self, connection: Connection, run: bytes, records: Sequence[RoundRecord]) -> None:
        known = select(schema.runs.c.id).where(schema.runs.c.id == hex_of(run))
        if connection.execute(known).first() is None:
            raise self._unknown(run)
        for record in records:
            key = {"run": hex_of(run), "number": record.round}
            put(connection, schema.rounds, key, round_row(record), {"finished": self._now()})

    def _unknown(self, run: bytes) -> FederationError:
        return FederationError(
            f"run {hex_of(run)[:8]} is not in database {self.name}; begin it first"
        )


def checkup(folder: Path) -> str:
    """Say what the database of a federation's folder holds; nothing is made or changed.

    Raises:
        FederationError: as `Store.open`.
    """
    from server.federation import DATABASE
    from server.folder import FederationFolder

    federation = FederationFolder(folder)
    given, path = federation.settings().database, federation.state / DATABASE
    if not given and not path.exists():
        return "no database yet; the coordinator makes it"
    with Store.open(given or path, create=False) as store:
        runs = store.runs()
        last = f", the last one {runs[-1].status} after {runs[-1].rounds}" if runs else ""
        return f"{store.name} is whole; runs: {len(runs)}{last}"


def _make_tables(database: Database, *, create: bool) -> None:
    with database.reading() as connection:
        version = schema.version_of(connection, database.name)
    if version is None and not create:
        raise FederationError(
            f"database {database.name} is empty; the coordinator makes its tables"
        )
    if version is None:
        with database.writing() as connection:
            # Another process may have made them meanwhile.
            if schema.version_of(connection, database.name) is None:
                schema.make_tables(connection)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime(_TIME)


def _one_line(text: str, most: int = _MOST_SOFTWARE) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:most]
