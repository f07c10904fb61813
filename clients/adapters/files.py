"""A folder of CSV, JSONL or Parquet files, described by its `crossrec.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from clients.adapters.mapping import TableMapping
from clients.adapters.readers import read_csv, read_jsonl, read_parquet
from clients.adapters.trial import first_broken
from crossrec_model.data.source import TABLES
from crossrec_model.errors import DataError, shown

DESCRIPTION: Final = "crossrec.toml"
_FORMATS: Final = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED: Final = (".gz", ".zst")


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """Which files hold one table, and how they are read.

    Attributes:
        files: globs relative to the folder.
        format: csv, jsonl or parquet; None to go by each file's ending.
        separator: between CSV fields.
        quote: around CSV fields; empty where there is none.
        mapping: what the columns mean.
    """

    files: tuple[str, ...]
    format: str | None = None
    separator: str = ","
    quote: str = '"'
    mapping: TableMapping

    def __post_init__(self) -> None:
        where = f"[{self.mapping.table}]"
        if not self.files:
            raise DataError(f"{where}: files is empty; name at least one file")
        if self.format not in {None, *_FORMATS.values()}:
            raise DataError(
                f"{where}: format = {shown(self.format)} is unknown; use csv, jsonl or parquet"
            )
        if len(self.separator) != 1 or not self.separator.isascii():
            raise DataError(
                f"{where}: separator = {shown(self.separator)} is not one ASCII character; correct it"
            )
        if len(self.quote) > 1 or not self.quote.isascii():
            raise DataError(
                f"{where}: quote = {shown(self.quote)} is not one ASCII character; correct it"
            )

    @staticmethod
    def parse(table: str, section: Mapping[str, Any]) -> TableFiles:
        """Read a section of `crossrec.toml`.

        Raises:
            DataError: an unknown setting, or one of the wrong type.
        """
        rest = dict(section)
        files = rest.pop("files", None)
        globs = [files] if isinstance(files, str) else files
        if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
            raise DataError(
                f"[{table}]: files = {shown(files)} is no list of file names; name the files"
            )
        texts = {name: rest.pop(name) for name in ("format", "separator", "quote") if name in rest}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise DataError(f"[{table}]: {name} = {shown(value)} is not a text; correct it")
        return TableFiles(files=tuple(globs), mapping=TableMapping.parse(table, rest), **texts)

    def scan(self, folder: Path) -> pl.LazyFrame:
        """All files one after the other, in the order of the globs, then of their names.

        Raises:
            DataError: no file, an empty or unreadable one, or a missing column.
        """
        paths: dict[Path, None] = {}
        for glob in self.files:
            paths.update(dict.fromkeys(_matches(folder, glob, self.mapping.table)))
        if broken := first_broken([path for path in paths if self._kind(path) == "parquet"]):
            raise DataError(
                f"{broken.name} can't be read as Parquet: its reader broke on it; export it again"
            )
        frames = [
            self.mapping.apply(self._read(path), file=path.relative_to(folder).as_posix())
            for path in paths
        ]
        return pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else frames[0]

    def _kind(self, path: Path) -> str | None:
        """The format of a file, None if nothing tells it."""
        endings = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
        return self.format or _FORMATS.get(endings[-1].lower() if endings else "")

    def _read(self, path: Path) -> pl.LazyFrame:
        kind = self._kind(path)
        if kind == "csv":
            return read_csv(path, separator=self.separator, quote=self.quote or None)
        if kind == "jsonl":
            return read_jsonl(path, keys=self.mapping.wanted())
        if kind == "parquet":
            return read_parquet(path)
        raise DataError(
            f"{path.name}: the ending tells no format; set format in [{self.mapping.table}] to "
            "csv, jsonl or parquet"
        )


class FolderSource:
    """A folder with a `crossrec.toml`.

    Args:
        folder: the folder.

    Raises:
        DataError: the description is missing or wrong.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        description = read_description(folder / DESCRIPTION)
        self._name = description_name(description, folder.resolve().name)
        for table in ("interactions", "catalogue"):
            if table not in description:
                raise DataError(f"{DESCRIPTION}: the section [{table}] is missing; add it")
        unknown = [name for name in description if name not in {*TABLES, "name"}]
        if unknown:
            raise DataError(
                f"{DESCRIPTION}: unknown section [{unknown[0]}]; use {', '.join(TABLES)}"
            )
        self._tables = {
            table: TableFiles.parse(table, description[table])
            for table in TABLES
            if table in description
        }

    @property
    def name(self) -> str:
        """`name` in the description, else the folder's own name."""
        return self._name

    @property
    def mappings(self) -> Mapping[str, TableMapping]:
        """What each table's columns mean."""
        return {table: files.mapping for table, files in self._tables.items()}

    def interactions(self) -> pl.LazyFrame:
        """One row per event."""
        return self._tables["interactions"].scan(self._folder)

    def catalogue(self) -> pl.LazyFrame:
        """One row per item."""
        return self._tables["catalogue"].scan(self._folder)

    def users(self) -> pl.LazyFrame | None:
        """One row per user, or None without a section for them."""
        users = self._tables.get("users")
        return None if users is None else users.scan(self._folder)


def read_description(file: Path) -> dict[str, Any]:
    """Parse a TOML file whose sections are all tables.

    Raises:
        DataError: it can't be read, or a section is not a table.
    """
    try:
        description = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror}); write one") from None
    except (ValueError, RecursionError) as error:
        # ValueError: no UTF-8, no TOML, or a number of more digits than Python reads.
        raise DataError(f"{file.name} is not valid TOML: {error}") from None
    for name, section in description.items():
        if name != "name" and not isinstance(section, dict):
            raise DataError(
                f"{file.name}: {name[:80]} = {shown(section)} is not a section; write [{name}]"
            )
    return description


def description_name(description: Mapping[str, Any], default: str) -> str:
    """The source's name for messages.

    Raises:
        DataError: it is not a text.
    """
    name = description.get("name", default)
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise DataError(f"name = {shown(name)} is not a text; give the source a short name")
    return name


def _matches(folder: Path, glob: str, table: str) -> list[Path]:
    try:
        paths = sorted(path for path in folder.glob(glob) if path.is_file())
    except (ValueError, NotImplementedError):
        raise DataError(
            f"[{table}]: files = {shown(glob)} is no name relative to the folder; correct it"
        ) from None
    if not paths:
        raise DataError(f"[{table}]: no file matches {shown(glob)}; correct files in {DESCRIPTION}")
    return paths
