"""The federation's folder at the coordinator: its files, and the settings that its operator edits.

federation.toml          coordinator, privacy and plan, as the operator wants them
ca.pem, ca.key           the federation's authority
server.pem, server.key   the coordinator's TLS certificate
roster.key, roster.json  signing key, signed roster
plan.json                the signed plan that platforms accept
pending/                 join requests that wait for a roster of three
invitations/             a file for each platform
audit.jsonl              who was admitted, expelled and refused
state/                   checkpoints, log file, database
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crossrec_model.config import Noise, Plan
from crossrec_model.errors import ConfigError, shown
from crossrec_model.keyfile import read_small
from crossrec_model.privacy.planning import private_plan
from crossrec_model.secagg.errors import RosterError, SecureSumError
from crossrec_model.secagg.invitation import Notice, SignedPlan
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster, SignedRoster, check_name
from server.tls import TlsFiles

SETTINGS: Final = "federation.toml"
#: As an invitation can carry it.
_HOST: Final = re.compile(r"[!-.0-?A-~]{1,253}")
#: Worked out from epsilon, so never set by hand.
_WORKED_OUT: Final = ("multiplier", "statistics_multiplier")
_COORDINATOR: Final = {"name": str, "host": str, "port": int, "listen": str, "database": str}
_ASKED: Final = {"noise": str, "epsilon": float, "delta": float}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `federation.toml` says. `host` is what platforms connect to, `listen` what is bound.

    Raises:
        ConfigError: for a value outside its bounds.
    """

    name: str
    host: str
    port: int = 9092
    listen: str = ""
    #: SQLAlchemy's URL of the database; empty: SQLite in the state folder.
    database: str = ""
    noise: Noise = "local"
    epsilon: float = 8.0
    delta: float = 1e-5
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(
                f"coordinator.port = {shown(self.port)} is outside 1 to 65535; choose 9092"
            )
        if not _HOST.fullmatch(self.host):
            raise ConfigError(
                f"coordinator.host = {shown(self.host)} is no name or address; give the one that "
                "platforms connect to, with any letters beyond ASCII as xn--…"
            )
        try:
            check_name(self.name)
        except RosterError as error:
            raise ConfigError(f"coordinator.name: {error}") from None
        for key in ("listen", "database"):
            if not getattr(self, key).isprintable():
                raise ConfigError(f"coordinator.{key} = {shown(getattr(self, key))} can't be shown")
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise ConfigError(
                f"privacy.epsilon = {self.epsilon} and delta = {self.delta} are no budget; choose e.g. "
                "8.0 and 1e-5"
            )
        if self.noise not in {"none", "local", "distributed"}:
            raise ConfigError(
                f"privacy.noise = {shown(self.noise)}; choose local, distributed or none"
            )

    @property
    def address(self) -> str:
        """HOST:PORT for platforms."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def bind(self) -> str:
        """The address to listen on: as given, else loopback for loopback and all interfaces else."""
        if self.listen:
            return self.listen
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host == "localhost"
        return "127.0.0.1" if loopback else "0.0.0.0"  # noqa: S104 - the operator named a public host

    def signed_for(self, roster: Roster) -> Plan:
        """The plan with its noise, for the platforms of this roster.

        Raises:
            ConfigError: for a budget that no noise can meet, or two platforms without noise.
        """
        if self.noise == "none":
            if len(roster.members) < FEWEST:
                raise ConfigError(f"{OF_TWO}; set privacy.noise, or admit a third")
            return self.plan
        honest = roster.honest(self.plan.aggregation.colluding_share)
        return private_plan(
            self.plan, noise=self.noise, epsilon=self.epsilon, delta=self.delta, honest=honest
        )

    def to_toml(self) -> str:
        """The file, with a word on what its operator may want to change."""
        plan = json.loads(self.plan.to_json())
        privacy = {k: v for k, v in plan.pop("privacy").items() if k not in _WORKED_OUT}
        privacy |= {"noise": self.noise, "epsilon": self.epsilon, "delta": self.delta}
        seed = plan.pop("seed")
        lines = [
            "# The federation as its operator wants it. After a change, sign the new plan with",
            "#     python -m server plan --federation FOLDER",
            "# and every platform is asked before it follows it.",
            f"seed = {seed}",
            "",
            "[coordinator]",
            f"name = {_written(self.name)}",
            f"host = {_written(self.host)}  # what platforms connect to",
            f"port = {self.port}",
            f"listen = {_written(self.listen)}  # empty: loopback, or all interfaces for another host",
            f"database = {_written(self.database)}  # empty: SQLite; or postgresql+psycopg://…",
            "",
            "# The most that a run may cost each user; its noise is worked out from this.",
            "[privacy]",
            *_assignments(privacy),
        ]
        for section in ("federation", "model", "training", "aggregation"):
            lines += ["", f"[{section}]", *_assignments(plan[section])]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Read the file.

        Raises:
            ConfigError: for anything unknown, missing or outside its bounds.
        """
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            # ValueError: no TOML, or a number of more digits than Python reads.
            raise ConfigError(f"{SETTINGS} is no TOML: {error}") from None
        own = document.pop("coordinator", {})
        privacy = document.pop("privacy", {})
        if not isinstance(own, dict) or not isinstance(privacy, dict):
            raise ConfigError(f"{SETTINGS}: coordinator and privacy must be tables")
        for key in _WORKED_OUT:
            if key in privacy:
                raise ConfigError(f"privacy.{key} is worked out from epsilon; leave it out")
        asked = {k: privacy.pop(k) for k in ("noise", "epsilon", "delta") if k in privacy}
        plan = Plan.from_document(document | {"privacy": privacy})
        values = _typed("coordinator", own, _COORDINATOR) | _typed("privacy", asked, _ASKED)
        for key in ("name", "host"):
            if key not in values:
                raise ConfigError(f"{SETTINGS}: coordinator.{key} is missing; set it")
        return cls(plan=plan, **values)


