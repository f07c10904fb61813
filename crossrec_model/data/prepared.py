"""Prepared data: a folder with one platform's clean tables, its summary and its quarantine.

    interactions.parquet   kept events, sorted by user_id, time
    catalogue.parquet      kept items, sorted by item_id
    users.parquet          every user of an event or of the users table, sorted by user_id
    summary.json           what was read, kept and dropped
    checksums.json         SHA-256 of the three tables
    quarantine/            <table>.csv for each table with rejected rows

The folder appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from crossrec_model.data.acceptance import check_usable
from crossrec_model.data.cleaning import Cleaned, CleanTable, clean
from crossrec_model.data.ordering import write_ordered
from crossrec_model.data.quarantine import write_quarantine
from crossrec_model.data.schema import USERS
from crossrec_model.data.source import TABLES, Source
from crossrec_model.data.staging import ROWS_IN_MEMORY
from crossrec_model.data.summary import CleaningSummary
from crossrec_model.durable import flush
from crossrec_model.errors import ConfigError, DataError

_SUMMARY: Final = "summary.json"
_CHECKSUMS: Final = "checksums.json"
_QUARANTINE: Final = "quarantine"


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Clean tables of one platform on disk."""

    folder: Path
    summary: CleaningSummary

    def interactions(self) -> pl.LazyFrame:
        """Kept events, sorted by user_id, time: all of `INTERACTIONS`, then context columns."""
        return self._scan("interactions")

    def catalogue(self) -> pl.DataFrame:
        """Kept items, sorted by item_id: all of `CATALOGUE`."""
        with self.reading():
            return self._scan("catalogue").collect()

    def users(self) -> pl.DataFrame:
        """All known users, sorted by user_id: all of `USERS`, then attribute columns."""
        with self.reading():
            return self._scan("users").collect()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what damaged files raise, at the latest when a lazy table is read, into DataError."""
        try:
            yield
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise DataError(
                f"{self.folder} is damaged ({_first_line(error)}); prepare it again"
            ) from None

    def _scan(self, table: str) -> pl.LazyFrame:
        with self.reading():
            frame = pl.scan_parquet(self.folder / f"{table}.parquet")
            schema = frame.collect_schema()
        for column, dtype in TABLES[table][0].items():
            if schema.get(column) != dtype:
                raise DataError(
                    f"{self.folder} is damaged ({table}: {column} is {schema.get(column)}, not "
                    f"{dtype}); prepare it again"
                )
        return frame


def open_prepared(folder: Path) -> PreparedData:
    """Open a folder that `prepare` wrote, and verify its tables' checksums.

    A reader of tables may take its whole process down over damaged bytes, so it gets none.

    Raises:
        DataError: the folder is not one, or it is damaged.
    """
    try:
        text = (folder / _SUMMARY).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{folder} holds no prepared data; prepare it first") from None
    for table in ("interactions", "catalogue", "users"):
        if not (folder / f"{table}.parquet").is_file():
            raise DataError(f"{folder} lacks {table}.parquet; prepare the data again")
    _verify(folder)
    return PreparedData(folder=folder, summary=CleaningSummary.from_json(text))


def prepare(
    source: Source,
    *,
    into: Path,
    now: datetime,
    max_bad: float = 0.01,
    min_users: int = 50,
    rows_in_memory: int = ROWS_IN_MEMORY,
) -> PreparedData:
    """Clean a source into a folder.

    1. Clean the three tables. 2. Write the quarantine. 3. Refuse data that is too bad. 4. Order
    and write the tables; refuse too few users. 5. Write checksums and summary, swap the folder in.

    Args:
        source: the platform's untrusted rows.
        into: the folder; an earlier prepared one is replaced, anything else is left alone.
        now: time zone aware; events after it are rejected.
        max_bad: largest accepted share of bad rows in each table, duplicates aside, in [0, 1].
        min_users: fewest users with a kept event, at least 1.
        rows_in_memory: more interactions than these go through temporary files beside `into`;
            about 0.3 KiB of memory each, at least 1.

    Raises:
        ConfigError: an argument is outside its bounds.
        DataError: the rows can't be used; the quarantine then stands in `<into>.rejected`.
    """
    _check_arguments(into, now, max_bad, min_users)
    with _workspace(into) as work, _readable(source.name):
        folder = work / "folder"
        cleaned = clean(source, now=now, folder=work / "scratch", rows_in_memory=rows_in_memory)
        for table, rows in cleaned.rejected().items():
            (folder / _QUARANTINE).mkdir(exist_ok=True)
            write_quarantine(rows, folder / _QUARANTINE / f"{table}.csv")
        check_usable(cleaned, max_bad=max_bad, quarantine=_rejected_folder(into))
        active = write_ordered(
            cleaned.interactions,
            folder / "interactions.parquet",
            scratch=work / "scratch",
            rows_in_memory=rows_in_memory,
        )
        if len(active) < min_users:
            raise DataError(
                f"{source.name}: {len(active):,} users have events, below min_users = "
                f"{min_users:,}; deliver a longer period or lower min_users"
            )
        cleaned.catalogue.rows.write_parquet(folder / "catalogue.parquet")
        _all_users(active, cleaned.users).write_parquet(folder / "users.parquet")
        summary = _summary(source.name, folder, cleaned, len(active))
        (folder / _CHECKSUMS).write_text(json.dumps(_checksums(folder)), encoding="utf-8")
        (folder / _SUMMARY).write_text(summary.to_json(), encoding="utf-8")
        _publish(folder, into)
    return PreparedData(folder=into, summary=summary)


def _checksums(folder: Path) -> dict[str, str]:
    found = {}
    for table in TABLES:
        with (folder / f"{table}.parquet").open("rb") as file:
            found[f"{table}.parquet"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _verify(folder: Path) -> None:
    """Raise DataError unless the tables are those that were written."""
    try:
        found = json.loads((folder / _CHECKSUMS).read_bytes()), _checksums(folder)
    except (OSError, ValueError, RecursionError):
        found = None, {}
    if found[0] != found[1]:
        raise DataError(f"{folder} is damaged (a checksum differs); prepare it again")


def _check_arguments(into: Path, now: datetime, max_bad: float, min_users: int) -> None:
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"max_bad = {max_bad} is outside [0, 1]; give a share such as 0.01")
    if min_users < 1:
        raise ConfigError(f"min_users = {min_users} is below 1; give the fewest users to accept")
    if now.tzinfo is None:
        raise ConfigError(f"now = {now} has no time zone; give an aware time such as UTC")
    if into.is_file() or (into.is_dir() and any(into.iterdir()) and not (into / _SUMMARY).exists()):
        raise DataError(f"{into} exists and holds something else; name a new folder")


@contextmanager
def _workspace(into: Path) -> Iterator[Path]:
    """A hidden sibling of `into`, so that the last step is a rename on one file system."""
    try:
        into.absolute().parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.absolute().parent)
    except OSError as error:
        raise DataError(
            f"{into} can't be written ({error.strerror}); name another folder"
        ) from None
    work = Path(name)
    try:
        for folder in ("folder", "scratch"):
            (work / folder).mkdir()
        yield work
    except DataError:
        shutil.rmtree(_rejected_folder(into), ignore_errors=True)
        if (work / "folder" / _QUARANTINE).is_dir():
            (work / "folder" / _QUARANTINE).rename(_rejected_folder(into))
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rejected_folder(into: Path) -> Path:
    return into.with_name(f"{into.name}.rejected")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn the reader's errors into one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{name}: the data can't be read: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    """Readers explain themselves over many lines; the first says what is wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _all_users(active: pl.Series, listed: CleanTable | None) -> pl.DataFrame:
    """Every user with events or in the users table; one who is not in the table says no."""
    users = active.to_frame("user_id").with_columns(consent_to_link=pl.lit(value=False))
    if listed is not None:
        unlisted = users.join(listed.rows, on="user_id", how="anti")
        users = pl.concat([listed.rows, unlisted], how="diagonal")
    consent = pl.col("consent_to_link").fill_null(value=False)
    further = pl.exclude(*USERS)
    return users.select("user_id", consent, further).sort("user_id")


def _summary(name: str, folder: Path, cleaned: Cleaned, active: int) -> CleaningSummary:
    time = pl.col("time")
    period = (
        pl.scan_parquet(folder / "interactions.parquet")
        .select(time.min().alias("first"), time.max().alias("last"))
        .collect(engine="streaming")
    )
    return CleaningSummary(
        source=name,
        tables=cleaned.summaries,
        users=active,
        items=cleaned.catalogue.rows.height,
        first_time=period["first"][0],
        last_time=period["last"][0],
    )


def _publish(folder: Path, into: Path) -> None:
    """Make every file durable, then swap the folder in."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)
    replaced = folder.with_name("replaced")
    if into.exists():
        into.rename(replaced)
    try:
        folder.rename(into)
    except OSError:
        if replaced.exists():
            replaced.rename(into)
        raise
    flush(into.absolute().parent)
    shutil.rmtree(_rejected_folder(into), ignore_errors=True)
