"""`python -m simulations`: local, federated and pooled on one machine, and one honest table."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from crossrec_model.errors import ConfigError, CrossrecError

if TYPE_CHECKING:
    from simulations.experiment import Settings

DEFAULT_DATA = "complete-journey"
#: Of all private rows.
DELTA = 1e-5


def main(arguments: Sequence[str]) -> int:
    """Run the command line; 0, 2 for a refusal, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings = settings_of(arguments)
        # Slow to import, so only once the options are known to be good.
        from simulations.experiment import run

        run(settings)
    except CrossrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; prepared data stay in the work folder, no report was written")
        return 130
    return 0


def settings_of(arguments: Sequence[str]) -> Settings:
    """Read a command line; raises ConfigError for a mistake on it."""
    return _settings(_parser().parse_args(arguments), arguments)


class _OneLineParser(argparse.ArgumentParser):
    """A mistake on the command line is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(f"{message}; see python -m simulations --help")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # The same way out as Ctrl-C, which ends the children too.
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m simulations",
        description="Many platforms on one machine, through the same code as a real federation.",
    )
    add = parser.add_argument
    add(
        "--data",
        default=DEFAULT_DATA,
        help="complete-journey, or a folder with a folder a platform",
    )
    add("--platforms", nargs="+", metavar="ID", help="platforms (default: A B C, or all folders)")
    add("--plan", type=Path, help="the plan, a TOML file (default: the built-in plan)")
    add("--rounds", type=int, help="rounds (default: the plan's)")
    add("--seeds", type=int, default=3, help="experiment seeds 0, 1, … (default %(default)s)")
    add("--out", type=Path, default=Path("demo-report"), help="folder of the report")
    add("--work", type=Path, help="folder for prepared data and state (default: OUT/work)")
    add("--processes", action="store_true", help="a real server and a process a platform, over TLS")
    add("--engine", choices=("local", "ray"), default="local", help="who runs the platforms")
    add("--ray-address", help="an existing Ray cluster (default: one is started here)")
    add("--at-once", type=int, default=3, help="platforms that train at once (default %(default)s)")
    add(
        "--evaluate-every",
        type=int,
        default=4,
        metavar="N",
        help="validate every N rounds; 0: never",
    )
    add("--device", default="cpu", help="cpu, cuda or auto (default %(default)s)")
    add(
        "--epsilon",
        type=float,
        nargs="+",
        default=[],
        metavar="E",
        help="also a private federation for each epsilon",
    )
    add(
        "--noise",
        choices=("local", "distributed"),
        nargs="+",
        default=["local"],
        help="kinds of noise of the private ones (default: local)",
    )
    add("--own-network", action="store_true", help="platforms train a network of their own too")
    add(
        "--no-secure-aggregation",
        action="store_true",
        help="let the coordinator see contributions: for comparison only",
    )
    add("--figures", type=Path, help="also write the quality figures to this JSON file")
    return parser


def _settings(options: argparse.Namespace, arguments: Sequence[str]) -> Settings:
    from crossrec_model.evaluation.privacy_cost import PrivateRow
    from simulations.experiment import Settings

    if options.processes and options.engine == "ray":
        raise ConfigError("--processes and --engine ray exclude each other; leave one out")
    for name in ("seeds", "at_once"):
        if getattr(options, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}; give 1 or more"
            )
    for epsilon in options.epsilon:
        if not 0 < epsilon < float("inf"):
            raise ConfigError(f"--epsilon {epsilon:g} must be above 0 and finite; give e.g. 4")
    if options.evaluate_every < 0:
        raise ConfigError(f"--evaluate-every is {options.evaluate_every}; give 0 (never) or more")
    if options.device != "cpu" and (options.processes or options.engine == "ray"):
        raise ConfigError("--device works with platforms in this process only; leave it out")
    if options.no_secure_aggregation and options.processes:
        raise ConfigError(
            "--no-secure-aggregation works without --processes only: a real server always sums "
            "securely"
        )
    names = options.platforms or ()
    if len(set(names)) < len(names):
        raise ConfigError(f"--platforms {' '.join(names)} names one twice; name each once")
    return Settings(
        data=options.data,
        platforms=tuple(options.platforms or ()),
        plan=options.plan,
        rounds=options.rounds,
        seeds=tuple(range(options.seeds)),
        out=options.out,
        work=options.work or options.out / "work",
        engine="processes" if options.processes else options.engine,
        ray_address=options.ray_address,
        at_once=options.at_once,
        evaluate_every=options.evaluate_every,
        device=options.device,
        secure=not options.no_secure_aggregation,
        own_network=options.own_network,
        figures=options.figures,
        private=tuple(
            PrivateRow(noise=noise, epsilon=epsilon, delta=DELTA)
            for noise in options.noise
            for epsilon in options.epsilon
        ),
        command=shlex.join(["python", "-m", "simulations", *arguments]),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
