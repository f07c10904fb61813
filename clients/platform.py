"""The platform's command line: take part in a federation, prepare data, recommend."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from clients.commands import COMMANDS, PROGRAM, settings_of
from clients.options import Parser, add_data_options, add_training_options
from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.journal import LogFormat, log_handler

if TYPE_CHECKING:
    import torch

    from clients.connection import Handler

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
    # Everything that is written is for the operator's eyes only.
    before = os.umask(0o077)
    try:
        with _stoppable():
            if arguments and arguments[0] in COMMANDS:
                return COMMANDS[arguments[0]](arguments[1:])
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
    chosen = settings_of(parser.parse_args(arguments))
    from clients.participation import Participation, prepare_data
    from clients.progress import PlainProgress
    from clients.standing import guard_on_disk, sealer_on_disk

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
        "Also: " + ", ".join(f"{PROGRAM} {name} --help" for name in COMMANDS),
    )
    add_data_options(parser)
    add_training_options(parser)
    add = parser.add_argument
    add("--invitation", type=Path, metavar="FILE", help="of the coordinator's operator, once")
    add("--server", metavar="URL", help="the coordinator (default: the invitation's)")
    add("--ca", type=Path, help="the coordinator's ca.pem (default: the invitation's)")
    add("--connect-timeout", type=float, default=60.0, metavar="S", help="default %(default)s s")
    add("--insecure", action="store_true", help="plain HTTP: for experiments only")
    add("--log-format", choices=("text", "json"), default="text", help="(default %(default)s)")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    if not 0 < options.connect_timeout < float("inf"):
        raise ConfigError(
            f"connect timeout = {options.connect_timeout} s must be above 0 and finite; "
            "give e.g. 60"
        )
    from clients.connection import Endpoint
    from clients.participation import Participation, prepare_data
    from clients.progress import progress_for
    from clients.standing import (
        accept_invited,
        endpoint_of,
        guard_on_disk,
        look_at_notice,
        passport_on_disk,
        sealer_on_disk,
        terms_on_disk,
    )
    from clients.terms import asking

    if options.server is not None:
        # A wrong address or CA file is told before anything is made.
        Endpoint(address=options.server, ca=options.ca, insecure=options.insecure)
    with settings.folder.held(), ExitStack() as held:
        # Asked before there are bars on the terminal, and before minutes of cleaning.
        ask = asking(yes=settings.yes, note=partial(print, flush=True))
        if options.invitation is not None:
            accept_invited(settings, options.invitation, ask)
        endpoint = endpoint_of(
            settings, address=options.server, ca=options.ca, insecure=options.insecure
        )
        look_at_notice(settings, endpoint, terms_on_disk(settings, ask))
        progress = held.enter_context(progress_for(format=options.log_format))
        held.enter_context(_journal(settings.folder.path / "platform.log", options.log_format))
        # A missing key or roster is told before minutes of cleaning too.
        sealer_for = sealer_on_disk(settings, progress.note)
        guard = held.enter_context(guard_on_disk(settings))
        prepared = prepare_data(settings, progress.note)

        def serve(handle: Handler) -> None:
            from clients.flower import serve as answer_coordinator

            take = terms_on_disk(settings, asking(yes=settings.yes, note=progress.note))
            answer_coordinator(
                handle,
                address=endpoint.address,
                ca=endpoint.ca,
                insecure=endpoint.insecure,
                connect_timeout_s=options.connect_timeout,
                report=progress.note,
                passport=passport_on_disk(settings, take),
            )

        Participation(settings, prepared, progress, sealer_for, guard).run(serve)
        progress.note(
            f"the model is in {settings.folder.path}; try: {PROGRAM} recommend "
            f"--id {settings.platform} --state {options.state} --user … --k 10"
        )
    return 0


@contextmanager
def _journal(path: Path, format: LogFormat) -> Iterator[None]:
    """Send faults of ours to a file, not into the operator's progress lines."""
    logger, handler = logging.getLogger("crossrec.platform"), log_handler(path, format)
    logger.handlers = [handler]
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers = [logging.NullHandler()]
        handler.close()


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
