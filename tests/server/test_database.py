"""Reaching the database: every fault is one line that names it, without its password."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql_server import PostgreSQL, running, server_programs
from sqlalchemy import text

from crossrec_model.errors import FederationError
from server.database import Database, DatabaseUnavailableError
from server.store import Store

SECRET = "geheim"
RUN, PLAN = bytes(range(16)), b"{}"


def _refusal(url: str, **options: float) -> FederationError:
    with pytest.raises(FederationError) as caught:
        Store.open(url, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert SECRET not in message
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    return caught.value


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", r"the database URL \(without :// …\) can't be read; give sqlite:////FOLDER"),
        ("coordinator.db", r"\(without :// …\) can't be read"),
        (f"postgresql://u:{SECRET}@host:port/db", r"\(postgresql …\) can't be read"),
        (f"mysql://u:{SECRET}@host/db", "kind 'mysql' is not known"),
        (f"postgresql+asyncpg://u:{SECRET}@host/db", r"kind 'postgresql\+asyncpg' is not known"),
        (f"postgresql://u:p@{SECRET}@host/db", "has an @ too many; write it in a password as %40"),
        ("postgresql://u@host", "has no name at its end"),
        ("sqlite://", "is no plain file; give sqlite:////FOLDER"),
        ("sqlite:///:memory:", "is no plain file"),
        ("sqlite://coordinator.db", "is no plain file"),
        ("sqlite:////tmp/x.db?mode=memory", "is no plain file"),
    ],
)
def test_a_url_that_names_no_database_is_refused(url: str, why: str) -> None:
    error = _refusal(url)
    assert error.exit_code == 2
    with pytest.raises(FederationError, match=why):
        Database.open(url)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://asta:{SECRET}@127.0.0.1:1/db",
        f"postgresql://asta@127.0.0.1:1/db?password={SECRET}",
        f"postgres://asta:{SECRET}@127.0.0.1:1/db?sslmode=disable",
    ],
)
def test_a_server_that_is_not_there_may_come_later(url: str) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    error = _refusal(url)
    assert "asta" in str(error)
    assert "127.0.0.1" in str(error)
    assert "can't be reached: " in str(error)
    assert isinstance(error, DatabaseUnavailableError)
    assert error.exit_code == 75


def test_a_server_that_says_nothing_is_not_waited_for_long() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        error = _refusal(f"postgresql://u:{SECRET}@127.0.0.1:{port}/db", patience_s=2)
    assert isinstance(error, DatabaseUnavailableError)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    error = _refusal(f"postgresql://u:{SECRET}@host/db")
    assert "needs the package psycopg; pip install 'crossrec[postgresql]'" in str(error)
    assert error.exit_code == 2


def test_a_database_that_is_not_there_is_refused(postgresql: PostgreSQL) -> None:
    url = postgresql.url("nowhere", f"crossrec:{SECRET}")
    error = _refusal(url)
    assert 'database "nowhere" does not exist' in str(error)
    # Starting again would not help.
    assert error.exit_code == 2


def test_an_account_that_may_not_make_tables_is_told(postgresql: PostgreSQL) -> None:
    postgresql.execute("CREATE ROLE reader LOGIN")
    postgresql.execute("CREATE DATABASE closed")
    error = _refusal(postgresql.url("closed", f"reader:{SECRET}"))
    assert "permission denied" in str(error)
    assert error.exit_code == 2


@pytest.fixture
def own_server() -> Iterator[PostgreSQL]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    with running(programs) as server:
        yield server


def test_a_server_that_was_restarted_is_found_again(own_server: PostgreSQL) -> None:
    with Store.open(own_server.fresh()) as store:
        store.begin_run(RUN, PLAN)
        own_server.stop()
        with pytest.raises(DatabaseUnavailableError, match="can't be reached: ") as caught:
            store.end_run(RUN, "finished")
        assert "pa@ss" not in str(caught.value)
        own_server.start()
        store.end_run(RUN, "finished")
        assert store.runs()[0].status == "finished"


def test_a_commit_is_flushed_whatever_the_servers_default(postgresql: PostgreSQL) -> None:
    url = postgresql.fresh()
    name = url.rpartition("/state")[2].partition("?")[0]
    postgresql.execute(f"ALTER DATABASE state{name} SET synchronous_commit = off")
    database = Database.open(url)
    with database.writing() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
    database.close()


def test_a_writer_is_waited_for_and_not_for_ever(postgresql: PostgreSQL) -> None:
    url, held, let_go = postgresql.fresh(), threading.Event(), threading.Event()
    with Store.open(url, patience_s=0.05) as store:
        other = Database.open(url)

        def hold() -> None:
            with other.writing():
                held.set()
                let_go.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert held.wait(60)
            with pytest.raises(DatabaseUnavailableError, match="is locked by another process"):
                store.begin_run(RUN, PLAN)
            # Nobody who reads waits for it.
            assert store.runs() == []
        finally:
            let_go.set()
            thread.join()
            other.close()
        store.begin_run(RUN, PLAN)


def test_a_transaction_that_fails_leaves_nothing(url: str) -> None:
    Store.open(url).close()
    database = Database.open(url)

    def fail() -> None:
        with database.writing() as connection:
            connection.execute(text("INSERT INTO crossrec_version VALUES (9)"))
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError):
        fail()
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM crossrec_version")).scalar() == 1
    database.close()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/state.db") as store:
        with store._database.writing() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 20")
        with pytest.raises(FederationError, match=r"state.db refused: database or disk is full"):
            store.begin_run(RUN, b"x" * 10**6)
        assert store.runs() == []
