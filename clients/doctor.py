"""The command `doctor` of a platform: everything that could keep it from taking part, each in a line."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clients.options import Parser, add_place, add_training_options, check_id
from crossrec_model.checkup import Check, Finding, examine, fail, ok, refused, wants_colour, warn
from crossrec_model.checkup_machine import Clock, disk, libraries, size_of
from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.federation_files import CA, Versions, read_address

if TYPE_CHECKING:
    from crossrec_model.config import Plan
    from crossrec_model.privacy.events import Budget

PROGRAM: Final = "python -m clients.platform doctor"
#: What a platform's files take where nothing tells: prepared data of some ten million rows.
_UNKNOWN_DATA: Final = 256 << 20
_LITTLE_MEMORY: Final = 1 << 30


def main(arguments: Sequence[str], *, now: Clock = lambda: datetime.now(UTC)) -> int:
    """Look at everything and print it.

    Returns:
        0 if nothing failed, 1 if anything did, 2 for a mistake on the command line.
    """
    try:
        options = _parser().parse_args(arguments)
        check_id(options.id)
        checks = _checks(options, now)
    except CrossrecError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    report = examine(checks)
    text = report.lines(colour=wants_colour(sys.stdout))
    print(report.to_json() if options.json else "\n".join(text), flush=True)
    return report.exit_code


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Look at everything that could keep this platform from taking part, and say what "
        "to do about it. Takes the options of taking part; changes nothing.",
    )
    add_place(parser)
    add = parser.add_argument
    add("--data", help="also read the first rows: complete-journey, a folder, or a .toml file")
    add("--max-bad", type=float, default=0.01, help="accepted share of bad rows (%(default)s)")
    add_training_options(parser)
    add("--server", metavar="URL", help="the coordinator (default: as in the invitation)")
    add("--ca", type=Path, help="the coordinator's ca.pem (default: as in the invitation)")
    add("--json", action="store_true", help="print JSON")
    return parser


def _checks(options: Namespace, now: Clock) -> list[Check]:
    """All checks, in the order in which they are told; ConfigError for an option out of bounds."""
    from crossrec_model.privacy.events import Budget

    budget = Budget(epsilon=options.epsilon, delta=options.delta, life_epsilon=options.life_epsilon)
    for name in ("max_bad", "colluding_share"):
        if not 0 <= getattr(options, name) <= 1:
            shown = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise ConfigError(f"{shown} is outside [0, 1]; give a share such as 0.01")
    folder: Path = options.state / options.id
    checks = [
        Check("libraries", libraries),
        Check("device", partial(_device, options.device)),
        Check("disk", partial(_disk, folder)),
    ]
    checks += _of_folder(options, folder, budget, now)
    if options.data is not None:
        from clients.checks.rows import mapping

        checks.append(
            Check(
                "data mapping",
                partial(mapping, options.data, options.id, max_bad=options.max_bad, now=now),
            )
        )
    return checks


def _of_folder(options: Namespace, folder: Path, budget: Budget, now: Clock) -> list[Check]:
    """What needs the platform's folder, and the way to the coordinator."""
    from clients.checks import budget as budgets
    from clients.checks import folder as folders
    from clients.state import PlatformFolder

    if not folder.is_dir():
        checks = [Check("folder", partial(_no_folder, folder, options.id))]
        return [*checks, *_of_line(options, folder, now)] if options.server else checks
    name = options.id
    return [
        Check("folder", partial(folders.state, PlatformFolder(folder), name)),
        Check("identity", partial(folders.identity, folder, name)),
        Check(
            "roster",
            partial(
                folders.roster, folder, name, allow_two=options.allow_two, offered=options.roster
            ),
        ),
        Check(
            "plan",
            partial(
                folders.plan,
                folder,
                colluding_share=options.colluding_share,
                no_privacy=options.no_privacy,
            ),
        ),
        Check("budget", partial(budgets.left, folder, budget)),
        Check("data end", partial(budgets.data_end, folder, options.data, options.data_end)),
        *_of_line(options, folder, now),
    ]


def _of_line(options: Namespace, folder: Path, now: Clock) -> list[Check]:
    from clients.checks.line import authority, line

    ca: Path | None = options.ca or folder / CA
    if not options.ca and not os.path.lexists(folder / CA):
        ca = None

    def way() -> Iterable[Finding]:
        address = options.server or read_address(folder)
        return line(
            address,
            ca,
            pinned=_pinned(folder),
            now=now,
            introduction=_introduction(folder, options.id, now),
        )

    return [Check("certificates", partial(authority, ca, now)), Check("address", way)]


def _no_folder(folder: Path, platform: str) -> Iterator[Finding]:
    found = "is no folder" if os.path.lexists(folder) else "does not exist"
    remedy = f"make it: python -m clients.platform init --id {platform}, or give another --state"
    yield fail("folder", f"{folder} {found}", remedy)


def _pinned(folder: Path) -> Versions:
    from clients.checks.folder import accepted_plan, trusted_roster

    roster, plan = trusted_roster(folder), accepted_plan(folder)
    return Versions(
        roster=None if roster is None else roster.version,
        plan=None if plan is None else plan.version,
    )


def _introduction(folder: Path, platform: str, now: Clock) -> Callable[[], dict[str, str]] | None:
    """What makes the headers that show who we are; None without a key and a roster."""
    from clients.checks.folder import trusted_roster
    from clients.keys import load_identity
    from clients.passport import Passport

    listed = trusted_roster(folder)
    if listed is None:
        return None
    try:
        identity = load_identity(folder)
    except CrossrecError:
        return None
    passport = Passport(
        platform=platform,
        identity=identity,
        roster=lambda: listed,
        clock=lambda: now().timestamp(),
    )
    return passport.introduction


def _disk(folder: Path) -> Iterator[Finding]:
    """Files are written whole beside the ones they replace, so twice what there is."""
    from clients.checks.folder import accepted_plan
    from clients.state import DATA, MODEL, RECEIVED

    there = size_of(*(folder / name for name in (DATA, MODEL, RECEIVED)))
    accepted = accepted_plan(folder)
    vectors = 0 if accepted is None else 3 * _vector_bytes(accepted.plan)
    yield disk(folder, max(2 * there, vectors + _UNKNOWN_DATA), "data and models")


def _vector_bytes(plan: Plan) -> int:
    from crossrec_model.parameters import Layout

    return 4 * Layout(plan.model).size


def _device(name: str) -> Iterator[Finding]:
    """Whether the device that is asked for is there, with memory to work in."""
    import torch

    from clients.participation import device_named

    try:
        device = device_named(name)
    except ConfigError as error:
        yield refused("device", error)
        return
    if device.type == "cpu":
        yield ok("device", f"cpu, {os.cpu_count()} cores")
        return
    free, total = torch.cuda.mem_get_info()
    found = f"cuda, {torch.cuda.get_device_name()}, {free >> 20:,} of {total >> 20:,} MiB free"
    if free < _LITTLE_MEMORY:
        yield warn("device", found, "end what else runs on it, or choose --device cpu")
        return
    yield ok("device", found)
