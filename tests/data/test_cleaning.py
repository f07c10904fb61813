"""Cleaning against an oracle in plain Python, and each rule by itself."""

import csv
import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import MARCH, NOW, frame, interaction, items, source

from crossrec_model.data.cleaning import clean, clean_catalogue, clean_users
from crossrec_model.data.ordering import write_ordered
from crossrec_model.data.quarantine import Reason, write_quarantine
from crossrec_model.data.schema import Event
from crossrec_model.data.summary import TableSummary

EARLY = datetime(1989, 12, 31, 23, 59, 59, tzinfo=UTC)
texts = st.sampled_from(["u1", "u2", " u1 ", "", "  ", None, "u\ufffd1"])
item_texts = st.sampled_from(["i1", "i1", "i2", "unknown", " i2", "", None])
events = st.sampled_from(["view", "purchase", " view", "wishlist", "", None])
times = st.sampled_from(
    [
        (MARCH, ""),
        (MARCH + timedelta(seconds=1), "x"),
        (EARLY, "x"),
        (NOW, "x"),
        (NOW + timedelta(microseconds=1), "x"),
        (None, "31.02.2024"),
        (None, " "),
        (None, None),
    ]
)
numbers = st.sampled_from(["1", "1.0", " 2 ", "0", "-0.0", "-1", "nan", "inf", "abc", "", None])
tables = st.lists(
    st.builds(
        lambda user, item, event, time, quantity, price, fault: {
            "user_id": user,
            "item_id": item,
            "event": event,
            "time": time[0],
            "source_time": time[1],
            "quantity": quantity,
            "price": price,
            "shop_id": "s",
            "source_fault": fault,
        },
        texts,
        item_texts,
        events,
        times,
        numbers,
        numbers,
        st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=60,
)
TYPES = {
    "quantity": pl.String,
    "price": pl.String,
    "source_time": pl.String,
    "source_fault": pl.Boolean,
}


def oracle(rows, known):
    """The rules once more, row by row, as docs/data.md states them."""
    verdicts, kept, seen = [], [], set()
    for row in rows:
        reason = oracle_reason(row, known)
        if reason is None:
            values = tuple(oracle_value(row, c) for c in ("user_id", "item_id", "event"))
            values += (row["time"], number(row["quantity"]), number(row["price"]), "s")
            if values in seen:
                reason = "duplicate"
            else:
                seen.add(values)
                kept.append(values)
        verdicts.append(reason)
    return verdicts, kept


def oracle_value(row, column):
    return (row[column] or "").strip() or None


def number(text):
    return None if not (text or "").strip() else float(text) + 0.0


def bad_number(text, least):
    if not (text or "").strip():
        return False
    try:
        value = float(text)
    except ValueError:
        return True
    return not math.isfinite(value) or value < 0 or (value == 0 and least)


def oracle_reason(row, known):
    if row["source_fault"]:
        return "malformed_row"
    if "\ufffd" in (row["user_id"] or ""):
        return "bad_encoding"
    for column, name in (("user_id", "user"), ("item_id", "item"), ("event", "event")):
        if oracle_value(row, column) is None:
            return f"missing_{name}"
        if column == "event" and oracle_value(row, column) not in {e.value for e in Event}:
            return "unknown_event"
    if row["time"] is None:
        return "unreadable_time" if (row["source_time"] or "").strip() else "missing_time"
    if row["time"] < datetime(1990, 1, 1, tzinfo=UTC):
        return "time_too_early"
    if row["time"] > NOW:
        return "time_in_future"
    if bad_number(row["quantity"], least=True):
        return "bad_quantity"
    if bad_number(row["price"], least=False):
        return "bad_price"
    return None if oracle_value(row, "item_id") in known else "unknown_item"


@settings(max_examples=120, deadline=None)
@given(tables)
def test_every_row_is_kept_or_rejected_once_as_the_oracle_says(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("oracle")
    cleaned = clean(source(rows, types=TYPES), now=NOW, folder=folder)
    verdicts, kept = oracle(rows, {"i1", "i2"})
    staged = cleaned.interactions
    assert staged.kept().drop("position").collect().rows() == kept
    write_quarantine(staged.rejected(), folder / "q.csv")
    with (folder / "q.csv").open(encoding="utf-8", newline="") as file:
        rejected = [(int(r["source_row"]), r["reason"]) for r in csv.DictReader(file)]
    assert rejected == [(n, v) for n, v in enumerate(verdicts, 1) if v is not None]
    counts = Counter(v for v in verdicts if v is not None)
    assert {reason.value: n for reason, n in staged.summary.dropped.items()} == counts
    assert (staged.summary.read, staged.summary.kept) == (len(rows), len(kept))


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(1, 4))
def test_passes_of_bounded_memory_find_the_same_duplicates(tmp_path_factory, rows, size):
    folder = tmp_path_factory.mktemp("passes")
    whole = clean(source(rows, types=TYPES), now=NOW, folder=folder).interactions
    parts = clean(
        source(rows, types=TYPES), now=NOW, folder=folder, rows_in_memory=size
    ).interactions
    assert parts.kept().collect().equals(whole.kept().collect())
    assert parts.rejected().collect().equals(whole.rejected().collect())
    assert parts.summary == whole.summary


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(1, 70),
)
def test_ordering_in_parts_equals_a_plain_sort(tmp_path_factory, pairs, size):
    folder = tmp_path_factory.mktemp("ordering")
    rows = [
        interaction(user_id=user, time=MARCH + timedelta(seconds=second), price=float(n))
        for n, (user, second) in enumerate(pairs)
    ]
    staged = clean(source(rows), now=NOW, folder=folder).interactions
    users = write_ordered(staged, folder / "o", scratch=folder, rows_in_memory=size)
    ordered = pl.read_parquet(folder / "o").select("user_id", "time", "price").rows()
    assert ordered == sorted((r["user_id"], r["time"], r["price"]) for r in rows)
    assert users.to_list() == sorted({user for user, _ in pairs})


