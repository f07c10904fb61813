"""Prepared folders: complete or absent, and one clear line for each mistake."""

import json
from datetime import datetime, timedelta

import polars as pl
import pytest
from rows import MARCH, NOW, Rows, interaction, items, source

from crossrec_model.data import prepared
from crossrec_model.data.prepared import open_prepared, prepare
from crossrec_model.data.summary import CleaningSummary
from crossrec_model.errors import ConfigError, CrossrecError, DataError


def many(count=200, **changes):
    return [
        interaction(user_id=f"u{n % 20:02}", time=MARCH + timedelta(seconds=n), **changes)
        for n in range(count)
    ]


def line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_prepared_folder_reads_back(tmp_path):
    rows = list(reversed(many())) + many(3)
    people = [
        {"user_id": "u00", "consent_to_link": "yes", "attribute_age": "45-54"},
        {"user_id": "zz", "consent_to_link": None, "attribute_age": None},
    ]
    into = tmp_path / "deep" / "out"
    data = prepare(source(rows, people=people), into=into, now=NOW, min_users=20)
    assert open_prepared(into) == data
    events = data.interactions().collect()
    assert events.equals(events.sort("user_id", "time"))
    assert events.height == 200
    users = data.users()
    assert users.height == 21
    assert users.columns == ["user_id", "consent_to_link", "attribute_age"]
    assert users.filter("consent_to_link")["user_id"].to_list() == ["u00"]
    assert users["consent_to_link"].null_count() == 0
    assert data.catalogue()["item_id"].to_list() == ["i1", "i2"]
    assert "interactions: read 203, kept 200" in data.summary.lines()
    assert sorted(p.name for p in into.parent.iterdir()) == ["out"]
    assert [p.name for p in (into / "quarantine").iterdir()] == ["interactions.csv"]


def test_share_above_the_bound_is_refused(tmp_path):
    rows = many(97) + [interaction(price=-1.0)] * 2 + [interaction(user_id=None)]
    into = tmp_path / "out"
    with pytest.raises(DataError) as caught:
        prepare(source(rows), into=into, now=NOW, min_users=1, max_bad=0.029)
    text = line(caught)
    for part in ("3 of 100 rows (3.0000%)", "max_bad = 0.029", "bad_price (2, first in events row"):
        assert part in text
    quarantine = tmp_path / "out.rejected" / "interactions.csv"
    assert str(quarantine) in text
    assert len(quarantine.read_text().splitlines()) == 4
    assert not into.exists()
    prepare(source(rows), into=into, now=NOW, min_users=1, max_bad=0.03)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"event": "wishlist"}, ("unknown_event (200, code 'wishlist')", "[interactions.events]")),
        ({"time": NOW + timedelta(days=1)}, ("time_in_future",)),
        ({"item_id": "i9"}, ("0 of the 1 items", "below one half", "item_id")),
        ({"user_id": "\ufffd"}, ("bad_encoding", "UTF-8")),
    ],
)
def test_a_column_that_is_wrong_throughout_is_named(tmp_path, changes, parts):
    rows = [row | changes for row in many()]
    with pytest.raises(DataError) as caught:
        prepare(source(rows), into=tmp_path / "out", now=NOW, min_users=1)
    for part in parts:
        assert part in line(caught)


def test_a_catalogue_that_lacks_most_items_is_refused_at_any_bound(tmp_path):
    rows = [row | {"item_id": f"i{n % 10}"} for n, row in enumerate(many())]
    with pytest.raises(DataError, match="it has 2 of the 10 items"):
        prepare(source(rows), into=tmp_path / "out", now=NOW, min_users=1, max_bad=1)
    half = items(*(f"i{n}" for n in range(5)))
    data = prepare(source(rows, half), into=tmp_path / "out", now=NOW, min_users=1, max_bad=1)
    assert data.summary.tables[0].kept == 100


@pytest.mark.parametrize(("table", "text"), [("events", "interactions"), ("products", "catalogue")])
def test_an_empty_table_is_refused(tmp_path, table, text):
    empty = source(many())
    setattr(empty, table, getattr(empty, table).clear())
    with pytest.raises(DataError, match=f"{text}: there are no rows"):
        prepare(empty, into=tmp_path / "out", now=NOW)
    assert not (tmp_path / "out").exists()


def test_too_few_users_are_refused(tmp_path):
    with pytest.raises(DataError, match="20 users have events, below min_users = 21"):
        prepare(source(many()), into=tmp_path / "out", now=NOW, min_users=21)
    assert not list(tmp_path.iterdir())


def test_bad_catalogue_and_users_are_refused(tmp_path):
    bad = source(many(), products=items("i1", "", "i2"))
    with pytest.raises(DataError, match=r"catalogue: 1 of 3 rows .* missing_item"):
        prepare(bad, into=tmp_path / "out", now=NOW, min_users=1)
    bad = source(many(), people=[{"user_id": "u", "consent_to_link": "perhaps"}])
    with pytest.raises(DataError, match=r"users: 1 of 1 rows .* bad_consent"):
        prepare(bad, into=tmp_path / "out", now=NOW, min_users=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_bad": -0.1},
        {"max_bad": 1.1},
        {"max_bad": float("nan")},
        {"min_users": 0},
        {"now": datetime(2024, 6, 1)},
    ],
)
def test_arguments_outside_their_bounds(tmp_path, changes):
    with pytest.raises(ConfigError) as caught:
        prepare(source(many()), **({"into": tmp_path / "out", "now": NOW} | changes))
    assert next(iter(changes)) in line(caught)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        prepare(source(many()), into=tmp_path / "out", now=NOW, min_users=1)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    with pytest.raises(DataError, match="holds something else"):
        prepare(source(many()), into=tmp_path / "out" / "thesis.txt", now=NOW, min_users=1)
    with pytest.raises(DataError, match="can't be written"):
        prepare(source(many()), into=tmp_path / "out" / "thesis.txt" / "x", now=NOW, min_users=1)


def test_a_failed_preparation_leaves_the_earlier_one(tmp_path):
    into = tmp_path / "out"
    before = prepare(source(many()), into=into, now=NOW, min_users=1)
    with pytest.raises(DataError):
        prepare(source(many(event="wishlist")), into=into, now=NOW, min_users=1)
    assert open_prepared(into) == before
    after = prepare(source(many(100)), into=into, now=NOW, min_users=1)
    assert open_prepared(into) == after != before


def test_a_crash_leaves_nothing_half_written(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "_publish", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(source(many()), into=tmp_path / "out", now=NOW, min_users=1)
    assert not list(tmp_path.iterdir())


def test_a_source_that_breaks_while_streaming_gives_one_line(tmp_path):
    events = source(many()).events.with_columns(pl.col("event").cast(pl.Int64))
    with pytest.raises(DataError, match="rows: the data can't be read") as caught:
        prepare(Rows(events, source([]).products), into=tmp_path / "out", now=NOW)
    line(caught)


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data"):
        open_prepared(tmp_path)
    folder = tmp_path / "out"
    data = prepare(source(many()), into=folder, now=NOW, min_users=1)
    text = (folder / "summary.json").read_text()
    assert CleaningSummary.from_json(text) == data.summary
    renamed = text.replace('"read"', '"seen"')
    for damage in ("{", "[]", '{"format": 2}', json.dumps({"format": 1}), renamed):
        (folder / "summary.json").write_text(damage)
        with pytest.raises(CrossrecError):
            open_prepared(folder)
    (folder / "summary.json").write_text(text)
    (folder / "users.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks users\.parquet"):
        open_prepared(folder)
