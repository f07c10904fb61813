import gzip
import json
from datetime import UTC, datetime

import polars as pl
import pytest
from conformance import SourceConformance

from clients.adapters import open_source
from clients.adapters.files import FolderSource
from crossrec_model.data.prepared import prepare
from crossrec_model.errors import DataError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CSV_DESCRIPTION = """
name = "shop"

[interactions]
files = ["orders-*.csv", "more.csv.gz"]
separator = ";"
time_format = "%d.%m.%Y %H:%M"
time_zone = "Europe/Berlin"
decimal_comma = true
events = { buy = "purchase", look = "view", search = "ignore" }

[interactions.columns]
user_id = "customer"
item_id = "sku"
event = "action"
time = "at"
quantity = "pieces"
price = "unit price"
context_device = "device"

[catalogue]
files = "products.csv"
category_separator = ">"

[catalogue.columns]
item_id = "sku"
shared_id = "gtin"
title = "name"
category = "path"
vector_text = "embedding"

[users]
files = "customers.csv"

[users.columns]
user_id = "id"
consent_to_link = "consent"
attribute_age = "age"
"""
ORDERS = """customer;sku;action;at;pieces;unit price;device
c1;p1;buy;31.12.2023 23:30;2;1,50;phone
c1;p2;look;01.07.2024 12:00;;;
c2;p1;search;01.07.2024 12:00;;;phone
c2;p1;wish;01.07.2024 12:00;;;phone
c3;"p;1";buy;01.07.2024 12:00;1;9,99;"a ""b"" c"
"""
PRODUCTS = """sku,gtin,name,path,embedding
p1,0042,Tea,Food > Drinks,"[0.5, 1.0]"
p2,,Cup,,"0.25,-1"
p;1,,Pot,Kitchen,
"""
CUSTOMERS = "id,consent,age\nc1,yes,30-39\nc2,no,\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "crossrec.toml").write_text(CSV_DESCRIPTION)
    (folder / "orders-1.csv").write_text(ORDERS)
    header = ORDERS.splitlines()[0]
    (folder / "orders-2.csv").write_text(f"{header}\nc4;p2;look;02.07.2024 08:00;;;\n")
    with gzip.open(folder / "more.csv.gz", "wt") as file:
        file.write(f"{header}\nc5;p2;look;03.07.2024 08:00;;;\n")
    (folder / "products.csv").write_text(PRODUCTS)
    (folder / "customers.csv").write_text(CUSTOMERS)
    return folder


class TestCsvFolder(SourceConformance):
    @pytest.fixture
    def source(self, folder):
        return open_source(str(folder), "any")


class TestParquetFolder(SourceConformance):
    @pytest.fixture
    def source(self, tmp_path):
        times = [datetime(2024, 1, day) for day in (1, 2, 3, 4)]
        pl.DataFrame(
            {
                "user_id": [1.0, 2.0, 3.0, 3.0],
                "item_id": pl.Series([b"7", b"7", b"7", b"\xff"]),
                "ts": times,
                "price": ["1", "2", "3", "x"],
            }
        ).write_parquet(tmp_path / "events.parquet")
        pl.DataFrame(
            {"item_id": [7], "vector_image": pl.Series([[1.0, 2.0]], dtype=pl.Array(pl.Float32, 2))}
        ).write_parquet(tmp_path / "items.pq")
        (tmp_path / "crossrec.toml").write_text(
            '[interactions]\nfiles = "events.parquet"\nevent = "purchase"\n'
            'time_zone = "America/New_York"\n'
            'columns = {user_id = "user_id", item_id = "item_id", time = "ts", price = "price"}\n'
            '[catalogue]\nfiles = ["items.pq"]\n'
        )
        return FolderSource(tmp_path)

    def test_reads_types_that_exports_often_have(self, source):
        events = source.interactions().collect()
        assert events["user_id"].to_list() == ["1", "2", "3", "3"]
        assert events["item_id"].to_list() == ["7", "7", "7", "\ufffd"]
        assert events["event"].to_list() == ["purchase"] * 4
        assert events["time"][0] == datetime(2024, 1, 1, 5, tzinfo=UTC)
        assert source.catalogue().collect()["vector_image"].to_list() == [[1.0, 2.0]]


