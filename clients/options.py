"""The options of a platform's commands, and how a mistake in them is told."""

from __future__ import annotations

import argparse
import re
from datetime import date
from pathlib import Path
from typing import Final, NoReturn

from crossrec_model.errors import ConfigError

DEFAULT_STATE: Final = Path("crossrec-state")
#: Same as on the wire; repeated here so that a wrong id is told before anything is loaded.
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Parser(argparse.ArgumentParser):
    """Reports a mistake as everything else does: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Which platform, and where its folder is."""
    parser.add_argument("--id", required=True, help="the platform's id")
    parser.add_argument(
        "--state",
        type=Path,
        default=DEFAULT_STATE,
        help="folder that holds a folder a platform (default %(default)s)",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Where the rows come from, and which are accepted."""
    add = parser.add_argument
    add_place(parser)
    add("--data", required=True, help="complete-journey, a folder, or a .toml file with [sql]")
    add("--max-bad", type=float, default=0.01, help="accepted share of bad rows (%(default)s)")
    add("--min-users", type=int, default=50, help="fewest users (default %(default)s)")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What the operator decides about taking part."""
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or auto (default %(default)s)")
    add("--threads", type=int, default=1, help="threads of training (default %(default)s)")
    add(
        "--roster", type=Path, help="the federation's roster.json, to pin (default: the pinned one)"
    )
    add(
        "--accept-roster",
        action="store_true",
        help="take a newer roster in place of the pinned one",
    )
    add("--allow-two", action="store_true", help="take part in a federation of two, too")
    add("--colluding-share", type=float, default=1 / 3, help="least share to withstand (1/3)")
    add(
        "--new-run",
        action="store_true",
        help="take part in a new run though the last is unfinished",
    )
    add_budget_options(parser)
    add("--no-privacy", action="store_true", help="also follow plans without differential privacy")
    add("--data-end", type=day, metavar="DAY", help="the data's last day, YYYY-MM-DD")
    add("--yes", action="store_true", help="accept a changed roster or plan without asking")
    add("--signer", metavar="FINGERPRINT", help="refuse an invitation that another key signed")
    add("--own-network", action="store_true", help="train a network of your own too")
    add("--validation-weeks", type=float, default=8.0, help="from so long before the end (8)")
    add("--test-weeks", type=float, default=4.0, help="left for testing at the end (4)")


def add_budget_options(parser: argparse.ArgumentParser) -> None:
    """What a user's privacy may cost."""
    add = parser.add_argument
    add("--epsilon", type=float, default=8.0, help="most a run may cost a user (8)")
    add("--delta", type=float, default=1e-5, help="at this delta (1e-5)")
    add("--life-epsilon", type=float, default=24.0, help="most all runs may cost a user (24)")


def day(text: str) -> date:
    """Read a day like 2026-01-31."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day like 2026-01-31") from None


def check_id(platform: str) -> None:
    """Raise ConfigError for an id that no message can carry."""
    if not _ID.fullmatch(platform):
        raise ConfigError(
            f"platform id {platform!r} is not 1 to 64 letters, digits, dots, dashes or "
            "underscores that start with a letter or digit; choose another --id"
        )
