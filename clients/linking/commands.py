"""The commands `link`, `unlink` and `links` of a platform."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clients.options import Parser, add_place, check_id
from crossrec_model.errors import ConfigError

if TYPE_CHECKING:
    from clients.connection import Endpoint
    from clients.linking.folder import LinkageFolder
    from crossrec_model.linkage.elements import Elements
    from crossrec_model.linkage.policy import Policy
    from crossrec_model.secagg.roster import Roster

PROGRAM: Final = "python -m clients.platform"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{PROGRAM} link",
        description="Find the users, or with --items the items, that this platform and a partner have in "
        "common. Both run this command; neither learns anything about the others.",
    )
    add = parser.add_argument
    add_place(parser)
    add("--with", dest="partner", required=True, metavar="ID", help="the partner's id")
    add("--data", type=Path, required=True, metavar="FILE", help="user_id,email,phone,consent")
    add("--items", action="store_true", help="link items; --data is then item_id,gtin")
    add("--region", default="", help="of telephone numbers without a country code, such as DE")
    add("--keep-gmail-dots", action="store_true", help="no rules of Gmail's; on both sides or none")
    add("--least", type=int, default=100, help="fewest identifiers (default %(default)s)")
    add("--most", type=int, default=4, help="linkages with one partner in a period (%(default)s)")
    add("--period-days", type=float, default=30.0, metavar="D", help="(default %(default)s)")
    add("--least-new", type=int, default=20, help="fewest new users, if any (default %(default)s)")
    add("--cores", type=int, help="cores to use (default: all)")
    add_line(parser)
    return parser


def add_line(parser: argparse.ArgumentParser) -> None:
    """How the partner is reached."""
    add = parser.add_argument
    add("--wait", type=float, default=600.0, metavar="S", help="for a silent partner (%(default)s)")
    add("--restart", action="store_true", help="give up what was interrupted and begin anew")
    add("--roster", type=Path, help="the federation's roster.json (default: the pinned one)")
    add("--server", metavar="URL", help="the coordinator (default: the invitation's)")
    add("--ca", type=Path, help="the coordinator's ca.pem (default: the invitation's)")
    add("--insecure", action="store_true", help="plain HTTP: for experiments only")


def link(arguments: Sequence[str]) -> int:
    """Run `link`: an interrupted linkage goes on where it stopped."""
    options = _parser().parse_args(arguments)
    check_id(options.id)
    check_id(options.partner)
    if not 0 < options.wait < float("inf") or not (options.cores is None or options.cores > 0):
        raise ConfigError("--wait must be above 0 and finite, and --cores at least 1")
    if not 0 < options.period_days < 100_000:
        raise ConfigError(f"--period-days is {options.period_days}; it must be above 0")
    from clients.keys import load_identity
    from clients.linking.folder import LinkageFolder
    from clients.linking.line import HttpAsk
    from clients.linking.session import Task, run_session
    from clients.passport import Passport
    from clients.progress import progress_for
    from crossrec_model.linkage.group import Cores
    from crossrec_model.linkage.intersection import Side
    from crossrec_model.linkage.links import Links, linked
    from crossrec_model.linkage.messages import Purpose

    place: Path = options.state / options.id
    roster, endpoint = pinned_roster(options, place), endpoint_of(options, place)
    folder, purpose = LinkageFolder(place), Purpose.ITEMS if options.items else Purpose.USERS
    with ExitStack() as held:
        progress = held.enter_context(progress_for())
        # Revoking meanwhile is possible: only the session is held, not the links.
        held.enter_context(folder.held(folder.session_path(options.partner, purpose).name))
        if options.restart:
            folder.clear_session(options.partner, purpose)
        identity = load_identity(place)
        ask = HttpAsk(
            endpoint,
            Passport(platform=options.id, identity=identity, roster=lambda: roster),
        )
        held.callback(ask.close)
        task = Task(
            side=Side(roster=roster, platform=options.id, key=identity),
            partner=options.partner,
            purpose=purpose,
            elements=_elements(options, folder, progress.note),
            policy=_policy(options),
            folder=folder,
            ask=ask,
            patience_s=options.wait,
            report=progress.note,
            show=lambda done, total: progress.done("link", done, total, "blocks"),
        )
        session, end = run_session(task, held.enter_context(Cores(options.cores)))
        pairs = linked(task.elements, end, _names(options))
        found = Links(partner=task.partner, purpose=purpose, session=session.id, pairs=pairs)
        with folder.held():
            folder.write_links(found)
        progress.note(
            f"{len(pairs)} {purpose.name.lower()} are linked with {task.partner}: of "
            f"{len(task.elements.digests)} identifiers here and at most {end.their_size} there"
        )
        session.settle()
    print(f"the links are in {folder.links_path(task.partner, purpose)}", flush=True)
    return 0


def unlink(arguments: Sequence[str]) -> int:
    """Run `unlink`: users revoke; what was derived of them is deleted now."""
    parser = Parser(
        prog=f"{PROGRAM} unlink",
        description="Users revoke their consent: they take part in no linkage from now on, and their "
        "links and what was derived for them are deleted here.",
    )
    add_place(parser)
    add = parser.add_argument
    add("--user", action="append", required=True, metavar="U", help="repeat for more than one")
    add("--undo", action="store_true", help="they consented anew; takes effect at the next linkage")
    options = parser.parse_args(arguments)
    check_id(options.id)
    from clients.linking.folder import LinkageFolder

    folder = LinkageFolder(options.state / options.id)
    with folder.held():
        if options.undo:
            folder.allow_again(options.user)
            print(f"{len(options.user)} may be linked again, at the next linkage", flush=True)
            return 0
        count = folder.revoke(options.user)
    print(
        f"{len(options.user)} revoked; {count} links deleted here, and left out of every linkage to come",
        flush=True,
    )
    return 0


def links(arguments: Sequence[str]) -> int:
    """Run `links`: show what is linked with whom."""
    parser = Parser(prog=f"{PROGRAM} links", description="Show what is linked with whom.")
    add_place(parser)
    options = parser.parse_args(arguments)
    check_id(options.id)
    from clients.linking.folder import LinkageFolder

    folder = LinkageFolder(options.state / options.id)
    found = folder.all_links()
    for each in found:
        print(
            f"{each.partner}: {len(each.pairs)} {each.purpose.name.lower()}, "
            f"session {each.session.hex()[:8]}, {folder.links_path(each.partner, each.purpose)}"
        )
    if not found:
        print(f"nothing is linked; link with: {PROGRAM} link --id {options.id} --with … --data …")
    print(f"{len(folder.revoked())} users have revoked", flush=True)
    return 0


def pinned_roster(options: argparse.Namespace, place: Path) -> Roster:
    """The roster that counts here; raises ConfigError if there is none."""
    from clients.keys import load_identity, load_roster, pin, read_roster

    identity = load_identity(place)
    if options.roster is not None:
        pin(place, read_roster(options.roster, allow_two=True), accept=False)
    pinned = load_roster(place)
    if pinned is None:
        raise ConfigError(
            "this platform knows no roster yet; take part with --invitation first, or give --roster"
        )
    pinned.roster.check_member(options.id, identity.public)
    return pinned.roster


def endpoint_of(options: argparse.Namespace, place: Path) -> Endpoint:
    """Where the coordinator is; raises ConfigError if that is not known."""
    from clients.connection import Endpoint
    from clients.joining import load_pinned

    pinned = load_pinned(place)
    address = options.server or (pinned.address if pinned else None)
    if address is None:
        raise ConfigError("where is the coordinator? give --server and --ca, or join first")
    ca = options.ca or (pinned.ca if pinned and not options.insecure else None)
    return Endpoint(address=address, ca=ca, insecure=options.insecure)


def _policy(options: argparse.Namespace) -> Policy:
    from crossrec_model.linkage.policy import DAY_S, Policy

    return Policy(
        least=options.least,
        most=options.most,
        period_s=max(1, int(options.period_days * DAY_S)),
        # A catalogue is about nobody.
        least_new=0 if options.items else options.least_new,
    )


def _elements(
    options: argparse.Namespace, folder: LinkageFolder, note: Callable[[str], None]
) -> Elements:
    """Read the file; say what takes part and what was left out."""
    from clients.linking.rows import read_items, read_users
    from crossrec_model.linkage.elements import articles, people
    from crossrec_model.linkage.identifiers import Rules

    if options.items:
        found = articles(read_items(options.data))
    else:
        rules = Rules(gmail=not options.keep_gmail_dots, region=options.region)
        found = people(read_users(options.data), rules, folder.revoked())
    note(f"{len(found.digests)} identifiers take part")
    for reason, count in found.left_out.items():
        note(f"left out, {reason}: {count}")
    return found


def _names(options: argparse.Namespace) -> Iterable[str]:
    from clients.linking.rows import read_items, read_users

    if options.items:
        return (row.item for row in read_items(options.data))
    return (row.user for row in read_users(options.data))
