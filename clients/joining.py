"""How a platform joins a federation and follows its changes: what is pinned, and who is asked.

    identity.key, ID.join   made by `init`; the second is for the coordinator's operator
    roster.json             the roster that this platform trusts, see `keys.pin`
    plan.json               the signed plan that it has accepted
    ca.pem, address         who vouches for the coordinator, and where it is

Nothing changes without the operator: a changed roster or plan is shown in plain words first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients.keys import load_identity, load_roster, pin, write_file
from clients.state import StateError
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.keyfile import read_small
from crossrec_model.secagg.errors import RosterError, SecureSumError
from crossrec_model.secagg.invitation import Invitation, Notice, SignedPlan
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster

PLAN: Final = "plan.json"
CA: Final = "ca.pem"
ADDRESS: Final = "address"
#: Gets lines to show and a question; True for yes. Raises ConfigError if nobody can be asked.
Ask = Callable[[list[str], str], bool]
#: Says in lines what a plan means under a roster, beside the plan accepted before.
Explain = Callable[[SignedPlan, Roster, Plan | None], list[str]]


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """Where this platform's federation is, and the plan that it follows."""

    address: str
    ca: Path
    plan: SignedPlan


def load_pinned(folder: Path) -> Pinned | None:
    """Read what an invitation left; None if there was none.

    Raises:
        StateError: if any of it is missing or damaged.
    """
    plan = load_plan(folder)
    if plan is None:
        return None
    try:
        address = read_small(folder / ADDRESS).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _incomplete(folder / ADDRESS, error) from None
    if not (folder / CA).is_file():
        raise _incomplete(folder / CA, FileNotFoundError("it is missing"))
    return Pinned(address=address, ca=folder / CA, plan=plan)


def load_plan(folder: Path) -> SignedPlan | None:
    """Read the accepted plan; None if there is none. Raises StateError if it can't be trusted."""
    roster, path = load_roster(folder), folder / PLAN
    try:
        plan = SignedPlan.from_json(read_small(path))
        if roster is None:
            raise RosterError("there is no roster beside it")
        plan.check(roster.roster)
    except FileNotFoundError:
        return None
    except (OSError, SecureSumError) as error:
        raise _incomplete(path, error) from None
    return plan


def accept_invitation(
    folder: Path,
    platform: str,
    path: Path,
    *,
    ask: Ask,
    explain: Explain,
    allow_two: bool,
    signer: str | None = None,
) -> None:
    """Pin what an invitation says, once the operator has agreed.

    Args:
        signer: the fingerprint that the operator was told by phone, where he gave it beforehand.

    Raises:
        ConfigError: for a file that is no invitation of this platform, of another signer than the one
            given, or if the operator declines.
        RosterError: for one that does not follow what is pinned, or has another key for this platform.
    """
    try:
        invitation = Invitation.from_json(read_small(path))
    except OSError as error:
        raise ConfigError(f"invitation {path} can't be read: {error.strerror}") from None
    except SecureSumError as error:
        raise ConfigError(f"invitation {path} can't be used: {error}") from None
    if invitation.platform != platform:
        raise ConfigError(
            f"invitation {path} is for platform {invitation.platform}, not {platform}; "
            "ask the coordinator's operator for yours"
        )
    if signer is not None and invitation.signer.fingerprint != signer.strip().upper():
        raise ConfigError(
            f"invitation {path} is signed by {invitation.signer.fingerprint}, not by --signer {signer}; "
            "ask the coordinator's operator by phone which is right"
        )
    roster = invitation.roster
    before = load_roster(folder)
    head = [
        f"invitation to the federation {roster.federation} at {invitation.address}",
        f"signed by {invitation.signer.fingerprint}: compare this by phone with the coordinator's "
        "operator",
    ]
    accept_notice(
        folder,
        platform,
        invitation.notice,
        ask=ask,
        explain=explain,
        allow_two=allow_two,
        head=[] if before is not None and before.roster.signer == roster.signer else head,
    )
    # What the signer of the pinned roster says now; a moved coordinator is no other federation.
    write_file(folder / CA, invitation.ca.encode("ascii"))
    write_file(folder / ADDRESS, invitation.address.encode("ascii"))


def accept_notice(
    folder: Path,
    platform: str,
    notice: Notice,
    *,
    ask: Ask,
    explain: Explain,
    allow_two: bool,
    head: list[str] | None = None,
) -> bool:
    """Follow the federation's roster and plan as they stand now; return whether anything changed.

    Raises:
        ConfigError: if the operator declines, or can't be asked.
        RosterError: for a roster or plan that is older than the pinned one, another of the same
            version, or another signer's; or a roster without this platform, or with another key.
    """
    before = load_roster(folder)
    # Without a roster beside it, a plan is what a process left that was stopped between the two.
    plan_before = None if before is None else load_plan(folder)
    roster, plan = notice.roster.roster, notice.plan
    roster.check_member(platform, load_identity(folder).public)
    lines = list(head or [])
    if before is None:
        lines.append(f"roster version {roster.version}: {', '.join(roster.platforms)}")
    elif before.roster != roster:
        roster.check_follows(before.roster)
        changes = roster.changes_since(before.roster) or "no platform changed"
        lines.append(
            f"roster version {roster.version} instead of {before.roster.version}: {changes}"
        )
    _check_number(roster, allow_two=allow_two)
    if plan_before is None or plan_before != plan:
        _check_plan_follows(plan, plan_before)
        lines += explain(plan, roster, plan_before.plan if plan_before else None)
    if not lines:
        return False
    if not ask(lines, "accept and take part?"):
        raise ConfigError("the federation's roster or plan was not accepted; nothing was changed")
    # The plan first: a roster by itself would let any plan be followed.
    write_file(folder / PLAN, plan.to_json())
    pin(folder, notice.roster, accept=True)
    return True


def _check_plan_follows(plan: SignedPlan, before: SignedPlan | None) -> None:
    if before is None:
        return
    if plan.version < before.version:
        raise RosterError(
            f"plan version {plan.version} is older than the accepted version {before.version}; the "
            "coordinator must use its latest plan.json"
        )
    if plan.version == before.version:
        raise RosterError(
            f"two plans of version {plan.version} by one signer; ask the coordinator's operator by "
            "phone, and only then remove the accepted plan.json by hand"
        )


def _check_number(roster: Roster, *, allow_two: bool) -> None:
    if len(roster.members) < FEWEST and not allow_two:
        raise ConfigError(f"{OF_TWO}; wait for a third, or accept this with --allow-two")


def _incomplete(path: Path, error: Exception) -> StateError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StateError(
        f"{path} can't be used ({reason}); take part again with the invitation: --invitation FILE"
    )
