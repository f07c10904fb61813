"""What the coordinator's operator does: found a federation, admit and expel platforms, sign plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossrec_model.durable import write_durably
from crossrec_model.errors import ConfigError
from crossrec_model.keyfile import read_small
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.identity import Card, IdentityKey
from crossrec_model.secagg.invitation import Invitation, Notice, SignedPlan
from crossrec_model.secagg.roster import FEWEST, SignedRoster
from server.folder import SETTINGS, FederationFolder, Settings
from server.rosters import KEY, list_platforms, signing_key
from server.tls import make_certificates, renew_certificate

#: Gets what happened, and to whom.
Audit = Callable[[str, str], None]


def found(folder: FederationFolder, settings: Settings) -> list[str]:
    """Make a federation's folder; return lines for its operator.

    Raises:
        ConfigError: if the folder holds a federation already, or can't be written.
    """
    if (folder.path / SETTINGS).exists():
        raise ConfigError(f"{folder.path} holds a federation already; give another --out")
    key = IdentityKey.generate(SystemRandomness())
    try:
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.path.chmod(0o700)
        make_certificates(folder.path, [settings.host], keep_authority=True)
        write_durably(folder.path / KEY, key.to_pem(), mode=0o600)
        # Last: with it the federation is there.
        write_durably(folder.path / SETTINGS, settings.to_toml().encode(), mode=0o600)
    except OSError as error:
        raise ConfigError(
            f"folder {folder.path} can't be written: {error.strerror}; give another --out"
        ) from None
    return [
        f"federation {settings.name}: {folder.path}, platforms will connect to {settings.address}",
        f"signing key {key.public.fingerprint}: platforms compare this by phone",
        f"look at {folder.path / SETTINGS}, then collect the platforms' join requests and: "
        f"python -m server admit --federation {folder.path} ID.join …",
    ]


def admit(
    folder: FederationFolder, requests: Sequence[Path], *, allow_two: bool, audit: Audit
) -> list[str]:
    """Put platforms on the roster by their join requests; return lines.

    Requests wait in `pending/` until there are enough for a roster. Then plan and invitations are
    signed.

    Raises:
        ConfigError, SecureSumError: for a request that can't be used; the roster stands as it was.
    """
    settings = folder.settings()
    cards = [_request(path) for path in requests]
    pending = folder.path / "pending"
    _check_one_key_each(cards, pending)
    try:
        pending.mkdir(exist_ok=True, mode=0o700)
        for card in cards:
            write_durably(pending / f"{card.member.platform}.join", card.to_json(), mode=0o600)
    except OSError as error:
        raise ConfigError(f"{pending} can't be written: {error.strerror}") from None
    waiting = sorted(pending.glob("*.join"))
    roster = folder.roster()
    known = set(roster.roster.platforms) if roster else set()
    count = len(known | {path.stem for path in waiting})
    if count < (FEWEST - 1 if allow_two else FEWEST):
        names = ", ".join(path.stem for path in waiting)
        return [
            *(f"  {c.member.platform}  {c.member.public.fingerprint}" for c in cards),
            f"noted: {names}; a roster needs {FEWEST} platforms, {FEWEST - count} more must come "
            "(two alone: --allow-two)",
        ]
    listed = list_platforms(
        folder.path,
        federation=settings.name,
        cards=waiting,
        expel=(),
        allow_two=allow_two or len(known) == FEWEST - 1,
    )
    lines = [*listed.lines()[:-1], *_signed(folder, settings, listed.signed)]
    for path in waiting:
        audit("admitted", path.stem)
        path.unlink()
    return lines


def expel(folder: FederationFolder, platforms: Sequence[str], *, audit: Audit) -> list[str]:
    """Take platforms off the roster; return lines.

    A running coordinator lets them in no more from now on; sums without them begin with its next start.

    Raises:
        ConfigError, SecureSumError: for a platform that is not there, or too few that are left.
    """
    settings = folder.settings()
    listed = list_platforms(folder.path, federation=None, cards=(), expel=platforms)
    for platform in platforms:
        # A request that was left by a crash would bring it back with the next admission.
        for left in (f"pending/{platform}.join", f"invitations/{platform}.invitation"):
            (folder.path / left).unlink(missing_ok=True)
        audit("expelled", platform)
    return [*listed.lines()[:-1], *_signed(folder, settings, listed.signed)]


def sign_plan(folder: FederationFolder, *, audit: Audit) -> list[str]:
    """Sign what `federation.toml` says now, if it changed; return lines."""
    settings, roster = folder.settings(), folder.notice().roster
    lines = _signed(folder, settings, roster)
    audit("plan", str(folder.notice().plan.version))
    return lines


def renew(folder: FederationFolder, *, audit: Audit) -> list[str]:
    """Make a new server certificate under the federation's authority; return lines."""
    settings = folder.settings()
    renew_certificate(folder.path, [settings.host])
    audit("certificate_renewed", settings.host)
    return [f"new certificate for {settings.host}; it counts from the coordinator's next start"]


