"""The coordinator's commands beside running: found, admit, expel, sign, renew; and the older two."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError

DEFAULT_FOLDER: Final = Path("federation")


class Parser(argparse.ArgumentParser):
    """Reports a mistake as everything else does: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_federation(parser: argparse.ArgumentParser) -> None:
    """Where the federation's folder is."""
    parser.add_argument(
        "--federation",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="the federation's folder (default %(default)s)",
    )


def _init(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server init",
        description="Make a federation: authority, signing key, and federation.toml with its plan.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=DEFAULT_FOLDER, help="its folder (default %(default)s)")
    add("--name", required=True, help="the federation's name")
    add("--host", required=True, help="the name or address that platforms connect to")
    add("--port", type=int, default=9092, help="port (default %(default)s)")
    add("--plan", type=Path, help="begin with this plan, a TOML file (default: the built-in plan)")
    add("--epsilon", type=float, default=8.0, help="most that a run may cost a user (default 8)")
    add("--delta", type=float, default=1e-5, help="at this delta (default %(default)s)")
    add("--noise", choices=("local", "distributed", "none"), default="local")
    options = parser.parse_args(arguments)
    from server.folder import FederationFolder, Settings
    from server.onboarding import found

    settings = Settings(
        name=options.name,
        host=options.host,
        port=options.port,
        noise=options.noise,
        epsilon=options.epsilon,
        delta=options.delta,
        plan=Plan.from_toml(options.plan) if options.plan else Plan(),
    )
    # A name or plan that no roster can carry is told now, not at the first admission.
    Settings.from_toml(settings.to_toml())
    return found(FederationFolder(options.out), settings)


def _admit(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server admit",
        description="Put platforms on the signed roster, and write their invitations.",
    )
    add_federation(parser)
    parser.add_argument("requests", type=Path, nargs="+", metavar="JOIN", help="a file ID.join")
    parser.add_argument("--allow-two", action="store_true", help="two platforms are enough")
    options = parser.parse_args(arguments)
    from server.folder import FederationFolder
    from server.onboarding import admit

    folder = FederationFolder(options.federation)
    return admit(folder, options.requests, allow_two=options.allow_two, audit=audit_in(folder.path))


def _expel(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server expel", description="Take platforms off the signed roster."
    )
    add_federation(parser)
    parser.add_argument("platforms", nargs="+", metavar="ID", help="a platform")
    options = parser.parse_args(arguments)
    from server.folder import FederationFolder
    from server.onboarding import expel

    folder = FederationFolder(options.federation)
    return expel(folder, options.platforms, audit=audit_in(folder.path))


def _plan(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server plan",
        description="Sign the plan that federation.toml asks for now.",
    )
    add_federation(parser)
    folder_path = parser.parse_args(arguments).federation
    from server.folder import FederationFolder
    from server.onboarding import sign_plan

    return sign_plan(FederationFolder(folder_path), audit=audit_in(folder_path))


def _renew(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server renew", description="Make a new TLS certificate for the coordinator."
    )
    add_federation(parser)
    folder_path = parser.parse_args(arguments).federation
    from server.folder import FederationFolder
    from server.onboarding import renew

    return renew(FederationFolder(folder_path), audit=audit_in(folder_path))


def _status(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server status", description="Say what the coordinator's database tells."
    )
    add_federation(parser)
    folder_path = parser.parse_args(arguments).federation
    from server.federation import DATABASE
    from server.folder import FederationFolder
    from server.store import Store

    folder = FederationFolder(folder_path)
    with Store.open(folder.settings().database or folder.state / DATABASE, create=False) as store:
        return store.status()


def _audit(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server audit",
        description="Verify the chain of the audit log; its last line's digest is worth noting.",
    )
    add_federation(parser)
    folder_path = parser.parse_args(arguments).federation
    from server.audit import AUDIT, verify

    head = verify(folder_path / AUDIT).head
    return [
        f"{folder_path / AUDIT}: {head.sequence} lines, all in order; the last is {head.digest}"
    ]


def _certificates(arguments: Sequence[str]) -> list[str]:
    parser = Parser(prog="python -m server certificates")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        help="name or address of the coordinator (repeatable)",
    )
    options = parser.parse_args(arguments)
    from server.tls import make_certificates

    files = make_certificates(options.out, options.host)
    return [f"wrote {files.certificate} and {files.key}; give every platform {files.ca}"]


def _roster(arguments: Sequence[str]) -> list[str]:
    parser = Parser(
        prog="python -m server roster",
        description="List the platforms of a federation by their cards, and sign the list.",
    )
    add = parser.add_argument
    add("cards", type=Path, nargs="*", metavar="CARD", help="a platform's join request")
    add("--out", type=Path, required=True, help="folder of roster.json and its signing key")
    add("--name", help="the federation's name, needed once")
    add("--expel", action="append", default=[], metavar="ID", help="take off (repeatable)")
    add("--allow-two", action="store_true", help="sign a roster of two platforms, too")
    options = parser.parse_args(arguments)
    from server.rosters import list_platforms

    listed = list_platforms(
        options.out,
        federation=options.name,
        cards=options.cards,
        expel=options.expel,
        allow_two=options.allow_two,
    )
    return listed.lines()


def _doctor(arguments: Sequence[str]) -> int:
    from server.doctor import main

    return main(arguments)


def audit_in(folder: Path) -> Callable[[str, str], None]:
    """Return what records to the folder's audit log what an operator did, to whom."""
    from server.audit import AUDIT, AuditLog

    def record(event: str, subject: str) -> None:
        with AuditLog.open(folder / AUDIT) as log:
            log.record(event, subject=subject)

    return record


#: By name; each prints for itself and returns an exit code.
REPORTS: Final[dict[str, Callable[[Sequence[str]], int]]] = {"doctor": _doctor}
#: By name; each returns lines to print.
COMMANDS: Final[dict[str, Callable[[Sequence[str]], list[str]]]] = {
    "init": _init,
    "admit": _admit,
    "expel": _expel,
    "plan": _plan,
    "renew": _renew,
    "status": _status,
    "audit": _audit,
    "certificates": _certificates,
    "roster": _roster,
}