def reasons(rows, tmp_path, types=None):
    staged = clean(source(rows, types=types), now=NOW, folder=tmp_path).interactions
    return dict(staged.rejected().select("source_row", "reason").collect().iter_rows())


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize(("value", "reason"), [(2**62, "future"), (-(2**62), "early")])
def test_times_outside_any_calendar_are_rejected(tmp_path, unit, value, reason):
    events = frame([interaction(time=None)], "events").with_columns(
        time=pl.lit(value).cast(pl.Datetime(unit, "Asia/Shanghai"))
    )
    rows = source([interaction()])
    rows.events = events
    staged = clean(rows, now=NOW, folder=tmp_path).interactions
    write_quarantine(staged.rejected(), tmp_path / "q.csv")
    assert reason in (tmp_path / "q.csv").read_text()


def test_quarantine_keeps_the_text_that_could_not_be_read(tmp_path):
    row = interaction(time=None, source_time="31.02.2024", price="12,50", quantity="1")
    staged = clean(source([row], types=TYPES), now=NOW, folder=tmp_path).interactions
    write_quarantine(staged.rejected(), tmp_path / "q.csv")
    with (tmp_path / "q.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["time"], line["price"]) == ("31.02.2024", "12,50")
    assert (line["source_file"], line["source_row"]) == ("events", "1")


def test_numbers_in_their_own_types(tmp_path):
    rows = [
        interaction(quantity=math.nan),
        interaction(quantity=math.inf),
        interaction(quantity=None, price=None),
        interaction(price=-0.01),
    ]
    assert reasons(rows, tmp_path) == {1: "bad_quantity", 2: "bad_quantity", 4: "bad_price"}


def test_damaged_context_is_bad_encoding(tmp_path):
    rows = [interaction(context_region="M\ufffdnchen"), interaction(context_region="München")]
    assert reasons(rows, tmp_path) == {1: "bad_encoding"}


def test_first_good_catalogue_row_is_kept():
    rows = [
        {"item_id": "i1", "title": "damaged \ufffd", "price": 1.0},
        {"item_id": "i1", "title": "first", "price": 2.0},
        {"item_id": "i1", "title": "second", "price": 3.0},
        {"item_id": None, "title": "nameless", "price": 1.0},
        {"item_id": "i2", "title": " ", "price": -1.0},
        {"item_id": "i3", "title": " ", "price": None},
    ]
    table = clean_catalogue(frame(rows, "products"))
    assert table.rows.select("item_id", "title", "price").rows() == [
        ("i1", "first", 2.0),
        ("i3", None, None),
    ]
    assert dict(table.rejected.select("source_row", "reason").iter_rows()) == {
        1: "bad_encoding",
        3: "duplicate",
        4: "missing_item",
        5: "bad_price",
    }


def test_category_paths_lose_empty_levels():
    rows = [{"item_id": f"i{n}"} for n in range(4)]
    paths = pl.Series("category", [[" a ", None, "", "b"], [], None, ["x\ufffd"]])
    table = clean_catalogue(frame(rows, "products").with_columns(paths))
    assert table.rows["category"].to_list() == [["a", "b"], None, None]
    assert table.rejected["reason"].to_list() == ["bad_encoding"]


def test_vectors_are_finite_and_of_one_length():
    vectors = [[1.0, 2.0], [1.0], [math.nan, 1.0], [1e300, 1.0], [], None, [3.0, 4.0], [None, 1.0]]
    rows = frame(items(*(f"i{n}" for n in range(8))), "products")
    table = clean_catalogue(rows.with_columns(pl.Series("vector_text", vectors)))
    assert table.rows["vector_text"].to_list() == [[1.0, 2.0], None, None, [3.0, 4.0]]
    assert table.summary.dropped == {Reason.BAD_VECTOR: 4}


@pytest.mark.parametrize(
    ("said", "consent"),
    [("Yes", True), ("1", True), ("true", True), ("no", False), ("F", False), (" ", False)],
)
def test_consent_is_read_from_text(said, consent):
    table = clean_users(frame([{"user_id": "u", "consent_to_link": said}], "people"))
    assert table.rows["consent_to_link"].to_list() == [consent]


def test_unclear_consent_is_rejected_and_absent_consent_is_no():
    rows = [{"user_id": "u", "consent_to_link": "perhaps"}, {"user_id": "v", "consent_to_link": ""}]
    table = clean_users(frame(rows, "people"))
    assert table.rows.rows() == [("v", False)]
    assert table.rejected["reason"].to_list() == ["bad_consent"]


def test_duplicates_do_not_count_as_bad():
    summary = TableSummary(
        table="t", read=10, dropped={Reason.DUPLICATE: 6, Reason.BAD_PRICE: 1, Reason.BAD_VECTOR: 1}
    )
    assert (summary.kept, summary.bad, summary.bad_share) == (2, 2, 0.2)
    assert summary.largest_reason() is Reason.BAD_PRICE
    assert summary.lines() == [
        "t: read 10, kept 2",
        "  dropped 1 (10.000%) bad_price",
        "  dropped 1 (10.000%) bad_vector",
        "  dropped 6 (60.000%) duplicate",
    ]
