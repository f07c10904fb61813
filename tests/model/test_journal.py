"""Log lines: one record a line, whatever it holds, and nothing about users."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crossrec_model.errors import FederationError
from crossrec_model.journal import FIELDS, LogFormat, log_handler
from server.journal import keep_journal

EVIL = 'a\nb\r\t\x1b[31m\x00 "quoted" \u2028 é \ud800 \U0001f600'


class Lines(Exception):
    """Says what it is given, on as many lines."""


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("crossrec.test")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers = []


def _written(logger: logging.Logger, format: LogFormat) -> io.StringIO:
    stream = io.StringIO()
    logger.handlers = [log_handler(stream, format)]
    return stream


def test_a_json_line_says_when_where_and_what(logger: logging.Logger) -> None:
    stream = _written(logger, "json")
    before = datetime.now(UTC)
    logger.warning("round %d of %s", 3, "A", extra={"round": 3, "platforms": ("A", "B")})
    line = json.loads(stream.getvalue())
    assert stream.getvalue().endswith("\n")
    assert abs((datetime.fromisoformat(line.pop("time")) - before).total_seconds()) < 60
    assert line == {
        "level": "WARNING",
        "logger": "crossrec.test",
        "message": "round 3 of A",
        "round": 3,
        "platforms": ["A", "B"],
    }


def test_the_time_is_in_utc_with_milliseconds_in_both_formats() -> None:
    record = logging.makeLogRecord({"msg": "x", "name": "n", "levelname": "INFO"})
    record.created, record.msecs = 1_700_000_000.25, 250.0
    texts = {f: log_handler(io.StringIO(), f).format(record) for f in ("text", "json")}  # type: ignore[arg-type]
    assert json.loads(texts["json"])["time"] == "2023-11-14T22:13:20.250Z"
    assert texts["text"] == "2023-11-14T22:13:20.250Z INFO n: x"


@pytest.mark.parametrize("format", ["text", "json"])
def test_nothing_in_a_message_can_begin_another_record(
    logger: logging.Logger, format: LogFormat
) -> None:
    stream = _written(logger, format)
    logger.info("platform %s was refused", EVIL)
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text[:-1])
    if format == "json":
        assert text.isascii()
        assert json.loads(text)["message"] == f"platform {EVIL} was refused"


def test_an_exception_is_told_and_can_not_forge_a_line(logger: logging.Logger) -> None:
    forged = "2026-01-01T00:00:00.000Z INFO crossrec: all is well"
    for format in ("text", "json"):
        stream = _written(logger, format)  # type: ignore[arg-type]
        raised = Lines(f"bad\n{forged}\r{forged}\x0b{forged}")
        logger.error("it failed", exc_info=(Lines, raised, None), stack_info=True)
        text = stream.getvalue()
        assert "Lines: bad" in text
        assert not any(line.startswith("2026-01-01") for line in text.splitlines())
        if format == "json":
            assert "Stack (most recent call last)" in json.loads(text)["exception"]


def test_extra_fields_that_may_tell_about_users_are_withheld(logger: logging.Logger) -> None:
    assert not {"user", "users", "user_id", "count", "weight", "interactions"} & FIELDS
    stream = _written(logger, "json")
    logger.info("x", extra={"user_id": "u-4711", "users": 4711, "platform": "A"})
    line = json.loads(stream.getvalue())
    assert line["withheld"] == ["user_id", "users"]
    assert line["platform"] == "A"
    assert "4711" not in stream.getvalue().replace(line["time"], "")


def test_extra_fields_can_not_replace_our_own(logger: logging.Logger) -> None:
    stream = _written(logger, "json")
    logger.info("x", extra={"time": "never", "level": "none", "logger": "l", "exception": "e"})
    line = json.loads(stream.getvalue())
    assert line["time"] != "never"
    assert (line["level"], line["logger"]) == ("INFO", "crossrec.test")
    assert line["withheld"] == ["exception", "level", "logger", "time"]


def test_values_that_are_no_json_become_bounded_texts(logger: logging.Logger) -> None:
    stream = _written(logger, "json")
    values = {"reason": object(), "code": float("nan"), "seconds": float("inf"), "url": "x" * 10**6}
    logger.info("x", extra={**values, "run": None, "event": True, "platforms": [1.5, b"\xff"]})
    line = json.loads(stream.getvalue())
    assert line["reason"].startswith("<object object")
    assert (line["code"], line["seconds"]) == ("nan", "inf")
    assert len(line["url"]) == 4096
    assert line["run"] is None
    assert line["event"] is True
    assert line["platforms"] == [1.5, "b'\\xff'"]


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_file_is_appended_to_and_for_its_owner_alone(
    logger: logging.Logger, tmp_path: Path, format: LogFormat
) -> None:
    path = tmp_path / "x.log"
    for number in range(2):
        logger.handlers = [handler := log_handler(path, format)]
        logger.info("line %d %s", number, EVIL)
        handler.close()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert ["line 0" in lines[0], "line 1" in lines[1]] == [True, True]
    assert len(lines) == 2
    assert path.stat().st_mode & 0o077 == 0


def test_a_rotated_file_is_followed(logger: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    logger.handlers = [log_handler(path, "json")]
    logger.info("first")
    path.rename(tmp_path / "x.log.1")
    logger.info("second")
    assert json.loads(path.read_text())["message"] == "second"
    assert json.loads((tmp_path / "x.log.1").read_text())["message"] == "first"


def test_a_file_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "x.log"):
        with pytest.raises(FederationError, match=r"log file .* can't be written: .*--state"):
            log_handler(path, "json")


def test_a_full_disk_is_told_once_and_ends_nothing(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = log_handler(Path("/dev/full"), "json")
    assert isinstance(handler, logging.FileHandler)
    logger.handlers = [handler]
    for _ in range(3):
        logger.info("x")
    # What could not be written is still in the stream's buffer.
    with suppress(OSError):
        handler.stream.close()
    handler.stream = None  # type: ignore[assignment]
    said = capsys.readouterr().err
    assert said == "warning: log file /dev/full: No space left on device\n"


def test_a_log_outlives_a_closed_standard_error(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logger.handlers = [log_handler(tmp_path / "x.log")]
    monkeypatch.setattr(sys, "stderr", None)
    logger.info("%d", "no number")


def test_the_coordinators_journal_takes_either_format(tmp_path: Path) -> None:
    names = ("flwr", "uvicorn", "alembic", "sqlalchemy", "httpx", "httpcore", "asyncio", "crossrec")
    before = {n: (x := logging.getLogger(n), x.handlers, x.propagate, x.level) for n in names}
    try:
        keep_journal(tmp_path / "plain.log")
        logging.getLogger("crossrec.coordinator").info("one")
        keep_journal(tmp_path / "json.log", "json")
        logging.getLogger("crossrec.coordinator").info("two")
        logging.getLogger("uvicorn.error").info("not worth it")
        logging.getLogger("uvicorn.error").error("three")
        logging.getLogger("crossrec").handlers[0].close()
    finally:
        for logger, handlers, propagate, level in before.values():
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
    assert (tmp_path / "plain.log").read_text().endswith("INFO crossrec.coordinator: one\n")
    lines = [json.loads(line) for line in (tmp_path / "json.log").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["two", "three"]
