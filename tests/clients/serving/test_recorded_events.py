"""Events are on the disk before they are acknowledged, and reach the next training."""

from __future__ import annotations

import os
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from serving_process import Running, stub_of
from serving_stage import make_trained, write_shop

from clients.adapters import open_source
from clients.serving.events import EventStore, EventStoreError, RecordedEvent, read_events
from clients.serving.proto import recommender_pb2 as pb
from clients.serving.recorded import with_recorded
from crossrec_model.data.prepared import prepare
from crossrec_model.data.schema import Event

TIME = "2024-07-20T10:00:00.25Z"
TIME_US = 1_721_469_600_250_000


def event(number: int = 0, **more: object) -> RecordedEvent:
    given = {"user_id": "u1", "item_id": "i3", "event": Event.CART, "time_us": TIME_US + number}
    return RecordedEvent(**{**given, **more})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


def test_what_was_added_is_read_again(path: Path) -> None:
    store = EventStore(path)
    kept = [store.add(event(n, quantity=1.5, price=2.0, shop_id="s"))[0] for n in range(3)]
    assert [one.number for one in kept] == [1, 2, 3]
    assert store.all() == kept
    store.close()
    assert read_events(path) == kept
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_event_id_is_kept_once(path: Path) -> None:
    store = EventStore(path)
    first, again = store.add(event(event_id="a"))
    assert not again
    second, again = store.add(event(7, event_id="a"))
    assert again
    assert second == first
    assert len(store.all()) == 1
    store.close()


def test_every_commit_is_flushed(path: Path) -> None:
    store = EventStore(path)
    (mode,) = store._database.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._database.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
    store.close()


def test_no_file_is_no_event(path: Path) -> None:
    assert read_events(path) == []
    assert not path.exists()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0"])
def test_a_damaged_file_is_told_in_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for attempt in (read_events, EventStore):
        with pytest.raises(EventStoreError, match=r"the file of events .* can't be used"):
            attempt(path)


def test_a_newer_kind_of_event_is_told(path: Path) -> None:
    EventStore(path).close()
    with sqlite3.connect(path) as database:
        database.execute(
            "INSERT INTO events (user_id, item_id, event, time_us) VALUES ('u', 'i', 'gift', 1)"
        )
    database.close()
    with pytest.raises(EventStoreError, match="gift"):
        read_events(path)


def test_recorded_events_reach_the_next_training(tmp_path: Path, path: Path) -> None:
    source = open_source(str(write_shop(tmp_path / "rows")), "A")
    assert with_recorded(source, path) is source
    before = prepare(source, into=tmp_path / "before", now=datetime.now(UTC))
    known = before.interactions().collect().row(5, named=True)
    delivered_too = event(
        user_id=known["user_id"],
        item_id=known["item_id"],
        event=Event(known["event"]),
        time_us=round(known["time"].timestamp() * 1e6),
        quantity=known["quantity"],
        price=known["price"],
    )
    store = EventStore(path)
    for one in (event(), event(1, user_id="new", shop_id="shop1", price=3.0), delivered_too):
        store.add(one)
    store.add(event(2, item_id="gone"))
    store.close()
    after = prepare(with_recorded(source, path), into=tmp_path / "after", now=datetime.now(UTC))
    rows = after.interactions().collect()
    assert rows.height == before.interactions().collect().height + 2
    mine = rows.filter((rows["user_id"] == "u1") & (rows["event"] == "cart")).row(0, named=True)
    assert mine["item_id"] == "i3"
    assert mine["time"] == datetime(2024, 7, 20, 10, 0, 0, 250_000, tzinfo=UTC)
    assert "new" in rows["user_id"].to_list()
    assert after.catalogue().equals(before.catalogue())


@pytest.mark.processes
def test_a_kill_loses_no_acknowledged_event(tmp_path: Path) -> None:
    make_trained(tmp_path, "A")
    acknowledged: list[int] = []
    for turn in range(2):
        process = Running(tmp_path)
        try:
            process.wait_until_it_serves()
            with stub_of(process.grpc) as stub:
                enough, stream = threading.Event(), []

                def send(stub=stub, enough=enough, stream=stream, turn=turn) -> None:
                    for number in range(100_000):
                        request = pb.RecordEventRequest(
                            user_id=f"u{number % 50}",
                            item_id="i3",
                            event="view",
                            time=TIME,
                            event_id=f"{turn}-{number}",
                        )
                        try:
                            stream.append(stub.RecordEvent(request, timeout=10).number)
                        except Exception:
                            return
                        if len(stream) >= 150:
                            enough.set()

                sender = threading.Thread(target=send)
                sender.start()
                assert enough.wait(60)
                process.kill()
                sender.join(30)
                acknowledged += stream
        finally:
            process.end()
    kept = {one.number for one in read_events(tmp_path / "A" / "events.sqlite")}
    assert len(acknowledged) == len(set(acknowledged)) >= 300
    assert not set(acknowledged) - kept
    # At most the one that was on its way.
    assert len(kept) <= len(acknowledged) + 2
    assert os.path.exists(tmp_path / "A" / "events.sqlite")
