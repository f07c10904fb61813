"""The data mapping: which columns mean what, and what of the first rows would be dropped."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import polars as pl
import pytest
from doctor_folders import now, told
from platform_rows import write_platform

from clients.adapters import open_source
from clients.checks.rows import mapping
from crossrec_model.checkup import Check, Finding, examine


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_platform(tmp_path / "rows", 0)


def _mapping(data: Path | str, **more: object) -> list[Finding]:
    look = Check("data mapping", lambda: mapping(str(data), "A", now=now, **more))  # type: ignore[arg-type]
    return list(examine([look]).findings)


def _add(rows: Path, *lines: str) -> None:
    with (rows / "events.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_good_rows(rows: Path) -> None:
    findings = _mapping(rows)
    assert {f.level for f in findings} == {"ok"}
    texts = [f.found for f in findings]
    assert (
        "interactions: user_id from user, item_id from item, event, time, quantity, price" in texts
    )
    assert "interactions: of all 720 rows none would be dropped" in texts
    # Nothing is left beside the rows.
    assert sorted(path.name for path in rows.iterdir()) == [
        "crossrec.toml",
        "events.csv",
        "items.csv",
    ]


def test_a_few_bad_rows_are_counted_by_reason(rows: Path) -> None:
    _add(rows, ",i1,purchase,2024-02-01T00:00:00Z,1,1", "u1,i1,purchase,never,1,1")
    level, _ = told(_mapping(rows), "data mapping")
    assert level == "ok"
    (line,) = [f.found for f in _mapping(rows) if f.found.startswith("interactions: of all")]
    assert (
        line == "interactions: of all 722 rows 1 missing_user, 1 unreadable_time would be dropped"
    )
    level, text = told(_mapping(rows, max_bad=0.001), "data mapping")
    assert level == "fail"
    assert "0.28% are bad, above 0.10%; check which column is mapped to user_id" in text


def test_a_sample_that_is_a_little_too_bad_may_be_bad_luck(rows: Path) -> None:
    lines = (rows / "events.csv").read_text(encoding="utf-8").splitlines()
    lines[1:5] = [",i1,purchase,2024-02-01T00:00:00Z,1,1"] * 4
    (rows / "events.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    level, text = told(_mapping(rows, first_rows=100), "data mapping")
    assert level == "warn"
    assert "of the first 100 rows" in text
    assert "unless the other rows are better" in text
    # With a bound of a tenth of what was found it is no bad luck any more.
    assert told(_mapping(rows, first_rows=100, max_bad=0.003), "data mapping")[0] == "fail"


def test_a_catalogue_of_other_items(rows: Path) -> None:
    text = (rows / "items.csv").read_text(encoding="utf-8").replace("\ni", "\nj")
    (rows / "items.csv").write_text(text, encoding="utf-8")
    level, text = told(_mapping(rows), "data mapping")
    assert level == "fail"
    assert "720 unknown_item" in text
    assert "deliver a catalogue with every item" in text


def test_a_large_catalogue_is_not_held_against_the_rows(rows: Path) -> None:
    findings = _mapping(rows, first_rows=10)
    level, text = told(findings, "data mapping")
    assert level == "warn"
    assert "the catalogue has more than 10 rows, so items were not looked up in it" in text
    assert any(
        f.found == "interactions: of the first 10 rows none would be dropped" for f in findings
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'user_id = "user"',
            'user_id = "customer"',
            "the column customer (for user_id) is missing",
        ),
        ('time = "time"', 'time = "time"\ncolour = "x"', "colour is no canonical column"),
        ("[catalogue]", "[catalog]", "unknown section [catalog]"),
        ('files = "events.csv"', 'files = "e*.txt"', "no file matches 'e*.txt'"),
        ("[interactions]", "[interactions", "is not valid TOML"),
    ],
)
def test_a_broken_mapping(rows: Path, old: str, new: str, words: str) -> None:
    description = (rows / "crossrec.toml").read_text(encoding="utf-8")
    (rows / "crossrec.toml").write_text(description.replace(old, new, 1), encoding="utf-8")
    level, text = told(_mapping(rows), "data mapping")
    assert level == "fail"
    assert words in text


def test_files_that_are_no_tables(rows: Path) -> None:
    description = (rows / "crossrec.toml").read_text(encoding="utf-8")
    description = description.replace("events.csv", "events.parquet", 1)
    (rows / "crossrec.toml").write_text(description, encoding="utf-8")
    (rows / "events.parquet").write_bytes(b"PAR1 not really PAR1")
    findings = _mapping(rows)
    assert "can't be read as .parquet" in told(findings, "data mapping")[1]
    # The catalogue is told all the same.
    assert any(f.found.startswith("catalogue: item_id from item") for f in findings)


def test_no_rows_and_no_source(rows: Path) -> None:
    (rows / "events.csv").write_text("user,item,event,time,quantity,price\n", encoding="utf-8")
    level, text = told(_mapping(rows), "data mapping")
    assert (level, text) == (
        "fail",
        "interactions: there are no rows; deliver the rows of this table",
    )
    assert "there is no source" in told(_mapping("nowhere"), "data mapping")[1]
    assert "has the platforms A, B and C, not 'Q'" in str(
        told(
            examine(
                [Check("data mapping", lambda: mapping("complete-journey", "Q", now=now))]
            ).findings,
            "data mapping",
        )
    )


def _sql(rows: Path, query: str = "SELECT * FROM events -- all of it") -> Path:
    with sqlite3.connect(rows / "shop.db") as database:
        for table in ("events", "items"):
            frame = pl.read_csv(rows / f"{table}.csv", infer_schema=False)
            database.execute(f"CREATE TABLE {table} ({', '.join(frame.columns)})")
            marks = ", ".join("?" * frame.width)
            database.executemany(f"INSERT INTO {table} VALUES ({marks})", frame.rows())
    database.close()
    file = rows / "shop.toml"
    file.write_text(
        f'[sql]\ndatabase = "shop.db"\ninteractions = "{query}"\n'
        'catalogue = "SELECT item AS item_id, title FROM items"\n'
        '[interactions.columns]\nuser_id = "user"\nitem_id = "item"\nevent = "event"\ntime = "time"\n',
        encoding="utf-8",
    )
    return file


def test_a_query_delivers_no_more_than_the_sample(rows: Path) -> None:
    file = _sql(rows)
    findings = _mapping(file, first_rows=50)
    assert {f.level for f in findings} == {"ok"}
    assert any(f.found.startswith("interactions: of the first 50 rows none") for f in findings)
    assert "interactions: user_id from user, item_id from item, event, time" in [
        f.found for f in findings
    ]
    for first, delivered in ((7, 7), (None, 720)):
        source = open_source(str(file), "A", first_rows=first)
        assert source.interactions().collect().height == delivered


def test_a_query_that_fails(rows: Path) -> None:
    level, text = told(_mapping(_sql(rows, "SELECT colour FROM events")), "data mapping")
    assert level == "fail"
    assert "[sql]: the query interactions failed: no such column: colour" in text