class TestJsonlFolder(SourceConformance):
    @pytest.fixture
    def source(self, tmp_path):
        lines = [
            {"user": {"id": n}, "item_id": "i", "event": "view", "time": 1_700_000_000_000 + n}
            for n in range(1, 4)
        ]
        bad = b'{"user": \n[1]\n\n{"user": {"id": "\xff"}, "item_id": "i", "event": "view"}\n'
        text = "\n".join(map(json.dumps, lines)).encode()
        (tmp_path / "events.jsonl").write_bytes(text + b"\n" + bad)
        item = {
            "item_id": "i",
            "title": "中文 \ud83d",
            "category": ["a, b", "c"],
            "vector_audio": [1],
        }
        more = {"item_id": 12345678901234567890123, "category": "a/b", "vector_audio": None}
        (tmp_path / "items.ndjson").write_text(f"{json.dumps(item)}\n{json.dumps(more)}\n")
        (tmp_path / "crossrec.toml").write_text(
            '[interactions]\nfiles = "events.jsonl"\ntime_format = "unix_ms"\n'
            'columns = {user_id = "user.id", item_id = "item_id", event = "event", time = "time"}\n'
            '[catalogue]\nfiles = ["items.ndjson"]\ncategory_separator = "/"\n'
        )
        return FolderSource(tmp_path)

    def test_reads_nested_values_and_arrays(self, source):
        events = source.interactions().collect()
        assert events["user_id"].to_list() == ["1", "2", "3", None, None, "\ufffd"]
        assert events["source_row"].to_list() == [1, 2, 3, 4, 5, 7]
        assert events["source_fault"].to_list() == [False] * 3 + [True] * 2 + [False]
        assert events["time"][0] == datetime(2023, 11, 14, 22, 13, 20, 1000, tzinfo=UTC)
        catalogue = source.catalogue().collect()
        assert catalogue["item_id"].to_list() == ["i", "12345678901234567890123"]
        assert catalogue["title"].to_list() == ["中文 ?", None]
        assert catalogue["category"].list.head(2).to_list() == [["a, b", "c"], ["a", "b"]]
        assert catalogue["vector_audio"].to_list() == [[1.0], None]


def test_csv_rows_are_mapped(folder):
    source = FolderSource(folder)
    assert source.name == "shop"
    events = source.interactions().collect()
    assert events.select("source_file", "source_row").rows() == [
        ("orders-1.csv", 1),
        ("orders-1.csv", 2),
        ("orders-1.csv", 4),
        ("orders-1.csv", 5),
        ("orders-2.csv", 1),
        ("more.csv.gz", 1),
    ]
    first = events.row(0, named=True)
    assert first["time"] == datetime(2023, 12, 31, 22, 30, tzinfo=UTC)
    assert first["source_time"] == "31.12.2023 23:30"
    assert (first["event"], first["quantity"], first["price"]) == ("purchase", "2", "1.50")
    assert events["event"].to_list()[1:] == ["view", "wish", "purchase", "view", "view"]
    assert events["context_device"].to_list()[3] == 'a "b" c'
    catalogue = source.catalogue().collect()
    assert catalogue["shared_id"].to_list() == ["0042", None, None]
    assert catalogue["category"].to_list()[0] == ["Food ", " Drinks"]
    assert catalogue["vector_text"].to_list() == [[0.5, 1.0], [0.25, -1.0], None]
    users = prepare(source, into=folder / "out", now=NOW, max_bad=0.5, min_users=1).users()
    assert users.rows()[:2] == [("c1", True, "30-39"), ("c2", False, None)]


def test_bytes_that_are_no_text_are_quarantined(folder):
    text = ORDERS.encode().replace(b"c1;p2;look", b"c\xff1;p2;look")
    (folder / "orders-1.csv").write_bytes(text)
    data = prepare(FolderSource(folder), into=folder / "out", now=NOW, max_bad=0.5, min_users=1)
    lines = (data.folder / "quarantine" / "interactions.csv").read_text().splitlines()
    assert lines[1].startswith("bad_encoding,orders-1.csv,2,c\ufffd1,p2,view")
    assert lines[2].startswith("unknown_event,orders-1.csv,4,c2,p1,wish")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("c1;p1;buy;31.12.2023 23:30;2;1,50;phone;surplus", "malformed_row"),
        ("c1", "missing_item"),
        ("c1;p1;buy;yesterday;2;1,50;phone", "unreadable_time"),
        ("c1;p1;buy;31.03.2024 02:30;2;1,50;phone", "unreadable_time"),
        ("c1;p1;buy;31.12.2023 23:30;two;1,50;phone", "bad_quantity"),
        ("c1;p1;buy;31.12.2023 23:30;2;1.234,50;phone", "bad_price"),
        ("c1;nothing;buy;31.12.2023 23:30;2;1,50;phone", "unknown_item"),
    ],
)
def test_bad_lines_are_quarantined_with_their_number(folder, line, reason):
    (folder / "orders-1.csv").write_text(f"{ORDERS}\n{line}\n")
    data = prepare(FolderSource(folder), into=folder / "out", now=NOW, max_bad=0.5, min_users=1)
    lines = (data.folder / "quarantine" / "interactions.csv").read_text().splitlines()
    assert any(row.startswith(f"{reason},orders-1.csv,7,") for row in lines)


