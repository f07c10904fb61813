"""The coordinator's command line: `python -m server`, `python -m server certificates`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from crossrec_model.config import Plan, open_plan
from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster
from crossrec_model.wire.codec import FloatVector
from server.commands import COMMANDS, REPORTS, Parser
from server.rosters import read_roster
from server.setup import Setup, federation_setup
from server.tls import TlsFiles

InitialModel = Callable[[Plan], FloatVector]


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str], *, initial: InitialModel | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for a refusal, 128 + signal.

    `initial` makes the first model of a plan; the default is `parameters.initial_vector`.
    """
    try:
        name = arguments[0] if arguments else ""
        if report := REPORTS.get(name):
            return report(arguments[1:])
        if command := COMMANDS.get(name):
            print("\n".join(command(arguments[1:])))
            return 0
        return _serve(_parser().parse_args(arguments), initial)
    except CrossrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m server",
        description="The coordinator of a federation. Also: "
        + ", ".join(f"python -m server {name} --help" for name in (*COMMANDS, *REPORTS)),
    )
    add = parser.add_argument
    add(
        "--federation",
        type=Path,
        metavar="FOLDER",
        help="run the federation of this folder: its plan, roster, certificate and state",
    )
    add("--new-run", action="store_true", help="with --federation: begin another run")
    add("--host", help="address to listen on (default 127.0.0.1, or the federation's)")
    add("--port", type=int, help="port, 0 for any free one (default 9092, or the federation's)")
    add("--state", type=Path, help="folder for checkpoints and log file")
    add("--roster", type=Path, help="the signed roster of the platforms (needed)")
    add("--platforms", type=int, help="platforms to wait for (default: as few as may be)")
    add("--rounds", type=int, help="rounds to run (default: the plan's)")
    add("--plan", type=Path, help="the plan, a TOML file (default: the built-in plan)")
    add("--epsilon", type=float, default=8.0, help="what the run may cost a user (default 8)")
    add("--delta", type=float, default=1e-5, help="at this delta (default %(default)s)")
    add(
        "--noise",
        choices=("local", "distributed"),
        default="local",
        help="each platform's noise is enough by itself, or only the sum's (default %(default)s)",
    )
    add("--allow-two", action="store_true", help="run with two platforms only; privacy must be on")
    add("--no-privacy", action="store_true", help="no noise: updates may tell about single users")
    add("--evaluate-every", type=int, default=1, metavar="N", help="0: never (default %(default)s)")
    add("--log-format", choices=("text", "json"), default="text", help="(default %(default)s)")
    add("--metrics-port", type=int, metavar="PORT", help="Prometheus metrics on loopback")
    add("--wait", type=float, default=float("inf"), metavar="S", help="give up waiting after S s")
    add("--resume", action="store_true", help="go on from the last checkpoint in --state")
    secure = parser.add_mutually_exclusive_group()
    secure.add_argument("--tls", type=Path, help="folder with ca.pem, server.pem and server.key")
    secure.add_argument("--insecure", action="store_true", help="plain HTTP: for experiments only")
    return parser


def _serve(options: argparse.Namespace, initial: InitialModel | None) -> int:
    setup = federation_setup(options) if options.federation else _explicit_setup(options)
    try:
        with _stoppable():
            return _coordinate(options, setup, initial)
    except Stopped as stopped:
        saved = any((setup.state / "checkpoints").glob("round-*.json"))
        again = "start it again to go on" if options.federation else "go on with --resume"
        hint = f"the state is saved: {again}" if saved else "nothing was begun yet"
        print(f"stopped; {hint}", flush=True)
        return 128 + stopped.number


def _explicit_setup(options: argparse.Namespace) -> Setup:
    """What to run, every part of it named on the command line."""
    if options.state is None:
        raise ConfigError("--federation is missing; make a federation with: python -m server init")
    tls = _tls(options)
    plan = Plan.from_toml(options.plan) if options.plan else None
    if options.roster is None:
        raise ConfigError(
            "--roster is missing; make it from the platforms' cards with: "
            "python -m server roster --out federation --name NAME CARD …, "
            "then add --roster federation/roster.json"
        )
    roster = read_roster(options.roster, allow_two=options.allow_two)
    return Setup(
        plan=_protected(options, plan, roster),
        roster=roster,
        tls=tls,
        state=options.state,
        host=options.host or "127.0.0.1",
        port=9092 if options.port is None else options.port,
        resume=options.resume,
    )


