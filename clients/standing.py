"""What a platform stands on: its identity, the roster and plan it trusts, the budget it keeps to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from clients.adapters import COMPLETE_JOURNEY
from clients.connection import Endpoint, NotThereError, fetch_notice, probe
from clients.guard import LedgerGuard
from clients.joining import Ask, Explain, accept_invitation, accept_notice, load_pinned, load_plan
from clients.keys import load_identity, load_roster, pin, read_roster
from clients.opened import Opened
from clients.participation import Settings
from clients.passport import Passport
from clients.sealing import Sealer, SealerFor, secure_sealer
from clients.terms import explainer
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.privacy.ledger import LEDGER, Ledger, read_history
from crossrec_model.secagg.invitation import Notice
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster


def sealer_on_disk(settings: Settings, note: Callable[[str], None]) -> SealerFor:
    """Return the platform's side of the secure sum, from its identity and the roster it trusts.

    Raises:
        StateError: if there is no identity, or what is on disk is damaged.
        RosterError: for a roster that is not the pinned one, or without this platform.
    """
    folder, platform = settings.folder.path, settings.platform
    identity = load_identity(folder)
    if settings.roster is not None:
        given = read_roster(settings.roster, allow_two=settings.allow_two)
        given.roster.check_member(platform, identity.public)
        if line := pin(folder, given, accept=settings.accept_roster):
            note(line)
    roster = _pinned(folder)
    roster.check_member(platform, identity.public)
    if len(roster.members) < FEWEST:
        if not settings.allow_two:
            raise ConfigError(f"{OF_TWO}; wait for a third, or accept this with --allow-two")
        note(f"warning: {OF_TWO}")
    opened = Opened(folder).check_and_record

    def sealer_for(plan: Plan) -> Sealer:
        # A federation's roster may have changed since, with the operator's consent.
        present = _pinned(folder)
        least = settings.colluding_share
        return secure_sealer(platform, identity, present, opened, least_share=least)(plan)

    return sealer_for


def passport_on_disk(
    settings: Settings, notice: Callable[[bytes], object] | None = None
) -> Passport:
    """Return what vouches for this platform's connections; raises StateError without an identity.

    `notice` gets the federation's signed roster and plan at every connection.
    """
    folder = settings.folder.path
    return Passport(
        platform=settings.platform,
        identity=load_identity(folder),
        roster=lambda: _pinned(folder),
        notice=notice,
    )


def terms_on_disk(settings: Settings, ask: Ask) -> Callable[[bytes], bool]:
    """Return what takes a notice of the federation in, once the operator has agreed.

    It returns whether anything changed, and raises ConfigError or RosterError if it can't be followed.
    """
    folder = settings.folder.path

    def take(notice: bytes) -> bool:
        return accept_notice(
            folder,
            settings.platform,
            Notice.from_json(notice),
            ask=ask,
            explain=_explainer(settings),
            allow_two=settings.allow_two,
        )

    return take


def endpoint_of(
    settings: Settings, *, address: str | None, ca: Path | None, insecure: bool
) -> Endpoint:
    """Where the coordinator is: as given, else as the invitation said.

    Raises:
        ConfigError: if neither says it, or for an address or CA file that can't be used.
        StateError: if what the invitation left is damaged.
    """
    pinned = load_pinned(settings.folder.path)
    if address is None:
        if pinned is None:
            raise ConfigError(
                "where is the coordinator? give its operator's file as --invitation, or --server and --ca"
            )
        address = pinned.address
    if ca is None and pinned is not None and not insecure:
        ca = pinned.ca
    return Endpoint(address=address, ca=ca, insecure=insecure)


def look_at_notice(settings: Settings, endpoint: Endpoint, take: Callable[[bytes], bool]) -> None:
    """Take in what the coordinator says of the federation now, if it is there and there is a roster.

    Raises:
        ConnectionRefusedByPeerError: if it is not the right one, or refuses this platform.
        ConfigError, RosterError: for a notice that can't be followed.
    """
    if load_roster(settings.folder.path) is None:
        return
    try:
        probe(endpoint)
        notice = fetch_notice(endpoint, passport_on_disk(settings).introduction())
    except NotThereError:
        return  # it is waited for later, and then tells the same
    if notice is not None:
        take(notice)


def accept_invited(settings: Settings, path: Path, ask: Ask) -> None:
    """Pin what an invitation says, once the operator has agreed; see `joining.accept_invitation`."""
    accept_invitation(
        settings.folder.path,
        settings.platform,
        path,
        ask=ask,
        explain=_explainer(settings),
        allow_two=settings.allow_two,
        signer=settings.signer,
    )


def _explainer(settings: Settings) -> Explain:
    spent = [record.event for record in read_history(settings.folder.path / LEDGER).records]
    return explainer(settings.budget(), spent)


def _pinned(folder: Path) -> Roster:
    """The roster that this platform trusts."""
    pinned = load_roster(folder)
    if pinned is None:
        raise ConfigError(
            "this platform knows no roster yet; get roster.json from the coordinator's operator "
            "and give it as --roster"
        )
    return pinned.roster


@contextmanager
def guard_on_disk(settings: Settings) -> Iterator[LedgerGuard]:
    """Hold the ledger and yield what keeps plans within the budget; the roster must be pinned.

    Raises:
        LedgerError: if the ledger is damaged or held by another process.
    """
    folder = settings.folder.path
    _pinned(folder)
    with Ledger.open(folder / LEDGER) as ledger:
        yield LedgerGuard(
            ledger,
            settings.budget(),
            partial(_pinned, folder),
            allow_none=settings.no_privacy,
            # The embedded data are public, their period too.
            public_end=settings.data_end is not None or settings.data == COMPLETE_JOURNEY,
            agreed=partial(load_plan, folder),
        )


def accepted_terms(settings: Settings) -> list[str]:
    """What this platform has accepted, in plain words; raises ConfigError if that is nothing yet."""
    folder = settings.folder.path
    pinned = load_pinned(folder)
    if pinned is None:
        raise ConfigError(
            f"platform {settings.platform} has accepted no plan yet; take part with --invitation FILE"
        )
    roster = _pinned(folder)
    return [
        f"federation {roster.federation} at {pinned.address}, signed by {roster.signer.fingerprint}",
        f"roster version {roster.version}: {', '.join(roster.platforms)}",
        *_explainer(settings)(pinned.plan, roster, None),
    ]
