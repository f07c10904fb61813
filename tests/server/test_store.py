"""The coordinator's database: what was acknowledged is there, whatever happens to the process."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import LargeBinary, inspect, text

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError, CrossrecError, FederationError
from crossrec_model.secagg.messages import Kind
from server import schema
from server.checkpoint import RoundRecord
from server.database import Database, DatabaseUnavailableError
from server.federation import DATABASE
from server.folder import SETTINGS, FederationFolder, Settings
from server.openings import Openings
from server.store import SEEN_EVERY, Store, checkup
from server.stored_openings import StoredOpenings

RUN, OTHER = bytes(range(16)), bytes(16)
PLAN = Plan().to_json()
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def _record(number: int, platforms: str = "ABC", seconds: float = 1.5) -> RoundRecord:
    return RoundRecord(
        round=number,
        platforms=tuple(platforms),
        seconds=seconds,
        training={"loss": 0.1 + number},
        evaluation={"ndcg@10": 1 / 3},
    )


def test_a_run_and_its_rounds_come_back(url: str) -> None:
    clock = Clock()
    with Store.open(url, clock=clock) as store:
        assert store.runs() == []
        assert store.unfinished() is None
        store.begin_run(RUN, PLAN, 3)
        clock.now += timedelta(hours=1)
        for number in (1, 2):
            store.save_round(RUN, _record(number))
    with Store.open(url, clock=clock) as store:
        (run,) = store.runs()
        assert (run.run, run.plan, run.plan_version) == (RUN, PLAN.decode(), 3)
        assert (run.started, run.ended) == ("2026-01-02T12:00:00Z", None)
        assert (run.status, run.rounds) == ("running", 2)
        # Bit by bit: 1/3 too.
        assert store.rounds(RUN) == [_record(1), _record(2)]
        assert store.unfinished() == run
        assert store.rounds(OTHER) == []


def test_a_run_ends_and_goes_on(url: str) -> None:
    clock = Clock()
    with Store.open(url, clock=clock) as store:
        store.begin_run(RUN, PLAN)
        clock.now += timedelta(hours=1)
        store.end_run(RUN, "stopped")
        (run,) = store.runs()
        assert (run.status, run.ended) == ("stopped", "2026-01-02T13:00:00Z")
        assert store.unfinished() == run
        clock.now += timedelta(hours=1)
        store.begin_run(RUN, PLAN, 4)
        (run,) = store.runs()
        assert (run.started, run.ended) == ("2026-01-02T12:00:00Z", None)
        assert (run.status, run.plan_version) == ("running", 4)
        store.end_run(RUN, "finished")
        assert store.unfinished() is None
        # Of two that began in one second the later one counts.
        store.begin_run(OTHER, PLAN)
        store.begin_run(bytes([255] * 16), PLAN)
        store.begin_run(bytes([7] * 16), PLAN)
        latest = store.unfinished()
        assert latest is not None
        assert latest.run == bytes([7] * 16)


def test_a_round_that_is_saved_twice_stands_there_once(url: str) -> None:
    with Store.open(url) as store:
        store.begin_run(RUN, PLAN)
        store.save_round(RUN, _record(1))
        store.save_round(RUN, _record(1, "AB", 9.0))
        assert store.rounds(RUN) == [_record(1, "AB", 9.0)]


def test_the_checkpoint_decides_which_rounds_there_were(url: str) -> None:
    with Store.open(url) as store:
        store.begin_run(RUN, PLAN)
        store.begin_run(OTHER, PLAN)
        store.save_round(OTHER, _record(9))
        for number in (1, 2, 5, 6):
            store.save_round(RUN, _record(number, "AB"))
        history = [_record(number) for number in (1, 2, 3, 4, 5)]
        store.take_over(RUN, history)
        assert store.rounds(RUN) == history
        store.take_over(RUN, [])
        assert store.rounds(RUN) == []
        assert store.rounds(OTHER) == [_record(9)]


def test_all_of_a_history_comes_in_or_nothing(url: str) -> None:
    with Store.open(url) as store:
        store.begin_run(RUN, PLAN)
        store.save_round(RUN, _record(7))
        bad = dataclasses.replace(_record(2), seconds="no number")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no number"):
            store.take_over(RUN, [_record(1), bad])
        assert store.rounds(RUN) == [_record(7)]


def test_means_that_are_no_numbers_come_back_as_such(url: str) -> None:
    record = dataclasses.replace(
        _record(1), training={"loss": math.nan, "other": math.inf}, evaluation={}
    )
    with Store.open(url) as store:
        store.begin_run(RUN, PLAN)
        store.save_round(RUN, record)
        (found,) = store.rounds(RUN)
    assert all(math.isnan(value) for value in found.training.values())
    assert sorted(found.training) == ["loss", "other"]
    assert found.evaluation == {}


def test_what_was_never_begun_is_refused(url: str) -> None:
    with Store.open(url) as store:
        for attempt in (
            lambda: store.save_round(RUN, _record(1)),
            lambda: store.take_over(RUN, []),
            lambda: store.end_run(RUN, "finished"),
        ):
            with pytest.raises(FederationError, match=r"run 00010203 is not in database .*begin"):
                attempt()
        with pytest.raises(ConfigError, match="run has 3 bytes; 16 are needed"):
            store.begin_run(b"abc", PLAN)
        store.begin_run(RUN, PLAN)
        for status in ("running", "lost"):
            with pytest.raises(ConfigError, match=f"status '{status}' is no end"):
                store.end_run(RUN, status)  # type: ignore[arg-type]


def test_platforms_are_remembered_and_not_written_at_every_look(url: str) -> None:
    clock = Clock()
    with Store.open(url, clock=clock) as store:
        store.saw({"B": "", "A": "0.1.0"})
        clock.now += SEEN_EVERY / 2
        store.saw({"A": "0.1.0"})
        assert [p.last for p in store.platforms()] == ["2026-01-02T12:00:00Z"] * 2
        clock.now += SEEN_EVERY / 2
        store.saw({"A": "0.1.0"})
        first, second = store.platforms()
        assert (first.platform, first.first) == ("A", "2026-01-02T12:00:00Z")
        assert first.last == "2026-01-02T12:01:00Z"
        assert (second.platform, second.last, second.software) == ("B", second.first, "")
        # Another version at once, and after the clock was set back.
        store.saw({"A": "0.2.0\n\x00\ud800" + "x" * 100})
        assert store.platforms()[0].software == "0.2.0???" + "x" * 56
        clock.now -= timedelta(days=1)
        store.saw({"B": ""})
        assert store.platforms()[1].last == "2026-01-01T12:01:00Z"
        with pytest.raises(ConfigError, match="nothing was written"):
            store.saw({"C": "1", "a b": "1"})
        assert len(store.platforms()) == 2


def test_the_status_is_for_people(url: str) -> None:
    clock = Clock()
    with Store.open(url, clock=clock) as store:
        assert store.status() == [
            f"database {store.name}, tables of version 1",
            "no run was begun yet",
        ]
        store.begin_run(OTHER, PLAN)
        store.end_run(OTHER, "failed")
        store.begin_run(RUN, PLAN)
        store.save_round(RUN, _record(1))
        store.saw({"A": "0.1.0", "Berta": "0.2.0"})
        assert store.status()[1:] == [
            "run 00000000: begun 2026-01-02T12:00:00Z, failed 2026-01-02T12:00:00Z, rounds 0",
            "run 00010203: begun 2026-01-02T12:00:00Z, running, rounds 1",
            "  round 1 over A, B, C in 1.50 s",
            "platform A      last here 2026-01-02T12:00:00Z, since 2026-01-02T12:00:00Z, with 0.1.0",
            "platform Berta  last here 2026-01-02T12:00:00Z, since 2026-01-02T12:00:00Z, with 0.2.0",
        ]
    # Looked at, never made.
    with Store.open(url, create=False) as store:
        assert len(store.status()) == 6


Make = Callable[[bytes], Openings | StoredOpenings]


@pytest.fixture
def in_file(tmp_path: Path) -> Make:
    return lambda run: Openings(run, tmp_path / f"{run.hex()}.json")


@pytest.fixture
def in_database(url: str) -> Iterator[Make]:
    with ExitStack() as stores:
        yield lambda run: stores.enter_context(Store.open(url)).openings(run)


def test_openings_outlive_a_restart_in_a_file(in_file: Make) -> None:
    _outlive(in_file)


def test_openings_outlive_a_restart_in_a_database(in_database: Make) -> None:
    _outlive(in_database)


def _outlive(make_openings: Make) -> None:
    """Makes the openings of a run anew, each time from what is on the disk."""
    openings = make_openings(RUN)
    assert openings.of(Kind.TRAIN, 3) is None
    openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))
    openings.begin(Kind.EVALUATE, 2, ("A", "B", "C", "D"))
    for again in (openings, make_openings(RUN)):
        assert again.of(Kind.TRAIN, 3) == ("A", "B", "C")
        assert again.of(Kind.EVALUATE, 2) == ("A", "B", "C", "D")
        assert again.of(Kind.TRAIN, 2) is again.of(Kind.EVALUATE, 3) is None
    # The same once more is no other list.
    openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))
    openings.begin(Kind.TRAIN, 4, ("B", "C", "D"))
    assert make_openings(RUN).of(Kind.TRAIN, 4) == ("B", "C", "D")
    assert make_openings(RUN).of(Kind.TRAIN, 3) is None
    # Another run opens sums of its own.
    assert make_openings(OTHER).of(Kind.TRAIN, 4) is None


def test_two_coordinators_never_open_one_sum_over_two_lists(url: str) -> None:
    with Store.open(url) as one, Store.open(url) as two:
        first, second = one.openings(RUN), two.openings(RUN)
        first.begin(Kind.TRAIN, 3, ("A", "B", "C"))
        for number, platforms in ((3, ("A", "B", "D")), (2, ("A", "B", "C"))):
            with pytest.raises(FederationError, match=r"round 3 was begun over A, B, C; stop the"):
                second.begin(Kind.TRAIN, number, platforms)
            # Nothing may be asked, so nothing is remembered as begun.
            assert second.of(Kind.TRAIN, number) is None
        assert one.openings(RUN).of(Kind.TRAIN, 3) == ("A", "B", "C")


def test_of_many_coordinators_at_once_one_begins(url: str) -> None:
    Store.open(url).close()
    begun: list[tuple[str, ...]] = []
    refused: list[str] = []
    gate = threading.Barrier(6)

    def work(name: str) -> None:
        with Store.open(url, patience_s=60) as store:
            openings = store.openings(RUN)
            gate.wait()
            for number in range(1, 6):
                try:
                    openings.begin(Kind.TRAIN, number, ("A", "B", name))
                    begun.append((str(number), name))
                except FederationError as error:
                    refused.append(str(error))

    threads = [threading.Thread(target=work, args=(name,)) for name in "CDEFGH"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("stop the other coordinator" in error for error in refused)
    assert len(begun) + len(refused) == 30
    numbers = [number for number, _name in begun]
    assert len(numbers) == len(set(numbers))
    with Store.open(url) as store:
        number, name = max(begun)
        assert store.openings(RUN).of(Kind.TRAIN, int(number)) == ("A", "B", name)


def test_many_processes_make_the_tables_once(fresh_url: Callable[[], str]) -> None:
    url, failures, gate = fresh_url(), [], threading.Barrier(8)

    def work(number: int) -> None:
        gate.wait()
        try:
            with Store.open(url, patience_s=60) as store:
                store.begin_run(bytes([number] * 16), PLAN)
        except CrossrecError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with Store.open(url) as store:
        assert len(store.runs()) == 8


def test_tables_of_a_newer_version_are_refused_untouched(url: str) -> None:
    Store.open(url).close()
    database = Database.open(url)
    with database.writing() as connection:
        connection.execute(text("UPDATE crossrec_version SET version = 2"))
    try:
        with pytest.raises(
            FederationError, match=r"has tables of version 2, this program knows 1; install"
        ) as caught:
            Store.open(url)
        assert "pa%40ss" not in str(caught.value)
        for change, stands in (("DELETE FROM", "missing"), ("INSERT INTO", "1, 2")):
            with database.writing() as connection:
                rest = " VALUES (1), (2)" if "INSERT" in change else ""
                connection.execute(text(f"{change} crossrec_version{rest}"))
            with pytest.raises(FederationError, match=f"has tables of version {stands}"):
                Store.open(url)
    finally:
        database.close()


def test_tables_of_another_program_are_left_alone(url: str) -> None:
    database = Database.open(url)
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE runs (id INTEGER)"))
    with pytest.raises(FederationError, match="has a table runs that is not crossrec's"):
        Store.open(url)
    with database.reading() as connection:
        assert inspect(connection).get_table_names() == ["runs"]
    database.close()


def test_rows_that_we_never_wrote_are_damage(url: str) -> None:
    with Store.open(url) as store:
        store.begin_run(RUN, PLAN)
        store.save_round(RUN, _record(1))
        store.openings(RUN).begin(Kind.TRAIN, 1, ("A", "B", "C"))
    database = Database.open(url)
    for statement, read in (
        ("UPDATE openings SET platforms = '{'", lambda s: s.openings(RUN)),
        ("UPDATE openings SET platforms = '[1]'", lambda s: s.openings(RUN)),
        ("UPDATE openings SET kind = 'OTHER'", lambda s: s.openings(RUN)),
        ("UPDATE rounds SET means = '[]'", lambda s: s.rounds(RUN)),
        ("UPDATE rounds SET platforms = '5'", lambda s: s.status()),
        ("UPDATE runs SET status = 'lost'", lambda s: s.unfinished()),
    ):
        with database.writing() as connection:
            connection.execute(text(statement))
        with Store.open(url) as store:
            with pytest.raises(FederationError, match=r"is damaged \(.*an old copy must not"):
                read(store)
    database.close()


def test_no_table_can_hold_a_tensor() -> None:
    columns = [column for table in schema.metadata.tables.values() for column in table.columns]
    assert not [column for column in columns if isinstance(column.type, LargeBinary)]
    names = {
        f"{column.table.name}.{column.name}" for column in columns if "version" not in str(column)
    }
    # What a new column holds must be thought about: none about one platform's users or updates.
    assert names == {
        *("runs.id", "runs.sequence", "runs.plan", "runs.started", "runs.ended", "runs.status"),
        *("rounds.run", "rounds.number", "rounds.platforms", "rounds.seconds", "rounds.means"),
        *("rounds.finished", "openings.run", "openings.kind", "openings.round"),
        *("openings.platforms", "platforms.id", "platforms.first_seen", "platforms.last_seen"),
        "platforms.software",
    }


def test_the_plan_is_kept_as_it_was_signed(url: str) -> None:
    with Store.open(url) as store:
        store.begin_run(RUN, PLAN)
        (run,) = store.runs()
    assert Plan.from_json(run.plan.encode()) == Plan()
    assert json.loads(run.plan)


def test_a_path_is_a_file_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("a?mode=memory", "b%40c@d#e", ":memory:", "sp ace é"):
        path = tmp_path / name
        with Store.open(path) as store:
            store.begin_run(RUN, PLAN)
        assert path.is_file()
        with Store.open(path, create=False) as store:
            assert len(store.runs()) == 1


def test_a_checkup_makes_nothing_and_tells_what_is_there(tmp_path: Path) -> None:
    folder = FederationFolder(tmp_path)
    settings = Settings(name="demo", host="127.0.0.1")
    (tmp_path / SETTINGS).write_text(settings.to_toml(), encoding="utf-8")
    assert checkup(tmp_path) == "no database yet; the coordinator makes it"
    assert not folder.state.exists()
    folder.state.mkdir()
    with Store.open(folder.state / DATABASE) as store:
        assert checkup(tmp_path).endswith("coordinator.db is whole; runs: 0")
        store.begin_run(RUN, PLAN)
        store.save_round(RUN, _record(1))
    assert checkup(tmp_path).endswith("runs: 1, the last one running after 1")
    (folder.state / DATABASE).write_bytes(b"x" * 4096)
    with pytest.raises(FederationError, match="is damaged"):
        checkup(tmp_path)


def test_sqlite_flushes_every_commit(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = Database.open(f"sqlite:///{path}")
    with database.writing() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    database.close()
    assert settings == ["wal", 2, 1]


def test_sqlites_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/state.db") as store:
        store.begin_run(RUN, PLAN)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"state.db", "state.db-wal", "state.db-shm"}
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_a_locked_file_is_one_line_and_may_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with Store.open(f"sqlite:///{path}", patience_s=0.05) as store:
        store.begin_run(RUN, PLAN)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailableError, match=r"state.db is locked by") as caught:
                store.end_run(RUN, "finished")
            assert caught.value.exit_code == 75
            # Reading goes on, also for whoever asks for the status.
            with Store.open(f"sqlite:///{path}", create=False, patience_s=0.05) as looking:
                assert looking.runs()[0].status == "running"
        store.end_run(RUN, "finished")


def test_a_damaged_file_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    url = f"sqlite:///{path}"
    with Store.open(url) as store:
        store.begin_run(RUN, PLAN)
        for number in range(1, 400):
            store.save_round(RUN, _record(number))
    whole = path.read_bytes()
    for content in (
        b"no database at all" * 100,
        whole[:4096] + b"\xff" * 8192 + whole[12288:],
        whole[: len(whole) // 2],
    ):
        path.write_bytes(content)
        with pytest.raises(FederationError, match=r"state.db is damaged \(.*move it away"):
            Store.open(url)
        assert path.read_bytes() == content


def test_a_file_that_can_not_be_made_or_is_not_there(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "none" / "state.db", "No such file or directory; make the folder"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(FederationError, match=why):
            Store.open(f"sqlite:///{path}")
    with pytest.raises(FederationError, match=r"state.db is not there; the coordinator makes it"):
        Store.open(f"sqlite:///{tmp_path}/state.db", create=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    with pytest.raises(FederationError, match=r"empty.db is empty; the coordinator makes its"):
        Store.open(f"sqlite:///{tmp_path}/empty.db", create=False)
