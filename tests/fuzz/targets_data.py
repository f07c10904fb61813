"""A platform's own rows: descriptions, CSV, JSONL, Parquet, SQLite, and the folder of prepared data.

Each row file is read as a platform does it: through the adapter and all of the cleaning, into a prepared
folder, which is opened again.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

import duckdb
import polars as pl
import torch
from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, same
from targets_platform import SMALL

from clients.adapters import open_source
from clients.dataset import load_dataset
from crossrec_model.data.prepared import PreparedData, open_prepared, prepare
from crossrec_model.data.summary import CleaningSummary
from crossrec_model.errors import DataError

_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TABLES: Final = ("interactions", "catalogue", "users")
_CSV: Final = {
    "interactions": "user_id,item_id,event,time,quantity,price,shop_id,context_device\n"
    + "".join(
        f"u{n % 4},i{n % 3},{event},2025-{1 + n:02}-0{1 + n}T12:00:00Z,{n + 1},1.5,s1,app\n"
        for n, event in enumerate(("view", "favourite", "cart", "purchase", "purchase"))
    ),
    "catalogue": "item_id,shared_id,title,category,brand,price,vector_text\n"
    'i0,4006381333931,"Tea, green",a>b,B,1.5,"0.5,1"\ni1,,Tee,a,,2,"1,-1"\ni2,x,红茶,,b,,\n',
    "users": "user_id,consent_to_link,attribute_region\nu0,yes,north\nu1,0,\nu9,,\n",
}
_DESCRIPTION: Final = """\
name = "shop"
[interactions]
files = "interactions.csv"
[catalogue]
files = ["catalogue.csv"]
category_separator = ">"
[users]
files = "users.csv"
"""
_FULL: Final = """\
name = "shop"
[interactions]
files = "interactions.csv"
format = "csv"
separator = ","
time_format = "%Y-%m-%dT%H:%M:%SZ"
time_zone = "Europe/Berlin"
events = { view = "view", favourite = "ignore", cart = "cart", purchase = "purchase" }
[interactions.columns]
user_id = "user_id"
item_id = "item_id"
event = "event"
time = "time"
[catalogue]
files = ["catalogue.csv"]
quote = '"'
decimal_comma = true
vector_separator = ","
[catalogue.columns]
item_id = "item_id"
title = "title"
price = "price"
"""
_SQL: Final = """\
name = "shop"
[sql]
database = "shop.db"
interactions = "SELECT * FROM interactions"
catalogue = "SELECT * FROM catalogue"
users = "SELECT * FROM users"
[catalogue]
category_separator = ">"
"""
_ENDINGS: Final = {"csv": "csv", "jsonl": "jsonl", "parquet": "parquet", "csv.gz": "csv.gz"}


def _prepared(source: str, into: Path) -> PreparedData:
    return prepare(open_source(source, "A"), into=into, now=_NOW, max_bad=1.0, min_users=1)


def _load(prepared: PreparedData) -> None:
    weeks = {"validation_weeks": 3.0, "test_weeks": 1.0}
    load_dataset(prepared, SMALL.model, device=torch.device("cpu"), min_users=0, **weeks)


def _cleaned(scratch: Path, source: str) -> None:
    """Prepare, and open again what was prepared."""
    into = scratch / "prepared"
    shutil.rmtree(into, ignore_errors=True)
    prepared = _prepared(source, into)
    same(bool(prepared.summary.lines()), True, "summary")
    again = open_prepared(into)
    same(again.summary.to_json(), prepared.summary.to_json(), "summary")
    _load(again)


def _frames() -> dict[str, pl.DataFrame]:
    return {name: pl.read_csv(text.encode()) for name, text in _CSV.items()}


def _file(table: str, kind: str) -> bytes:
    if kind.startswith("csv"):
        raw = _CSV[table].encode()
        return gzip.compress(raw, mtime=0) if kind.endswith("gz") else raw
    frame = _frames()[table]
    if kind == "jsonl":
        rows = [{k: v for k, v in row.items() if v is not None} for row in frame.to_dicts()]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    with tempfile.TemporaryDirectory() as scratch:
        frame.write_parquet(Path(scratch) / "x.parquet", compression="uncompressed")
        return (Path(scratch) / "x.parquet").read_bytes()


def _rows(kind: str) -> Callable[[Path], Check]:
    """One of the three tables is changed; the first byte says which."""

    def prepare_folder(scratch: Path) -> Check:
        folder = scratch / "source"
        folder.mkdir()
        for name, text in _CSV.items():
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")

        def check(data: bytes) -> None:
            chosen = _TABLES[data[0] % 3] if data else _TABLES[0]
            changed = f"{chosen}.{_ENDINGS[kind]}"
            text = _DESCRIPTION.replace(f"{chosen}.csv", changed)
            (folder / "crossrec.toml").write_text(text, encoding="utf-8")
            (folder / changed).write_bytes(data[1:])
            _cleaned(scratch, str(folder))
            if kind == "csv":
                (folder / changed).write_text(_CSV[chosen], encoding="utf-8")

        return check

    return prepare_folder


def _row_seeds(kind: str) -> list[bytes]:
    return [bytes((number,)) + _file(name, kind) for number, name in enumerate(_TABLES)]


def _described(scratch: Path) -> Check:
    """The description beside whole files."""
    folder = scratch / "source"
    folder.mkdir()
    for name, text in _CSV.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")

    def check(data: bytes) -> None:
        (folder / "crossrec.toml").write_bytes(data)
        _cleaned(scratch, str(folder))

    return check


def _opened(scratch: Path) -> Check:
    """The description alone: of a folder, or of a database if it has [sql]."""
    folder = scratch / "source"
    folder.mkdir()
    (folder / "shop.db").write_bytes(_sqlite())

    def check(data: bytes) -> None:
        name = "sql.toml" if b"[sql]" in data else "crossrec.toml"
        (folder / name).write_bytes(data)
        source = open_source(str(folder / name if name == "sql.toml" else folder), "A")
        same(bool(source.name.strip()), True, "name")

    return check


@cache
def _sqlite() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "shop.db"
        connection = sqlite3.connect(path)
        with connection:
            for name, frame in _frames().items():
                columns = ", ".join(f'"{column}"' for column in frame.columns)
                connection.execute(f"CREATE TABLE {name} ({columns})")
                places = ", ".join("?" * frame.width)
                connection.executemany(f"INSERT INTO {name} VALUES ({places})", frame.rows())
        connection.close()
        return path.read_bytes()


@cache
def _duckdb() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "shop.duckdb"
        with duckdb.connect(str(path)) as connection:
            for name, text in _CSV.items():
                (Path(scratch) / "x.csv").write_text(text, encoding="utf-8")
                connection.execute(
                    f"CREATE TABLE {name} AS FROM read_csv('{scratch}/x.csv', all_varchar=true)"
                )
        return path.read_bytes()


def _database(scratch: Path) -> Check:
    """A database's file; the first byte says of which kind."""

    def check(data: bytes) -> None:
        for one in scratch.glob("shop.*"):
            one.unlink()
        name = "shop.db" if not data or data[0] % 2 == 0 else "shop.duckdb"
        (scratch / name).write_bytes(data[1:])
        (scratch / "sql.toml").write_text(_SQL.replace("shop.db", name), encoding="utf-8")
        _cleaned(scratch, str(scratch / "sql.toml"))

    return check