def _coordinate(options: argparse.Namespace, setup: Setup, initial: InitialModel | None) -> int:
    # Slow to import, so only once the options are known to be good.
    from server.checkpoint import CheckpointStore, state_folder
    from server.doorkeeper import Doorkeeper
    from server.federation import RunOptions, coordinate, starting_point
    from server.journal import keep_journal
    from server.linking import PostOffice
    from server.listener import bind, serving
    from server.metrics import Metrics, serving_metrics
    from server.progress import Together, progress_for

    roster, tls = setup.roster, setup.tls
    with ExitStack() as held:
        state = held.enter_context(state_folder(setup.state))
        listener = held.enter_context(bind(setup.host, setup.port))
        start = starting_point(
            CheckpointStore(state),
            setup.plan,
            initial=initial or _first_model,
            resume=setup.resume,
            rounds=options.rounds,
        )
        threshold = roster.threshold(start.plan.aggregation.colluding_share)
        least = max(start.plan.federation.min_platforms, threshold)
        platforms = least if options.platforms is None else options.platforms
        run = RunOptions(
            platforms=platforms, evaluate_every=options.evaluate_every, wait_s=options.wait
        )
        from server.flower import Link

        keep_journal(state / "coordinator.log", options.log_format)
        metrics = Metrics()
        if options.metrics_port is not None:
            port = held.enter_context(serving_metrics(metrics, options.metrics_port))
            print(f"metrics on http://127.0.0.1:{port}/metrics", flush=True)
        refused = held.enter_context(setup.refusals(metrics))
        post = PostOffice(lambda: setup.current_roster().platforms, setup.linkages())
        link = Link(Doorkeeper(setup.current_roster, audit=refused), setup.notice, post)
        with serving(link.application, listener, tls), link.courier() as courier:
            scheme, port = ("https" if tls else "http"), listener.getsockname()[1]
            print(f"coordinator on {scheme}://{setup.host}:{port}", flush=True)
            metrics.started(start.round, start.plan.federation.rounds)
            try:
                end = coordinate(
                    courier,
                    state,
                    start,
                    run,
                    roster,
                    database=setup.database,
                    progress=Together(progress_for(format=options.log_format), metrics),
                )
            finally:
                metrics.ended()
    print(f"finished after round {end.round}; the model is in {state / 'checkpoints'}", flush=True)
    return 0


def _protected(options: argparse.Namespace, plan: Plan | None, roster: Roster) -> Plan | None:
    """The plan of a new run with noise for its budget, unless it says itself or none is wanted.

    On --resume without a plan, the run's own goes on.
    """
    if plan is None and options.resume:
        return None
    from server.federation import with_rounds

    plan = with_rounds(plan or (open_plan() if options.no_privacy else Plan()), options.rounds)
    if len(roster.members) < FEWEST:
        if options.no_privacy:
            raise ConfigError(f"{OF_TWO}; leave out --no-privacy, or list three platforms")
        print(f"warning: {OF_TWO}", flush=True)
        plan = replace(plan, federation=replace(plan.federation, min_platforms=2))
    if options.no_privacy:
        if plan.privacy.on:
            raise ConfigError("the plan has noise and --no-privacy is given; leave out one of them")
        print(
            "warning: no differential privacy, the model may tell about single users; "
            "platforms must accept this with --no-privacy",
            flush=True,
        )
        return plan
    if plan.privacy.on:
        return plan
    plan.check_rounds()
    from crossrec_model.privacy.planning import private_plan

    plan = private_plan(
        plan,
        noise=options.noise,
        epsilon=options.epsilon,
        delta=options.delta,
        honest=roster.honest(plan.aggregation.colluding_share),
    )
    privacy = plan.privacy
    print(
        f"each user's privacy: epsilon {privacy.epsilon:g} at delta {privacy.delta:g}, "
        f"{privacy.noise} noise of {privacy.multiplier:.3g} x the clip",
        flush=True,
    )
    return plan


def _first_model(plan: Plan) -> FloatVector:
    """The network's initial vector; ConfigError for a plan too short to train it."""
    plan.check_rounds()
    from crossrec_model.parameters import initial_vector

    return initial_vector(plan)


def _tls(options: argparse.Namespace) -> TlsFiles | None:
    if options.insecure:
        print("warning: plain HTTP, anyone on the way can read and change all messages", flush=True)
        return None
    if options.tls is None:
        raise ConfigError(
            "--tls is missing; make the files with: "
            "python -m server certificates --out tls --host NAME, then add --tls tls"
        )
    files = TlsFiles.in_folder(options.tls)
    files.check()
    return files


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Stopped` while the context lasts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal while we clean up would only lose what is being saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