def _typed(table: str, given: dict[str, Any], kinds: dict[str, type]) -> dict[str, Any]:
    """The values, each of its type; a whole number will do for a float."""
    values = {}
    for key, value in given.items():
        kind = kinds.get(key)
        if kind is float and type(value) is int and abs(value) < 1 << 64:
            value = float(value)
        if kind is None or type(value) is not kind:
            raise ConfigError(
                f"{SETTINGS}: {table}.{key[:80]} = {shown(value)} is unknown or of another type; "
                f"known there: {', '.join(kinds)}"
            )
        values[key] = value
    return values


def _assignments(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {_written(value)}" for key, value in table.items()]


def _written(value: object) -> str:
    """A value in TOML: JSON's printable strings, finite numbers and arrays are TOML's."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class FederationFolder:
    """The files of a federation at its coordinator."""

    path: Path

    @property
    def tls(self) -> TlsFiles:
        """Authority and certificate."""
        return TlsFiles.in_folder(self.path)

    @property
    def state(self) -> Path:
        """The coordinator's state folder."""
        return self.path / "state"

    def settings(self) -> Settings:
        """Read `federation.toml`; raises ConfigError, naming the command that makes it."""
        path = self.path / SETTINGS
        try:
            text = read_small(path).decode("utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist; make the federation with: python -m server init --out "
                f"{self.path} --name NAME --host HOST"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"{path} can't be read: {reason}; check it, and who owns it"
            ) from None
        return Settings.from_toml(text)

    def roster(self) -> SignedRoster | None:
        """Read the signed roster, of two platforms too; None if none was signed yet.

        Raises:
            ConfigError: if it is damaged.
        """
        found = self._read("roster.json")
        try:
            return None if found is None else SignedRoster.from_json(found, allow_two=True)
        except SecureSumError as error:
            raise ConfigError(f"{self.path / 'roster.json'} can't be used ({error})") from None

    def plan(self) -> SignedPlan | None:
        """Read the signed plan; None if none was signed yet. Raises ConfigError if it is damaged."""
        found = self._read("plan.json")
        try:
            return None if found is None else SignedPlan.from_json(found)
        except SecureSumError as error:
            raise ConfigError(f"{self.path / 'plan.json'} can't be used ({error})") from None

    def notice(self) -> Notice:
        """Roster and plan; raises ConfigError if there are none, saying what to do first."""
        roster, plan = self.roster(), self.plan()
        if roster is None or plan is None:
            raise ConfigError(
                f"no platform was admitted yet; collect their join requests, then: python -m server "
                f"admit --federation {self.path} ID.join …"
            )
        try:
            return Notice(roster, plan)
        except SecureSumError as error:
            raise ConfigError(f"plan.json and roster.json don't belong together: {error}") from None

    def _read(self, name: str) -> bytes | None:
        try:
            return read_small(self.path / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.path / name} can't be read: {error.strerror}") from None
