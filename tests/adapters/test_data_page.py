"""The examples of docs/data.md work as they stand."""

import gzip
import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from clients.adapters import open_source
from clients.adapters.files import TableFiles
from clients.adapters.mapping import TableMapping
from crossrec_model.data.prepared import prepare
from crossrec_model.data.quarantine import Reason
from crossrec_model.data.schema import CATALOGUE, INTERACTIONS, USERS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def examples():
    files, sql = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    return files, sql


def test_folder_example(examples, tmp_path):
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "crossrec.toml").write_text(examples[0], encoding="utf-8")
    (shop / "orders-2024.csv").write_text(
        "customer;sku;action;at;pieces;unit price;device\n"
        "c1;p1;order;31.01.2024 12:00;2;1,50;phone\n"
        "c1;p1;search;31.01.2024 12:01;;;phone\n"
    )
    click = {"customer": "c2", "sku": "p1", "action": "look", "at": "01.02.2024 00:30"}
    with gzip.open(shop / "clicks.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(click | {"pieces": None, "unit price": None, "device": "web"}))
    (shop / "products.csv").write_text(
        "sku,gtin,name,path,embedding\np1,0042,绿茶,Food>Drinks,0.5 1\n", encoding="utf-8"
    )
    pl.DataFrame({"id": ["c1"], "agreed": [True], "age": ["30-39"]}).write_parquet(
        shop / "customers.parquet"
    )
    data = prepare(open_source(str(shop), "any"), into=tmp_path / "out", now=NOW, min_users=2)
    assert data.summary.source == "corner-shop"
    noon = datetime(2024, 1, 31, 11, tzinfo=UTC)
    night = datetime(2024, 1, 31, 23, 30, tzinfo=UTC)
    assert data.interactions().collect().rows() == [
        ("c1", "p1", "purchase", noon, 2.0, 1.5, None, "phone"),
        ("c2", "p1", "view", night, None, None, None, "web"),
    ]
    (item,) = data.catalogue().rows(named=True)
    assert (item["shared_id"], item["title"]) == ("0042", "绿茶")
    assert (item["category"], item["vector_text"]) == (["Food", "Drinks"], [0.5, 1.0])
    assert data.users().rows() == [("c1", True, "30-39"), ("c2", False, None)]


def test_sql_example(examples, tmp_path):
    (tmp_path / "till.toml").write_text(examples[1], encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE orders (customer, sku, sold_at, pieces);"
            "INSERT INTO orders VALUES (7, 'p1', '2024-01-31 12:00:00', 2);"
            "CREATE TABLE products (sku, name, path);"
            "INSERT INTO products VALUES ('p1', 'Tea', 'Food/Drinks');"
            "CREATE TABLE customers (id, agreed); INSERT INTO customers VALUES (7, 0);"
        )
    source = open_source(str(tmp_path / "till.toml"), "any")
    data = prepare(source, into=tmp_path / "out", now=NOW, min_users=1)
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    assert data.interactions().collect().rows() == [("7", "p1", "purchase", noon, 2.0, None, None)]
    assert data.catalogue()["category"].to_list() == [["Food", "Drinks"]]
    assert data.users().rows() == [("7", False)]


def test_every_column_setting_and_reason_is_explained():
    own = {"mapping", "table"}
    settings = [*TableFiles.__dataclass_fields__, *TableMapping.__dataclass_fields__]
    names = [*INTERACTIONS, *CATALOGUE, *USERS, *Reason, *(s for s in settings if s not in own)]
    assert [name for name in names if f"`{name}`" not in PAGE] == []
