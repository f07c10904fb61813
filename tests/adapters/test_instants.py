from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.adapters.instants import instants
from crossrec_model.errors import DataError

NOON = datetime(2024, 1, 31, 12, 0, 5, tzinfo=UTC)


def read(values, time_format="iso", time_zone="UTC"):
    frame = pl.LazyFrame({"at": values})
    time, text = instants(frame, "at", time_format, time_zone, file="f")
    columns = [time.alias("time"), *([] if text is None else [text.alias("text")])]
    return frame.select(columns).collect()


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-31T12:00:05Z",
        "2024-01-31T12:00:05",
        " 2024-01-31 12:00:05 ",
        "2024-01-31T12:00:05.000Z",
        "2024-01-31T13:00:05+01:00",
        "2024-01-31T13:00:05.000000+0100",
        "2024-01-31 12:00:05+00",
    ],
)
def test_iso_forms(text):
    read_back = read([text])
    assert read_back["time"].to_list() == [NOON]
    assert read_back["text"].to_list() == [text]


def test_iso_dates_and_minutes():
    assert read(["2024-01-31"], time_zone="Asia/Shanghai")["time"].to_list() == [
        datetime(2024, 1, 30, 16, tzinfo=UTC)
    ]
    assert read(["2024-01-31T12:00"])["time"].to_list() == [datetime(2024, 1, 31, 12, tzinfo=UTC)]


def test_one_file_has_one_iso_form():
    times = read(["2024-01-31T12:00:05Z", None, "31 January"])["time"]
    assert times.to_list() == [
        NOON,
        None,
        None,
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)),
    st.sampled_from([("unix_s", 10**6), ("unix_ms", 1000), ("unix_us", 1)]),
    st.booleans(),
)
def test_unix_times_are_exact(moment, form, as_text):
    unit, size = form
    micros = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // (
        datetime(1970, 1, 2) - datetime(1970, 1, 1)
    ) * 86_400 * 10**6 + (moment.hour * 3600 + moment.minute * 60 + moment.second) * 10**6
    value = micros // size
    expected = moment.replace(tzinfo=UTC, microsecond=0)
    assert read([str(value) if as_text else value], unit)["time"].to_list() == [expected]


def test_unix_fractions_and_nonsense():
    values = ["1700000000.25", "nan", "inf", "99999999999999999999", "soon", "", None]
    times = read(values, "unix_s")["time"].to_list()
    assert times[0] == datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
    assert times[1:3] == [None, None]
    assert times[3] is None or times[3].year > 5000
    assert times[4:] == [None] * 3


def test_clock_changes():
    times = read(["31.03.2024 02:30", "27.10.2024 02:30"], "%d.%m.%Y %H:%M", "Europe/Berlin")[
        "time"
    ].to_list()
    assert times == [None, datetime(2024, 10, 27, 0, 30, tzinfo=UTC)]


def test_numbers_need_a_unit():
    with pytest.raises(DataError, match="set time_format to unix_s"):
        read([1_700_000_000])


def test_other_types_are_refused():
    with pytest.raises(DataError, match="deliver a time or a text"):
        read([True])


def test_columns_of_times_stay_as_they_are():
    for dtype in (pl.Datetime("ns"), pl.Datetime("ms", "Asia/Tokyo")):
        assert read(pl.Series([NOON]).cast(dtype))["time"].to_list() == [NOON]
    assert read(pl.Series([None]))["time"].dtype == pl.Datetime("us", "UTC")
