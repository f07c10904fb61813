"""Checks of a platform's folder: whose it is, its state, its identity, the roster and plan it trusts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clients.guard import check_noise
from clients.keys import IDENTITY, load_identity, load_roster, read_roster
from clients.opened import OPENED, Opened
from clients.state import PlatformFolder
from crossrec_model.checkup import Finding, fail, ok, refused, unchecked, warn
from crossrec_model.checkup_machine import held, private_files
from crossrec_model.errors import ConfigError, CrossrecError, StateError
from crossrec_model.federation_files import PLAN, read_join, read_plan
from crossrec_model.secagg.errors import RosterError, SecureSumError
from crossrec_model.secagg.invitation import SignedPlan
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster

_INVITATION = "get an invitation from the coordinator's operator and take part with it"


def state(folder: PlatformFolder, platform: str) -> Iterator[Finding]:
    """Whether the folder is this user's and this platform's alone, and nothing in it is damaged."""
    path = folder.path
    yield from private_files("folder", path, (path / IDENTITY,))
    if held(path / "lock"):
        yield ok("folder", "a process of this platform holds it now, and takes part")
    try:
        kept = folder.load_received()
        if os.path.lexists(path / OPENED):
            Opened(path)
        folder.load_trained()
    except StateError as error:
        yield refused("folder", error)
        return
    if kept is None:
        return
    if kept.platform != platform:
        yield fail(
            "folder",
            f"{path} belongs to platform {kept.platform}, not {platform}",
            "give another --state",
        )
        return
    run, last = kept.received, kept.received.plan.federation.rounds
    end = "finished" if run.finished else f"round {run.round} of {last}"
    yield ok("folder", f"run {run.run.hex()[:8]}: {end}")


def identity(folder: Path, platform: str) -> Iterator[Finding]:
    """Whether the key can be used, and the card that was sent shows it."""
    key = load_identity(folder)
    paths = [folder / f"{platform}.{ending}" for ending in ("join", "platform")]
    there = next((path for path in paths if os.path.lexists(path)), None)
    if there is None:
        yield warn(
            "identity",
            f"fingerprint {key.public.fingerprint}, but {paths[0].name} is not beside it",
            f"write it again: python -m clients.platform init --id {platform}",
        )
        return
    try:
        member = read_join(there).member
    except (OSError, SecureSumError) as error:
        yield fail("identity", f"{there} can't be used: {error}", "write it again with init")
        return
    if member.platform != platform or member.public != key.public:
        yield fail(
            "identity",
            f"{there.name} is of platform {member.platform} with key {member.public.fingerprint}, "
            f"the key here is {key.public.fingerprint}",
            "write it again with init, and have the coordinator's operator admit this one",
        )
        return
    yield ok("identity", f"fingerprint {key.public.fingerprint}, as in {there.name}")


def roster(
    folder: Path, platform: str, *, allow_two: bool = False, offered: Path | None = None
) -> Iterator[Finding]:
    """Whether a roster is pinned, its signature holds and this platform is on it with its key.

    `offered` is a roster file that is to be pinned.
    """
    pinned = load_roster(folder)
    given = None if offered is None else read_roster(offered, allow_two=allow_two)
    used = pinned or given
    if used is None:
        yield fail("roster", "no roster is pinned", _INVITATION)
        return
    listed = used.roster
    if given is not None and given.roster != listed:
        given.roster.check_follows(listed)
        yield warn(
            "roster",
            f"{offered} is version {given.roster.version}, pinned is {listed.version}: "
            f"{given.roster.changes_since(listed) or 'no platform changed'}",
            "ask the coordinator's operator by phone, then add --accept-roster",
        )
    listed.check_member(platform, load_identity(folder).public)
    yield _counted(listed, platform, allow_two=allow_two)


def _counted(listed: Roster, platform: str, *, allow_two: bool) -> Finding:
    spare = len(listed.members) - listed.threshold()
    found = (
        f"version {listed.version} of {listed.federation}, signed by {listed.signer.fingerprint}; "
        f"{platform} is one of {len(listed.members)} on it, {spare} may be missing"
    )
    if len(listed.members) < FEWEST:
        level = warn if allow_two else fail
        return level("roster", f"{found}: {OF_TWO}", "wait for a third, or accept it: --allow-two")
    return ok("roster", found)


def trusted_roster(folder: Path) -> Roster | None:
    """The pinned roster, None if there is none that can be used."""
    try:
        pinned = load_roster(folder)
    except StateError:
        return None
    return None if pinned is None else pinned.roster


def accepted_plan(folder: Path) -> SignedPlan | None:
    """The accepted plan, None if there is none that can be used."""
    listed = trusted_roster(folder)
    try:
        return None if listed is None else read_plan(folder / PLAN, listed.signer)
    except ConfigError:
        return None


def plan(folder: Path, *, colluding_share: float, no_privacy: bool) -> Iterator[Finding]:
    """Whether an accepted plan is there, signed by the roster's signer, and may be followed."""
    listed = trusted_roster(folder)
    if listed is None:
        yield unchecked("plan", "there is no roster to verify it by", "the line roster")
        return
    accepted = read_plan(folder / PLAN, listed.signer)
    if accepted is None:
        yield warn("plan", "no plan was accepted yet", _INVITATION)
        return
    found, asked = accepted.plan, accepted.plan.aggregation.colluding_share
    if accepted.federation != listed.federation:
        raise RosterError(
            f"the plan is of federation {accepted.federation}, the roster of {listed.federation}; "
            "get both anew from the coordinator's operator"
        )
    faults = list(_refusals(accepted, listed, no_privacy=no_privacy))
    if asked < colluding_share:
        faults.append(
            fail(
                "plan",
                f"it withstands a colluding share of {asked:.3g}, less than {colluding_share:.3g}",
                "ask for a plan with more, or lower --colluding-share",
            )
        )
    yield from faults
    if not faults:
        noise = f"{found.privacy.noise} noise" if found.privacy.on else "no differential privacy"
        yield ok("plan", f"version {accepted.version}: {found.federation.rounds} rounds, {noise}")


def _refusals(accepted: SignedPlan, listed: Roster, *, no_privacy: bool) -> Iterator[Finding]:
    try:
        check_noise(accepted.plan, listed, allow_none=no_privacy)
        accepted.plan.check_rounds()
    except CrossrecError as error:
        yield refused("plan", error)
