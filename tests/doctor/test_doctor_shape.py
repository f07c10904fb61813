"""The shape of a doctor: checks that don't depend on each other, and how they are told."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator

import pytest

from crossrec_model.checkup import (
    Check,
    Finding,
    Report,
    examine,
    fail,
    ok,
    refused,
    unchecked,
    wants_colour,
    warn,
)
from crossrec_model.errors import ConfigError, CrossrecError


def _good() -> Iterator[Finding]:
    yield ok("disk", "1 GiB free")


def _breaks() -> Iterator[Finding]:
    yield ok("roster", "version 3")
    raise ZeroDivisionError("secret\nsecond line")


def _refuses() -> list[Finding]:
    raise ConfigError("a = 3 is outside [0, 1]; choose a value inside")


class Panic(BaseException):
    """As a reader's, which is no Exception."""


def _panics() -> list[Finding]:
    raise Panic


def test_a_check_that_breaks_is_a_line_by_its_name_and_the_others_are_told() -> None:
    checks = [Check("roster", _breaks), Check("reader", _panics), Check("disk", _good)]
    report = examine(checks)
    assert [(f.level, f.what) for f in report.findings] == [
        ("ok", "roster"),
        ("fail", "roster"),
        ("fail", "reader"),
        ("ok", "disk"),
    ]
    broken = report.findings[1]
    assert broken.found.startswith(
        "this check broke (ZeroDivisionError: secret in test_doctor_shape.py"
    )
    assert "Traceback" not in "\n".join(report.lines())
    assert report.exit_code == 1


def test_what_can_not_be_read_is_no_fault_of_ours() -> None:
    def reads() -> list[Finding]:
        raise OSError(5, "Input/output error", "/srv/ledger")

    (finding,) = examine([Check("budget", reads)]).findings
    assert (finding.level, finding.found) == (
        "fail",
        "/srv/ledger can't be read: Input/output error",
    )


def test_an_error_of_ours_is_told_with_its_remedy() -> None:
    (finding,) = examine([Check("a", _refuses)]).findings
    assert finding == fail("a", "a = 3 is outside [0, 1]", "choose a value inside")
    assert refused("a", CrossrecError("one; two; three")) == fail("a", "one; two", "three")
    assert refused("a", CrossrecError("no remedy")) == fail("a", "no remedy", "mend this first")


def test_a_check_that_hangs_holds_up_nothing_else() -> None:
    end = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield ok("data", "opened")
        end.wait(60)

    try:
        report = examine([Check("data", hangs), Check("disk", _good)], limit_s=0.05)
    finally:
        end.set()
    assert [f.level for f in report.findings] == ["ok", "fail", "ok"]
    assert report.findings[1].found == "this check took longer than 0.05 s"


def test_a_check_that_does_not_apply_has_no_line() -> None:
    report = examine([Check("audit", list)])
    assert report.findings == ()
    assert report.lines() == ["0 ok, 0 warn, 0 fail"]
    assert (report.level, report.exit_code) == ("ok", 0)


def test_lines_are_aligned_and_counted() -> None:
    report = Report(
        (ok("certificates", "good"), warn("disk", "small", "free it"), unchecked("a", "b", "c"))
    )
    assert report.lines() == [
        "ok    certificates   good",
        "warn  disk           small; free it",
        "warn  a              not checked: b; mend c first",
        "1 ok, 2 warn, 0 fail",
    ]
    # A warning is no reason to stop a script.
    assert (report.level, report.exit_code) == ("warn", 0)
    assert Report((*report.findings, fail("x", "y", "z"))).exit_code == 1


def test_what_comes_from_outside_can_not_write_to_the_terminal() -> None:
    evil = "name\x1b[2J\nok    certificates   all good"
    (line, _) = Report((warn("TLS", evil, "\rx"),)).lines()
    assert line == "warn  TLS   name\\x1b[2J\\nok    certificates   all good; \\rx"
    (line, _) = Report((ok("data", "titel 红茶 é"),)).lines()
    assert line.endswith("红茶 é")


def test_only_the_level_is_coloured() -> None:
    report = Report((ok("a", "b"), fail("c", "d", "e")))
    assert report.lines(colour=True)[:2] == [
        "\x1b[32mok  \x1b[0m  a   b",
        "\x1b[31mfail\x1b[0m  c   d; e",
    ]


def test_json_has_all_of_it() -> None:
    document = json.loads(Report((ok("a", "b"), fail("c", "d\n", "e"))).to_json())
    assert document == {
        "format": 1,
        "level": "fail",
        "findings": [
            {"level": "ok", "what": "a", "found": "b", "remedy": ""},
            {"level": "fail", "what": "c", "found": "d\n", "remedy": "e"},
        ],
    }


@pytest.mark.parametrize(("level", "remedy"), [("ok", "x"), ("warn", ""), ("fail", "")])
def test_a_remedy_stands_where_it_is_needed_and_only_there(level: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"{level} line of 'a'"):
        Finding(level=level, what="a", found="b", remedy=remedy)  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "colour"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_only_on_a_terminal(environment: dict[str, str], colour: bool) -> None:
    assert wants_colour(Terminal(), environment) is colour
    assert not wants_colour(io.StringIO(), environment)