@dataclass(frozen=True)
class _Signing:
    """The plan that stands now, and whether it was signed just now."""

    plan: SignedPlan
    new: bool


def _signed(folder: FederationFolder, settings: Settings, roster: SignedRoster) -> list[str]:
    """Sign the plan if it changed, write every invitation; return lines."""
    key = signing_key(folder.path)
    signing = _plan(folder, settings, roster, key)
    notice = Notice(roster, signing.plan)
    try:
        if signing.new:
            write_durably(folder.path / "plan.json", signing.plan.to_json(), mode=0o644)
        places = folder.path / "invitations"
        places.mkdir(exist_ok=True, mode=0o700)
        ca = folder.tls.ca.read_text(encoding="ascii")
        for platform in roster.roster.platforms:
            made = Invitation.sign(
                platform, address=settings.address, ca=ca, notice=notice, key=key
            )
            write_durably(places / f"{platform}.invitation", made.to_json(), mode=0o644)
    except OSError as error:
        raise ConfigError(f"{folder.path} can't be written: {error.strerror}") from None
    state = "signed" if signing.new else "unchanged"
    privacy = signing.plan.plan.privacy
    cost = (
        f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}, {privacy.noise} noise"
        if privacy.on
        else "no differential privacy: platforms must accept this with --no-privacy"
    )
    return [
        f"plan version {signing.plan.version}: {state}; {cost}",
        f"send each platform its file from {folder.path / 'invitations'}; those that took part before "
        "are asked by themselves",
        f"then: python -m server --federation {folder.path}",
    ]


def _plan(
    folder: FederationFolder, settings: Settings, roster: SignedRoster, key: IdentityKey
) -> _Signing:
    plan, before = settings.signed_for(roster.roster), folder.plan()
    if before is not None and before.plan == plan:
        return _Signing(before, new=False)
    version = before.version + 1 if before else 1
    return _Signing(SignedPlan.sign(roster.roster, version, plan, key), new=True)


def _check_one_key_each(cards: Sequence[Card], pending: Path) -> None:
    """Raise ConfigError for two requests of one platform with two keys, of which one is a lie."""
    keys = {card.member.platform: card.member.public for card in cards}
    for card in cards:
        platform, key = card.member.platform, card.member.public
        noted = pending / f"{platform}.join"
        others = [keys[platform]]
        if noted.exists():
            others.append(_request(noted).member.public)
        if other := next((other for other in others if other != key), None):
            raise ConfigError(
                f"another key for platform {platform} was given before: {other.fingerprint}, now "
                f"{key.fingerprint}; ask it by phone which is right, and give that one only (remove "
                f"{noted} if it is there)"
            )


def _request(path: Path) -> Card:
    try:
        return Card.from_json(read_small(path))
    except OSError as error:
        raise ConfigError(
            f"join request {path} can't be read: {error.strerror}; check its place"
        ) from None
    except SecureSumError as error:
        raise ConfigError(f"join request {path} can't be used: {error}") from None
