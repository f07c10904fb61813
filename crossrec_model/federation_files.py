"""What onboarding leaves in folders, as far as a doctor reads it; each format in one function.

federation.toml   the operator's settings, with at least name, host and port
plan.json         a signed plan: canonical JSON, signed for the purpose "plan" by the roster's signer
ID.join           a platform's join request: its card
address           where the coordinator is, HOST:PORT
/health           may tell the versions that the coordinator uses
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.keyfile import read_small
from crossrec_model.secagg.identity import (
    Card,
    PublicIdentity,
    canonical,
    check_exact,
    fields,
    parse,
    signature_of,
)

SETTINGS: Final = "federation.toml"
PLAN: Final = "plan.json"
ADDRESS: Final = "address"
CA: Final = "ca.pem"
PORT: Final = 9092
#: What a plan's signature is for.
PURPOSE: Final = "plan"
_SIGNED: Final = {"format": int, "plan": dict, "signature": str}
_PLAN: Final = {"federation": str, "plan": dict, "signer": str, "version": int}
_MOST_ADDRESS: Final = 300


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """What the operator wrote: the federation's name, and the address that platforms are given."""

    name: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class VersionedPlan:
    """A plan whose signature holds, of a federation, in one version."""

    federation: str
    version: int
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Of the roster and plan in use; None where there is none, or nobody says."""

    roster: int | None = None
    plan: int | None = None


def read_settings(path: Path) -> FederationSettings:
    """Read federation.toml.

    Raises:
        ConfigError: if it can't be read, or lacks a name, host or port.
    """
    try:
        document: dict[str, Any] = tomllib.loads(read_small(path).decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; make it with: python -m server init") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; check who owns it") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML ({error}); correct it") from None
    name, host, port = (document.get(k) for k in ("name", "host", "port"))
    for key, value in (("name", name), ("host", host)):
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f'{path}: {key} = {value!r} is no text; write {key} = "…"')
    port = PORT if port is None else port
    if type(port) is not int or not 0 < port < 65536:
        raise ConfigError(f"{path}: port = {port!r} is outside 1 to 65535; write e.g. {PORT}")
    return FederationSettings(name=str(name), host=str(host), port=port)


def read_plan(path: Path, signer: PublicIdentity) -> VersionedPlan | None:
    """Read a signed plan; None if there is none.

    Raises:
        ConfigError: if it can't be read, is damaged, or is not signed by `signer`.
    """
    try:
        data = read_small(path)
        found = fields(parse(data, "it"), "it", _SIGNED)
        content = fields(found["plan"], "it", _PLAN)
        signed = PublicIdentity.from_hex(content["signer"])
        if signed != signer:
            raise ConfigError(
                f"it is signed by {signed.fingerprint}, the roster by {signer.fingerprint}"
            )
        signer.verify(PURPOSE, canonical(content), signature_of(found["signature"], "it"))
        check_exact(canonical(found), data, "it")
        return VersionedPlan(
            federation=content["federation"],
            version=content["version"],
            plan=Plan.from_document(content["plan"]),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; check who owns it") from None
    except CrossrecError as error:
        raise ConfigError(
            f"{path} can't be trusted ({error}); get it anew from the coordinator's operator"
        ) from None


def read_join(path: Path) -> Card:
    """Read a join request; raises OSError, or SecureSumError if it is damaged."""
    return Card.from_json(read_small(path))


def read_address(folder: Path) -> str | None:
    """The coordinator's address that an invitation gave, None if there is none; raises OSError."""
    try:
        data = read_small(folder / ADDRESS, _MOST_ADDRESS)
    except FileNotFoundError:
        return None
    return data.decode("utf-8", "replace").strip()


def told_versions(health: bytes) -> Versions:
    """What a coordinator's answer to /health says of its roster and plan, if anything."""
    try:
        document = json.loads(health)
    except (ValueError, RecursionError):
        return Versions()
    known = document if isinstance(document, dict) else {}
    told = {name: known.get(name) for name in ("roster", "plan")}
    return Versions(**{name: v if type(v) is int else None for name, v in told.items()})
