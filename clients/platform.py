"""The platform's command line: take part in a federation, prepare data, recommend."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from clients.options import (
    Parser,
    add_data_options,
    add_place,
    add_training_options,
    check_id,
)
from crossrec_model.errors import ConfigError, CrossrecError

if TYPE_CHECKING:
    import torch

    from clients.connection import Handler
    from clients.participation import Settings

PROGRAM: Final = "python -m clients.platform"
#: Folders of platforms made by `handler_from`, held until the process ends.
_HELD: Final = ExitStack()
# Before the interpreter takes its modules apart.
atexit.register(_HELD.close)


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code: 0, 2 for a mistake, 128 + signal."""
    commands = {"recommend": _recommend, "data": _data, "keys": _keys, "privacy": _privacy}
    # Everything that is written is for the operator's eyes only.
    before = os.umask(0o077)
    try:
        with _stoppable():
            if arguments and arguments[0] in commands:
                return commands[arguments[0]](arguments[1:])
            return _take_part(arguments)
    except CrossrecError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Stopped as stopped:
        print("stopped; what was received is saved: start again to go on", flush=True)
        return 128 + stopped.number
    finally:
        os.umask(before)


def device_named(name: str) -> torch.device:
    """Return the device cpu, cuda or auto; ConfigError for another, or for cuda without one."""
    from clients.participation import device_named as named

    return named(name)


def handler_from(settings: Mapping[str, str]) -> Handler:
    """A platform for a company's own Flower SuperNode, from its node configuration.

    Keys are the options' names without dashes in front: `id`, `data`, and optionally `state`,
    `roster`, `device`, `threads`, `max-bad`, `min-users`, `validation-weeks`, `test-weeks`, `epsilon`,
    `delta`, `life-epsilon`, `data-end`; an option without a value, as `no-privacy` or `allow-two`,
    takes "true".
    After it, start the command line with the same options: it trains what is private from what was saved.

    Raises:
        ConfigError: for a missing or unknown key or a value outside its bounds.
    """
    arguments = [
        word
        for name, value in settings.items()
        for word in ((f"--{name}",) if value == "true" else (f"--{name}", value))
    ]
    parser = Parser(prog="node configuration", add_help=False)
    add_data_options(parser)
    add_training_options(parser)
    chosen = _settings(parser.parse_args(arguments))
    from clients.participation import Participation, guard_on_disk, prepare_data, sealer_on_disk
    from clients.progress import PlainProgress

    progress = PlainProgress(sys.stderr)
    _HELD.enter_context(chosen.folder.held())
    sealer_for = sealer_on_disk(chosen, progress.note)
    guard = _HELD.enter_context(guard_on_disk(chosen))
    prepared = prepare_data(chosen, progress.note)
    return Participation(chosen, prepared, progress, sealer_for, guard).handler()


def _take_part(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog=PROGRAM,
        description="Take part in a federation, then train and keep the private model. "
        f"Also: {PROGRAM} keys --help, {PROGRAM} data --help, {PROGRAM} recommend --help, "
        f"{PROGRAM} privacy --help.",
    )
    add_data_options(parser)
    add_training_options(parser)
    add = parser.add_argument
    add("--server", required=True, metavar="URL", help="the coordinator, https://HOST:PORT")
    add("--ca", type=Path, help="the coordinator's ca.pem (default: the system's authorities)")
    add("--connect-timeout", type=float, default=60.0, metavar="S", help="default %(default)s s")
    add("--insecure", action="store_true", help="plain HTTP: for experiments only")
    options = parser.parse_args(arguments)
    settings = _settings(options)
    if not 0 < options.connect_timeout < float("inf"):
        raise ConfigError(
            f"connect timeout = {options.connect_timeout} s must be above 0 and finite; "
            "give e.g. 60"
        )
    from clients.connection import Endpoint

    # A wrong address or CA file is told before minutes of cleaning.
    Endpoint(address=options.server, ca=options.ca, insecure=options.insecure)
    from clients.participation import (
        Participation,
        guard_on_disk,
        passport_on_disk,
        prepare_data,
        sealer_on_disk,
    )
    from clients.progress import progress_for

    with settings.folder.held(), progress_for() as progress, ExitStack() as held:
        _keep_journal(settings.folder.path / "platform.log")
        # A missing key or roster is told before minutes of cleaning too.
        sealer_for = sealer_on_disk(settings, progress.note)
        guard = held.enter_context(guard_on_disk(settings))
        prepared = prepare_data(settings, progress.note)

        def serve(handle: Handler) -> None:
            from clients.flower import serve as answer_coordinator

            answer_coordinator(
                handle,
                address=options.server,
                ca=options.ca,
                insecure=options.insecure,
                connect_timeout_s=options.connect_timeout,
                report=progress.note,
                passport=passport_on_disk(settings),
            )

        Participation(settings, prepared, progress, sealer_for, guard).run(serve)
        progress.note(
            f"the model is in {settings.folder.path}; try: {PROGRAM} recommend "
            f"--id {settings.platform} --state {options.state} --user … --k 10"
        )
    return 0


def _data(arguments: Sequence[str]) -> int:
    parser = Parser(prog=f"{PROGRAM} data", description="Only prepare the data and say how.")
    add_data_options(parser)
    settings = _settings(parser.parse_args(arguments))
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
    from clients.recommend import Recommender
    from clients.state import PlatformFolder

    folder = PlatformFolder(options.state / options.id)
    recommender = Recommender(folder, options.id, device_named(options.device))
    found = recommender.recommend(options.user, k=options.k, new_only=options.new_only)
    print(found.to_json() if options.json else "\n".join(found.lines()))
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    check_id(options.id)
    given: dict[str, Any] = vars(options)
    names = (
        *("device", "threads", "max_bad", "min_users", "validation_weeks", "test_weeks"),
        *("roster", "accept_roster", "allow_two", "colluding_share", "new_run"),
        *("epsilon", "delta", "life_epsilon", "no_privacy", "data_end"),
    )
    from clients.participation import Settings, folder_of

    return Settings(
        platform=options.id,
        data=options.data,
        folder=folder_of(options.state, options.id),
        **{name: given[name] for name in names if name in given},
    )


def _keep_journal(path: Path) -> None:
    """Faults of ours go to a file, not into the operator's progress lines."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("crossrec.platform")
    logger.handlers = [handler]
    logger.propagate = False


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Stopped` while the context lasts."""
    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[int(number)] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for signalled, handler in before.items():
            signal.signal(signalled, handler)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal would only lose what is being cleaned up.
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
