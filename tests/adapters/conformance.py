"""What every adapter must do; its tests inherit from `SourceConformance`."""

from datetime import UTC, datetime

import polars as pl
import pytest

from crossrec_model.data.prepared import prepare
from crossrec_model.data.schema import SOURCE_FILE, SOURCE_ROW, Event
from crossrec_model.data.source import Source, check_columns


class SourceConformance:
    """Give a fixture `source` whose good rows belong to at least three users."""

    @pytest.fixture
    def tables(self, source):
        frames = {"interactions": source.interactions(), "catalogue": source.catalogue()}
        users = source.users()
        return frames if users is None else frames | {"users": users}

    def test_is_a_source_with_a_short_name(self, source):
        assert isinstance(source, Source)
        assert 0 < len(source.name) < 100
        assert "\n" not in source.name

    def test_delivers_lazy_tables_with_canonical_columns(self, tables):
        for table, frame in tables.items():
            assert isinstance(frame, pl.LazyFrame)
            check_columns(table, frame.collect_schema())

    def test_every_row_can_be_found_again(self, tables):
        for frame in tables.values():
            rows = frame.collect(engine="streaming")
            origin = rows.select(SOURCE_FILE, SOURCE_ROW)
            assert rows.height > 0
            assert origin.null_count().row(0) == (0, 0)
            assert rows[SOURCE_FILE].dtype == pl.String
            assert rows[SOURCE_ROW].dtype.is_integer()
            assert rows[SOURCE_ROW].min() >= 1
            assert origin.is_unique().all()
            assert not any(name.startswith("/") for name in rows[SOURCE_FILE].unique())

    def test_gives_the_same_rows_each_time(self, source, tables):
        again = {"interactions": source.interactions(), "catalogue": source.catalogue()}
        for table, frame in again.items():
            assert frame.collect().equals(tables[table].collect(engine="streaming"))

    def test_speaks_of_known_events_and_instants(self, tables):
        events = tables["interactions"].select("event", "time").collect()
        known = {event.value for event in Event}
        assert known & set(events["event"])
        assert events["time"].dtype.time_zone == "UTC"

    def test_can_be_prepared(self, source, tables, tmp_path):
        now = datetime(2026, 1, 1, tzinfo=UTC)
        data = prepare(source, into=tmp_path / "out", now=now, max_bad=0.5, min_users=3)
        read = {t.table: t.read for t in data.summary.tables}
        for table, frame in tables.items():
            assert read[table] == frame.select(pl.len()).collect().item()
        for summary in data.summary.tables:
            if summary.dropped:
                file = data.folder / "quarantine" / f"{summary.table}.csv"
                assert pl.read_csv(file).height == sum(summary.dropped.values())
        assert data.interactions().select(pl.len()).collect().item() == data.summary.tables[0].kept
