"""The command `doctor` of the coordinator: everything that could keep it from running, each in a line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from crossrec_model.checkup import Check, Finding, examine, fail, wants_colour
from crossrec_model.checkup_machine import Clock, libraries
from crossrec_model.errors import ConfigError, CrossrecError

PROGRAM: Final = "python -m server doctor"


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as everything else does: one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str], *, now: Clock = lambda: datetime.now(UTC)) -> int:
    """Look at everything and print it.

    Returns:
        0 if nothing failed, 1 if anything did, 2 for a mistake on the command line.
    """
    try:
        options = _parser().parse_args(arguments)
    except CrossrecError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    report = examine(_checks(options.federation, now))
    text = report.lines(colour=wants_colour(sys.stdout))
    print(report.to_json() if options.json else "\n".join(text), flush=True)
    return report.exit_code


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        description="Look at everything that could keep the coordinator from running, and say what to "
        "do about it. Changes nothing.",
    )
    add = parser.add_argument
    add("--federation", type=Path, default=Path("federation"), help="its folder (%(default)s)")
    add("--json", action="store_true", help="print JSON")
    return parser


def _checks(folder: Path, now: Clock) -> list[Check]:
    """All checks, in the order in which they are told."""
    from server.checks import papers, place

    machine = [Check("libraries", libraries)]
    if not folder.is_dir():
        return [*machine, Check("folder", partial(_no_folder, folder))]
    return [
        *machine,
        Check("folder", partial(place.files, folder)),
        Check("settings", partial(papers.settings, folder)),
        Check("certificates", partial(papers.certificates, folder, now)),
        Check("roster", partial(papers.roster, folder)),
        Check("plan", partial(papers.plan, folder)),
        Check("port", partial(place.port, folder)),
        Check("checkpoints", partial(place.checkpoints, folder)),
        Check("disk", partial(place.room, folder)),
        Check("clock", partial(place.clock, folder, now)),
        *(
            Check(what, partial(place.records, what, folder, module))
            for what, module in place.RECORDS.items()
        ),
    ]


def _no_folder(folder: Path) -> Iterator[Finding]:
    found = "is no folder" if os.path.lexists(folder) else "does not exist"
    remedy = f"make it: python -m server init --out {folder} --name NAME --host HOST"
    yield fail("folder", f"{folder} {found}", remedy)
