import os
import shutil
import socket
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from conformance import SourceConformance

from clients.adapters import open_source
from crossrec_model.data.prepared import prepare
from crossrec_model.errors import DataError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETUP = """
CREATE TABLE orders (customer INTEGER, sku TEXT, sold TIMESTAMP, pieces INTEGER, price REAL);
INSERT INTO orders VALUES (1, 'p1', '2024-01-01 10:00:00', 1, 2.5),
    (2, 'p2', '2024-01-02 10:00:00', NULL, NULL), (3, 'p1', '2024-01-03 10:00:00', 2, 0.0);
CREATE TABLE products (sku TEXT, title TEXT, path TEXT);
INSERT INTO products VALUES ('p1', 'Tea "green", loose', 'Food/Drinks'), ('p2', 'Cup', NULL);
"""
DESCRIPTION = """
name = "till"
[sql]
{database}
interactions = "SELECT customer, sku, sold, pieces, price FROM orders ORDER BY sold;"
catalogue = "SELECT * FROM products ORDER BY sku"
users = "SELECT DISTINCT customer AS user_id, {yes} AS consent_to_link FROM orders ORDER BY 1"
[interactions]
event = "purchase"
[interactions.columns]
user_id = "customer"
item_id = "sku"
time = "sold"
quantity = "pieces"
price = "price"
[catalogue]
category_separator = "/"
columns = {{ item_id = "sku", title = "title", category = "path" }}
"""


def describe(folder, database, yes="true"):
    file = folder / "till.toml"
    file.write_text(DESCRIPTION.format(database=database, yes=yes))
    return file


class SqlConformance(SourceConformance):
    def test_rows_are_mapped(self, source, tmp_path):
        assert source.name == "till"
        data = prepare(source, into=tmp_path / "prepared", now=NOW, min_users=1)
        assert data.interactions().collect().rows() == [
            ("1", "p1", "purchase", datetime(2024, 1, 1, 10, tzinfo=UTC), 1.0, 2.5, None),
            ("2", "p2", "purchase", datetime(2024, 1, 2, 10, tzinfo=UTC), None, None, None),
            ("3", "p1", "purchase", datetime(2024, 1, 3, 10, tzinfo=UTC), 2.0, 0.0, None),
        ]
        catalogue = data.catalogue().select("item_id", "title", "category").rows()
        assert catalogue == [
            ("p1", 'Tea "green", loose', ["Food", "Drinks"]),
            ("p2", "Cup", None),
        ]
        assert data.users().rows() == [("1", True), ("2", True), ("3", True)]


class TestDuckDb(SqlConformance):
    @pytest.fixture
    def source(self, tmp_path):
        with closing(duckdb.connect(tmp_path / "till.duckdb")) as connection:
            connection.execute(SETUP)
        return open_source(str(describe(tmp_path, 'database = "till.duckdb"')), "any")


class TestSqlite(SqlConformance):
    @pytest.fixture
    def source(self, tmp_path):
        with closing(sqlite3.connect(tmp_path / "till.db")) as connection:
            connection.executescript(SETUP)
        return open_source(str(describe(tmp_path, 'database = "till.db"', yes="1")), "any")