@cache
def _folder() -> dict[str, bytes]:
    """The files of a prepared folder."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        (source / "crossrec.toml").write_text(_DESCRIPTION, encoding="utf-8")
        for name, text in _CSV.items():
            (source / f"{name}.csv").write_text(text, encoding="utf-8")
        _prepared(str(source), Path(scratch) / "prepared")
        tables = (f"{name}.parquet" for name in _TABLES)
        names = ("summary.json", *tables, "checksums.json")
        return {name: (Path(scratch) / "prepared" / name).read_bytes() for name in names}


def _damaged(scratch: Path) -> Check:
    """A prepared folder of which one file is changed; the first byte says which."""

    def check(data: bytes) -> None:
        names = list(_folder())
        chosen = names[data[0] % 5] if data else names[0]
        for name, content in _folder().items():
            (scratch / name).write_bytes(data[1:] if name == chosen else content)
        prepared = open_prepared(scratch)
        prepared.users()
        _load(prepared)

    return check


def _damaged_seeds() -> list[bytes]:
    return [bytes((number,)) + content for number, content in enumerate(_folder().values())]


def _summary(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # The folder refuses it before.
        raise DataError("no UTF-8") from None
    found = CleaningSummary.from_json(text)
    same(CleaningSummary.from_json(found.to_json()), found, "summary")
    same(all(line.isprintable() for line in found.lines()), True, "printable summary")
    for table in found.tables:
        same(isinstance(table.bad_share, float) and table.kept is not None, True, "shares")


def _bomb() -> bytes:
    """A Parquet file whose footer says that it is 2 GiB long."""
    return b"PAR1" + bytes(40) + (0x7FFFFFFF).to_bytes(4, "little") + b"PAR1"


def _packed(lines: int) -> bytes:
    """Rows that compress a thousandfold."""
    row = b"u0,i0,view,2025-01-01T12:00:00Z,1,1.5,s1," + b"a" * 900 + b"\n"
    return gzip.compress(_CSV["interactions"].encode() + row * lines, 9, mtime=0)


TARGETS: Final = (
    Target(
        name="data.description",
        seeds=lambda: [_DESCRIPTION.encode(), _FULL.encode(), _SQL.encode()],
        check=_opened,
        changes=OF_TEXT,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="data.mapping",
        seeds=lambda: [_DESCRIPTION.encode(), _FULL.encode()],
        check=_described,
        changes=OF_TEXT,
        cost=Cost.DEAR,
        memory_mib=256,
    ),
    *(
        Target(
            name=f"data.{kind.replace('.', '_')}",
            seeds=lambda kind=kind: _row_seeds(kind),
            check=_rows(kind),
            changes={
                "csv": OF_TEXT + OF_BYTES,
                "jsonl": OF_JSON,
                "parquet": OF_BYTES,
                "csv.gz": OF_BYTES,
            }[kind],
            cost=Cost.SLOW if kind == "parquet" else Cost.DEAR,
            memory_mib=256,
            bombs={
                "parquet": lambda: [bytes((at,)) + _bomb() for at in range(3)],
                "csv.gz": lambda: [b"\0" + _packed(40_000)],
            }.get(kind, list),
        )
        for kind in _ENDINGS
    ),
    Target(
        name="data.database",
        seeds=lambda: [b"\0" + _sqlite(), b"\1" + _duckdb()],
        check=_database,
        changes=OF_BYTES,
        cost=Cost.DEAR,
        memory_mib=256,
    ),
    Target(
        name="data.prepared",
        seeds=_damaged_seeds,
        check=_damaged,
        changes=OF_BYTES,
        cost=Cost.DEAR,
        memory_mib=256,
        bombs=lambda: [bytes((at,)) + _bomb() for at in (1, 2, 3)],
    ),
    Target(
        name="data.summary",
        seeds=lambda: [_folder()["summary.json"]],
        check=lambda _: _summary,
        changes=OF_JSON,
    ),
)
