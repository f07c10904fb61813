"""What onboarding leaves in folders, as far as a doctor reads it on either side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.keyfile import read_small
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.identity import Card, PublicIdentity
from crossrec_model.secagg.invitation import Notice, SignedPlan

PLAN: Final = "plan.json"
ADDRESS: Final = "address"
CA: Final = "ca.pem"
_MOST_ADDRESS: Final = 300


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Of the roster and plan in use; None where there is none, or nobody says."""

    roster: int | None = None
    plan: int | None = None


def read_plan(path: Path, signer: PublicIdentity) -> SignedPlan | None:
    """Read a signed plan; None if there is none.

    Raises:
        ConfigError: if it can't be read, is damaged, or is not signed by `signer`.
    """
    try:
        plan = SignedPlan.from_json(read_small(path))
        plan.verify(signer)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; check who owns it") from None
    except (CrossrecError, RecursionError) as error:
        raise ConfigError(
            f"{path} can't be trusted ({error}); get it anew from the coordinator's operator"
        ) from None
    return plan


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


def told_versions(notice: bytes | None) -> Versions:
    """What a coordinator's notice says of its roster and plan, if anything that can be trusted."""
    try:
        found = None if notice is None else Notice.from_json(notice)
    except (SecureSumError, RecursionError):
        found = None
    if found is None:
        return Versions()
    return Versions(roster=found.roster.roster.version, plan=found.plan.version)
