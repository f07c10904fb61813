"""What a doctor is on either side: checks that don't depend on each other, each told in lines.

A line is ok, warn or fail. A warning can be lived with for now; a failure keeps a run from starting or
going on. Both name the remedy. A check never changes what it looks at.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TextIO

from crossrec_model.errors import CrossrecError

Level = Literal["ok", "warn", "fail"]
FORMAT: Final = 1
#: The longest that one check may take, in seconds: a disk or database that hangs is told, too.
LIMIT_S: Final = 60.0
_COLOURS: Final[Mapping[Level, str]] = {"ok": "32", "warn": "33", "fail": "31"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it.

    Raises:
        ValueError: for a warning or failure without a remedy, or a remedy where all is well.
    """

    level: Level
    what: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.level == "ok") == bool(self.remedy):
            raise ValueError(f"{self.level} line of {self.what!r} with remedy {self.remedy!r}")


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(level="ok", what=what, found=found)


def warn(what: str, found: str, remedy: str) -> Finding:
    """It can be lived with for now."""
    return Finding(level="warn", what=what, found=found, remedy=remedy)


def fail(what: str, found: str, remedy: str) -> Finding:
    """A run can't start or go on like this."""
    return Finding(level="fail", what=what, found=found, remedy=remedy)


def refused(what: str, error: CrossrecError) -> Finding:
    """What an error says; its remedy is what stands behind its last semicolon."""
    found, _, remedy = str(error).rpartition("; ")
    return fail(what, found or remedy, remedy if found else "mend this first")


def unchecked(what: str, because: str, first: str) -> Finding:
    """Could not be looked at; `first` is what must be mended before."""
    return warn(what, f"not checked: {because}", f"mend {first} first")


@dataclass(frozen=True)
class Check:
    """Something to look at: `look` gives its lines one by one, or none where it does not apply."""

    what: str
    look: Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Report:
    """All lines of a doctor."""

    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst level of all lines."""
        found = {finding.level for finding in self.findings}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    @property
    def exit_code(self) -> int:
        """1 if anything failed, else 0."""
        return 1 if self.level == "fail" else 0

    def lines(self, *, colour: bool = False) -> list[str]:
        """Aligned lines for the terminal, the last of which counts the others."""
        width = max((len(_plain(finding.what)) for finding in self.findings), default=0)
        return [*(_line(f, width, colour) for f in self.findings), self._counts()]

    def to_json(self) -> str:
        """The same as JSON on one line."""
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"format": FORMAT, "level": self.level, "findings": findings})

    def _counts(self) -> str:
        levels = [finding.level for finding in self.findings]
        return ", ".join(f"{levels.count(level)} {level}" for level in _COLOURS)


def examine(checks: Sequence[Check], *, limit_s: float = LIMIT_S) -> Report:
    """Run every check, whatever becomes of the others.

    One that raises a CrossrecError fails with its sentence, one that raises an OSError with what can't
    be read. One that breaks, or takes longer than `limit_s` seconds, fails by its name.
    """
    return Report(tuple(finding for check in checks for finding in _looked(check, limit_s)))


def wants_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour what goes to `stream`: a terminal, and NO_COLOR is not set."""
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return stream.isatty()


def _looked(check: Check, limit_s: float) -> list[Finding]:
    found: list[Finding] = []

    def work() -> None:
        try:
            for finding in check.look():
                found.append(finding)  # noqa: PERF402 (what came before a fault stays)
        except CrossrecError as error:
            found.append(refused(check.what, error))
        except OSError as error:
            found.append(_unreadable(check.what, error))
        # A reader's panic is no Exception, and nobody else would ever hear of it here.
        except BaseException as error:
            found.append(_broken(check.what, error))

    # A thread, so that a disk or database that never answers holds up nothing but itself.
    thread = threading.Thread(target=work, name=f"check {check.what}", daemon=True)
    thread.start()
    thread.join(limit_s)
    taken = list(found)
    if thread.is_alive():
        taken.append(
            fail(
                check.what,
                f"this check took longer than {limit_s:g} s",
                "see whether a disk, a database or the network hangs, and run this again",
            )
        )
    return taken


def _unreadable(what: str, error: OSError) -> Finding:
    name = error.filename if isinstance(error.filename, str) else "something"
    found = f"{name} can't be read: {error.strerror or error or type(error).__name__}"
    return fail(what, found, "see who owns it, and whether the disk is well")


def _broken(what: str, error: BaseException) -> Finding:
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f" in {Path(trace.tb_frame.f_code.co_filename).name} line {trace.tb_lineno}"
        trace = trace.tb_next
    first = (str(error).strip().splitlines() or [""])[0]
    return fail(
        what,
        f"this check broke ({type(error).__name__}{': ' if first else ''}{first}{where})",
        "the other lines hold; report this one as a fault of crossrec",
    )


def _line(finding: Finding, width: int, colour: bool) -> str:
    level: str = finding.level.ljust(4)
    if colour:
        level = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m"
    told = "; ".join(_plain(part) for part in (finding.found, finding.remedy) if part)
    return f"{level}  {_plain(finding.what).ljust(width)}   {told}"


def _plain(text: str) -> str:
    """Without line ends and terminal codes: some of it comes from the network and from files."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
