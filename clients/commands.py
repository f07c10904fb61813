"""A platform's commands beside taking part: init, data, keys, privacy, recommend, link, profiles, serve."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clients.options import Parser, add_budget_options, add_data_options, add_place, check_id
from crossrec_model.errors import ConfigError

if TYPE_CHECKING:
    from clients.participation import Settings

PROGRAM: Final = "python -m clients.platform"


def _init(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} init",
        description="Make the platform's folder and keys, and the request to join a federation.",
    )
    add_place(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the request (default: ID.join)")
    parser.add_argument(
        "--rotate",
        action="store_true",
        help="make a new identity in place of the present one, which is put aside",
    )
    options = parser.parse_args(arguments)
    check_id(options.id)
    from clients.keys import check_card_place, make_identity, put_identity_aside, write_card
    from crossrec_model.randomness import SystemRandomness

    folder: Path = options.state / options.id
    request = options.out or Path(f"{options.id}.join")
    check_card_place(request, options.id)
    if options.rotate:
        print(f"the present identity was put aside to {put_identity_aside(folder)}")
    key, new = make_identity(folder, SystemRandomness())
    for place in (folder / f"{options.id}.join", request):
        write_card(place, options.id, key)
    print(f"identity of {options.id}: {key.public.fingerprint}{' (new)' if new else ''}")
    print(f"send {request} to the coordinator's operator and compare the fingerprint by phone;")
    print(
        f"with the invitation that comes back: {PROGRAM} --id {options.id} --invitation FILE --data …"
    )
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    from clients.doctor import main

    return main(arguments)


def _terms(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} terms",
        description="Show the roster and plan that this platform has accepted, in plain words.",
    )
    add_place(parser)
    add_budget_options(parser)
    options = parser.parse_args(arguments)
    check_id(options.id)
    from clients.standing import accepted_terms

    print("\n".join(accepted_terms(settings_of(options))))
    return 0


def _data(arguments: Sequence[str]) -> int:
    parser = Parser(prog=f"{PROGRAM} data", description="Only prepare the data and say how.")
    add_data_options(parser)
    settings = settings_of(parser.parse_args(arguments))
    from clients.participation import prepare_data

    with settings.folder.held():
        prepare_data(settings, print)
    return 0


def _keys(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} keys",
        description="Make the platform's identity if there is none, and write its public card.",
    )
    add_place(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the card (default: ID.platform beside the key)"
    )
    options = parser.parse_args(arguments)
    check_id(options.id)
    from clients.keys import check_card_place, make_identity, write_card
    from crossrec_model.randomness import SystemRandomness

    folder: Path = options.state / options.id
    if options.out is not None:
        check_card_place(options.out, options.id)
    key, new = make_identity(folder, SystemRandomness())
    card = options.out or folder / f"{options.id}.platform"
    write_card(card, options.id, key)
    print(f"identity of {options.id}: {key.public.fingerprint}{' (new)' if new else ''}")
    print(f"send {card} to the coordinator's operator and compare the fingerprint by phone")
    return 0


def _privacy(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} privacy",
        description="Show what was spent of the users' privacy, on what, and what that means.",
    )
    add = parser.add_argument
    add_place(parser)
    add("--delta", type=float, help="default: of the last charge")
    add("--epsilon", type=float, help="a run's budget (default: of the last charge)")
    add("--life-epsilon", type=float, help="all runs' budget (default: of the last charge)")
    add(
        "--platforms",
        type=int,
        default=1,
        metavar="P",
        help="also for somebody who is a user of P platforms",
    )
    add("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    check_id(options.id)
    from clients.spending import read_spending
    from crossrec_model.privacy.ledger import LEDGER

    spending = read_spending(
        options.state / options.id / LEDGER,
        options.id,
        delta=options.delta,
        epsilon=options.epsilon,
        life_epsilon=options.life_epsilon,
        platforms=options.platforms,
    )
    print(spending.to_json() if options.json else "\n".join(spending.lines()))
    return 0


def _recommend(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} recommend", description="Recommend from the trained model on disk."
    )
    add = parser.add_argument
    add_place(parser)
    add("--user", required=True, help="the user's id; an unknown one gets the cold-start list")
    add("--k", type=int, default=10, help="length of the list (default %(default)s)")
    add("--new-only", action="store_true", help="only items that the user has not had")
    add("--json", action="store_true", help="print JSON")
    add("--device", default="cpu", help="cpu, cuda or auto (default %(default)s)")
    options = parser.parse_args(arguments)
    check_id(options.id)
    if options.k < 1:
        raise ConfigError(f"--k is {options.k}; ask for at least 1 item")
    from clients.linking.folder import LinkageFolder
    from clients.participation import device_named
    from clients.recommend import Recommender
    from clients.state import PlatformFolder

    folder = PlatformFolder(options.state / options.id)
    links = LinkageFolder(folder.path).linked_users()
    recommender = Recommender(folder, options.id, device_named(options.device), links=links or None)
    found = recommender.recommend(options.user, k=options.k, new_only=options.new_only)
    print(found.to_json() if options.json else "\n".join(found.lines()))
    return 0


def _link(arguments: Sequence[str]) -> int:
    from clients.linking.commands import link

    return link(arguments)


def _unlink(arguments: Sequence[str]) -> int:
    from clients.linking.commands import unlink

    return unlink(arguments)


def _links(arguments: Sequence[str]) -> int:
    from clients.linking.commands import links

    return links(arguments)


def _profiles(arguments: Sequence[str]) -> int:
    from clients.linking.profile_command import carry_profiles

    return carry_profiles(arguments)


def _serve(arguments: Sequence[str]) -> int:
    from clients.serving.command import serve

    return serve(arguments)


def _api_keys(arguments: Sequence[str]) -> int:
    from clients.serving.command import api_keys

    return api_keys(arguments)


def settings_of(options: argparse.Namespace) -> Settings:
    """What an operator's options say; raises ConfigError for a value outside its bounds."""
    check_id(options.id)
    given: dict[str, Any] = vars(options)
    names = (
        *("device", "threads", "max_bad", "min_users", "validation_weeks", "test_weeks"),
        *("roster", "accept_roster", "allow_two", "colluding_share", "new_run", "yes", "signer"),
        *("epsilon", "delta", "life_epsilon", "no_privacy", "own_network", "data_end"),
    )
    from clients.participation import Settings, folder_of

    return Settings(
        platform=options.id,
        data=given.get("data", ""),
        folder=folder_of(options.state, options.id),
        **{name: given[name] for name in names if name in given},
    )


#: By name; each prints and returns an exit code.
COMMANDS: Final[dict[str, Callable[[Sequence[str]], int]]] = {
    "init": _init,
    "doctor": _doctor,
    "data": _data,
    "keys": _keys,
    "terms": _terms,
    "privacy": _privacy,
    "recommend": _recommend,
    "link": _link,
    "unlink": _unlink,
    "links": _links,
    "profiles": _profiles,
    "serve": _serve,
    "api-keys": _api_keys,
}
