import polars as pl
import pytest
from rows import NOW, interaction, source

from crossrec_model.data.cleaning import canonical_columns
from crossrec_model.data.prepared import prepare
from crossrec_model.data.schema import (
    CATALOGUE,
    IDENTITY,
    INTERACTIONS,
    REQUIRED_CATALOGUE,
    REQUIRED_INTERACTIONS,
    REQUIRED_USERS,
    USERS,
    VECTORS,
)
from crossrec_model.data.source import Source, check_columns
from crossrec_model.errors import DataError

ORIGIN = {"source_file": pl.String(), "source_row": pl.Int64()}
GOOD = {
    **ORIGIN,
    **{column: pl.String() for column in ("user_id", "item_id", "event")},
    "time": pl.Datetime("us", "UTC"),
}


def test_named_columns_belong_to_their_tables():
    assert set(REQUIRED_INTERACTIONS) <= set(INTERACTIONS)
    assert set(REQUIRED_CATALOGUE) <= set(CATALOGUE)
    assert set(REQUIRED_USERS) <= set(USERS)
    assert set(IDENTITY) <= set(INTERACTIONS)
    assert set(VECTORS) <= set(CATALOGUE)


@pytest.mark.parametrize("column", ["source_file", "source_row", *REQUIRED_INTERACTIONS])
def test_missing_column_is_named(column):
    schema = pl.Schema({name: dtype for name, dtype in GOOD.items() if name != column})
    with pytest.raises(DataError, match=rf"interactions: the column {column} is missing"):
        check_columns("interactions", schema)


def test_unknown_column_is_named():
    with pytest.raises(DataError, match=r"unknown column colour.*or context_"):
        check_columns("interactions", pl.Schema({**GOOD, "colour": pl.String()}))
    check_columns("interactions", pl.Schema({**GOOD, "context_colour": pl.String()}))


@pytest.mark.parametrize("dtype", [pl.Datetime("us"), pl.Date(), pl.String()])
def test_time_without_zone_is_refused(dtype):
    with pytest.raises(DataError, match="no time zone"):
        check_columns("interactions", pl.Schema({**GOOD, "time": dtype}))


def test_missing_column_stops_preparation(tmp_path):
    broken = source([interaction()])
    broken.events = broken.events.drop("user_id")
    with pytest.raises(DataError, match="the column user_id is missing") as caught:
        prepare(broken, into=tmp_path / "out", now=NOW)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_prepared_tables_have_every_canonical_column(tmp_path):
    events = [interaction(context_device="phone")]
    data = prepare(source(events), into=tmp_path / "out", now=NOW, min_users=1)
    schema = data.interactions().collect_schema()
    assert schema == pl.Schema({**INTERACTIONS, "context_device": pl.String})
    assert data.catalogue().schema == pl.Schema(CATALOGUE)
    assert data.users().schema == pl.Schema(USERS)


def test_absent_optional_columns_become_null():
    rows = pl.DataFrame({"item_id": ["i1"], "title": ["Tea"]})
    wide = rows.select(canonical_columns(rows.schema, CATALOGUE))
    assert wide.schema == pl.Schema(CATALOGUE)
    assert wide.row(0) == ("i1", None, "Tea", *[None] * 7)


def test_a_source_is_recognised_by_its_methods():
    assert isinstance(source([interaction()]), Source)
    assert not isinstance(object(), Source)