def server_programs():
    """The folder of PostgreSQL's own programs, or None."""
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((c for c in candidates if (c / "initdb").exists()), None)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    folder = tmp_path_factory.mktemp("postgresql")
    # The server refuses to run as root, and its user must be able to reach the folder.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
        for parent in [folder, *folder.parents][:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"

    def run(*command):
        # Output goes to a file: the server would keep a pipe open for as long as it runs.
        with (folder / "output").open("ab") as output:
            command = list(map(str, command))
            subprocess.run(
                command, check=True, stdout=output, stderr=output, timeout=60, user=user, cwd=folder
            )

    run(programs / "initdb", "-D", data, "-U", "crossrec", "-A", "trust", "-E", "UTF8", "-N")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    run(programs / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
    try:
        address = f"postgresql://crossrec@127.0.0.1:{port}/postgres"
        with psycopg.connect(address) as connection:
            connection.execute(SETUP)
        yield address
    finally:
        run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")


class TestPostgresql(SqlConformance):
    @pytest.fixture
    def source(self, postgresql, tmp_path, monkeypatch):
        monkeypatch.setenv("TILL_DATABASE", postgresql)
        return open_source(str(describe(tmp_path, 'database_env = "TILL_DATABASE"')), "any")


def test_postgresql_errors_give_one_line(postgresql, tmp_path):
    file = describe(tmp_path, f'database = "{postgresql}"')
    file.write_text(file.read_text().replace("FROM products", "FROM nowhere"))
    with pytest.raises(DataError, match='query catalogue failed: relation "nowhere"') as caught:
        open_source(str(file), "A").catalogue()
    assert "\n" not in str(caught.value)


def test_postgresql_that_is_not_there(tmp_path):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    file = describe(tmp_path, 'database = "postgresql://crossrec:secret@127.0.0.1:1/postgres"')
    with pytest.raises(DataError, match="query interactions failed") as caught:
        open_source(str(file), "A").interactions()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_duckdb_types_that_parquet_lacks(tmp_path):
    with closing(duckdb.connect(tmp_path / "t.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE e AS SELECT uuid() AS user_id, 170141183460469231731687303715884105727"
            "::HUGEINT AS item_id, 'view'::ENUM('view') AS event, now() AS time, "
            "1.5::DECIMAL(9,2) AS price"
        )
        connection.execute(
            "CREATE TABLE i AS SELECT DISTINCT item_id, ['a', 'b'] AS category, "
            "[1, 2]::FLOAT[2] AS vector_text, [1.5::DOUBLE] AS vector_image FROM e"
        )
    (tmp_path / "t.toml").write_text(
        '[sql]\ndatabase = "t.duckdb"\ninteractions = "FROM e"\ncatalogue = "SELECT * FROM i"\n'
    )
    source = open_source(str(tmp_path / "t.toml"), "A")
    (event,) = source.interactions().collect().rows(named=True)
    assert len(event["user_id"]) == 36
    assert event["item_id"] == "170141183460469231731687303715884105727"
    assert (event["event"], event["price"]) == ("view", 1.5)
    (item,) = source.catalogue().collect().rows(named=True)
    assert item["category"] == ["a", "b"]
    assert (item["vector_text"], item["vector_image"]) == ([1.0, 2.0], [1.5])


def test_sqlite_text_that_is_no_utf8(tmp_path):
    with closing(sqlite3.connect(tmp_path / "t.db")) as connection:
        connection.executescript(SETUP)
        connection.execute("UPDATE orders SET sku = CAST(X'70FF' AS TEXT) WHERE customer = 1")
        connection.commit()
    source = open_source(str(describe(tmp_path, 'database = "t.db"', yes="1")), "A")
    data = prepare(source, into=tmp_path / "out", now=NOW, min_users=1, max_bad=0.4)
    assert data.summary.tables[0].dropped == {"bad_encoding": 1}


def test_temporary_files_go_with_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "t.db")) as connection:
        connection.executescript(SETUP)
    source = open_source(str(describe(tmp_path, 'database = "t.db"', yes="1")), "A")
    source.interactions()
    assert list(tmp_path.glob("crossrec-sql-*/interactions/*.parquet"))
    del source
    assert not list(tmp_path.glob("crossrec-sql-*"))


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ('database = "t.db"\ncatalogue = "SELECT 1"', "the query interactions is missing"),
        ('database = "no.db"\nCATALOGUE', "there is no database"),
        ('database = "t.xyz"\nCATALOGUE', "set engine to duckdb"),
        ('database = "t.db"\ndatabase_env = "X"\nCATALOGUE', "exactly one of"),
        ('database_env = "NOT_SET_ANYWHERE"\nCATALOGUE', "NOT_SET_ANYWHERE is not set"),
        ('database = "t.db"\npassword = "x"\nCATALOGUE', "unknown setting 'password'"),
        ('database = "t.db"\nengine = "oracle"\nCATALOGUE', "engine = 'oracle'"),
        ('database = "t.db"\ninteractions = 3\ncatalogue = "SELECT 1"', "interactions = 3"),
        ('database = "t.db"\nengine = "duckdb"\nCATALOGUE', "query interactions failed"),
        ('database = "t.db"\nQUERY SELECT * FROM nowhere', "query interactions failed: no such"),
        ('database = "t.db"\nQUERY SELECT 1 AS a, 2 AS a', "names a column twice"),
        ('database = "t.db"\nQUERY SELECT 1 AS a', "the column user_id is missing"),
        ('database = "t.db"\nQUERY CREATE TABLE x (a)', "query interactions failed"),
    ],
)
def test_mistakes_give_one_line(tmp_path, sql, text):
    with closing(sqlite3.connect(tmp_path / "t.db")) as connection:
        connection.executescript(SETUP)
    (tmp_path / "t.xyz").write_text("")
    sql = sql.replace("CATALOGUE", 'interactions = "SELECT 1"\ncatalogue = "SELECT 1"')
    if "QUERY " in sql:
        before, query = sql.split("QUERY ")
        sql = f'{before}interactions = "{query}"\ncatalogue = "SELECT sku FROM products"'
    (tmp_path / "t.toml").write_text(f"[sql]\n{sql}\n")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / "t.toml"), "A").interactions()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_toml_file_without_sql_is_refused(tmp_path):
    (tmp_path / "t.toml").write_text("[interactions]\n")
    with pytest.raises(DataError, match=r"section \[sql\] is missing"):
        open_source(str(tmp_path / "t.toml"), "A")