MISTAKES = {
    "missing column": ('event = "action"', 'event = "Action"', "orders-1.csv: the column Action"),
    "unmapped column": ('time = "at"\n', "", "the column time is missing"),
    "unknown setting": ('separator = ";"', 'delimiter = ";"', "unknown setting 'delimiter'"),
    "wrong type": ("decimal_comma = true", 'decimal_comma = "yes"', "is not true or false"),
    "wrong list": ('files = "products.csv"', "files = 3", "no list of file names"),
    "no match": ('files = "products.csv"', 'files = "p*.json"', "no file matches 'p*.json'"),
    "absolute": ('files = "products.csv"', 'files = "/p.csv"', "relative to the folder"),
    "no list": ('files = "products.csv"', "files = []", "files is empty"),
    "unknown canonical": ('price = "unit price"', 'cost = "unit price"', "cost is no canonical"),
    "unknown event": ('buy = "purchase"', 'buy = "bought"', "'buy' to 'bought'"),
    "unknown zone": ("Europe/Berlin", "Europe/Atlantis", "'Europe/Atlantis' is unknown"),
    "unknown time": ("%d.%m.%Y %H:%M", "german", "time_format = 'german' is unknown"),
    "long separator": ('separator = ";"', 'separator = ";;"', "is not one ASCII character"),
    "empty separator": ('category_separator = ">"', 'category_separator = ""', "is empty"),
    "unknown section": ("[users]", "[people]", "unknown section [people]"),
    "no section": ("[interactions]", "[orders]", "[interactions] is missing"),
    "broken": ("[catalogue]", "[catalogue", "not valid TOML"),
    "not a section": ('name = "shop"', "user = 3", "user = 3 is not a section"),
    "name": ('name = "shop"', 'name = ""', "give the source a short name"),
}


@pytest.mark.parametrize(("old", "new", "text"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_the_description_give_one_line(folder, tmp_path, old, new, text):
    description = folder / "crossrec.toml"
    assert old in description.read_text()
    description.write_text(description.read_text().replace(old, new, 1))
    if new in ("[people]", "[orders]"):
        renamed = description.read_text().replace(f"{old[:-1]}.", f"{new[:-1]}.")
        description.write_text(renamed)
    with pytest.raises(DataError) as caught:
        prepare(FolderSource(folder), into=tmp_path / "out", now=NOW)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("orders-1.csv", b"", "orders-1.csv is empty"),
        ("orders-1.csv", ORDERS.splitlines()[0].encode() + b"\n", None),
        (
            "orders-1.csv",
            ORDERS.encode() + b'c1;"p1',
            "can't be read",
        ),
        ("products.csv", b"\x00\x01\xff\xfe", "the column sku"),
        ("events.parquet", b"PAR1 no", "events.parquet can't be read as .parquet"),
    ],
)
def test_unreadable_files_give_one_line(folder, tmp_path, file, content, text):
    (folder / file).write_bytes(content)
    if file == "events.parquet":
        description = (folder / "crossrec.toml").read_text().replace("orders-*.csv", file)
        (folder / "crossrec.toml").write_text(description)
    if text is None:
        assert FolderSource(folder).interactions().collect().height == 2
        return
    with pytest.raises(DataError) as caught:
        prepare(FolderSource(folder), into=tmp_path / "out", now=NOW, max_bad=0.9, min_users=1)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no source"):
        open_source(str(tmp_path / "nothing"), "A")
    with pytest.raises(DataError, match=r"has no crossrec\.toml"):
        open_source(str(tmp_path), "A")
