"""Checks of what the coordinator shows to others: certificates, the roster and the plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from crossrec_model.checkup import Finding, fail, ok, refused, unchecked, warn
from crossrec_model.checkup_certificates import CERTIFICATES, covers, read_certificate, validity
from crossrec_model.checkup_machine import Clock
from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.federation_files import PLAN, read_plan
from crossrec_model.keyfile import read_key, read_small
from crossrec_model.privacy.planning import run_events
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.secagg.errors import IdentityError, RosterError
from crossrec_model.secagg.invitation import SignedPlan
from crossrec_model.secagg.roster import COLLUDING_SHARE, FEWEST, OF_TWO, Roster
from server.folder import SETTINGS, FederationFolder, Settings
from server.rosters import KEY, ROSTER, read_roster
from server.tls import TlsFiles

CA_KEY: Final = "ca.key"
PENDING: Final = "pending"
_RENEW: Final = "renew it with: python -m server renew, then start the coordinator again"
_ADMIT: Final = "python -m server admit"
_SIGN: Final = "python -m server plan"
#: So much more than it says may a plan cost: prices are found to this share.
_TOLERANCE: Final = 1e-3


def settings_of(folder: Path) -> Settings | None:
    """The operator's settings, None if they can't be used."""
    try:
        return FederationFolder(folder).settings()
    except ConfigError:
        return None


def settings(folder: Path) -> Iterator[Finding]:
    """Whether federation.toml can be used; raises ConfigError if not."""
    found = FederationFolder(folder).settings()
    yield ok("settings", f"federation {found.name} at {found.host}:{found.port}")


def certificates(folder: Path, now: Clock) -> Iterator[Finding]:
    """Whether the TLS files can be read, belong together, are in date, and name the public host."""
    files = TlsFiles.in_folder(folder)
    ca = read_certificate(files.ca, "restore it, since platforms trust no other")
    server = read_certificate(files.certificate, _RENEW)
    faults = [
        *_belongs(files.key, server, files.certificate, needed=True),
        *_belongs(folder / CA_KEY, ca, files.ca, needed=False),
        *_issued(server, ca),
    ]
    yield from faults
    yield validity(files.ca.name, ca, now(), "make a new authority and send every platform ca.pem")
    yield validity(files.certificate.name, server, now(), _RENEW)
    settings = settings_of(folder)
    if settings is None:
        yield unchecked(CERTIFICATES, "the public host is not known", "the line settings")
    elif not covers(server, settings.host):
        found = f"{files.certificate.name} is not for {settings.host}, where platforms connect"
        yield fail(
            CERTIFICATES, found, f"renew it for {settings.host}, or correct host in {SETTINGS}"
        )
    elif not faults:
        yield ok(CERTIFICATES, f"they belong together and are for {settings.host}")


def _belongs(
    path: Path, certificate: x509.Certificate, of: Path, *, needed: bool
) -> Iterator[Finding]:
    """Whether the private key at `path` is that of a certificate."""
    try:
        key = load_pem_private_key(read_small(path), password=None)
    except FileNotFoundError:
        if needed:
            yield fail(CERTIFICATES, f"{path.name} is missing", f"restore it, or {_RENEW}")
        else:
            found = f"{path.name} is not here, so no certificate can be renewed"
            yield warn(CERTIFICATES, found, "have it at hand before one expires")
        return
    except OSError as error:
        yield fail(CERTIFICATES, f"{path} can't be read: {error.strerror}", "check who owns it")
        return
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
        # OpenSSL's words would not help, and must never quote the key.
        found = f"{path.name} holds no unencrypted private key in PEM"
        yield fail(CERTIFICATES, found, f"restore it, or {_RENEW}")
        return
    if _public(key) != _public(certificate):
        found = f"{path.name} is not the key of {of.name}"
        yield fail(CERTIFICATES, found, f"restore the one that is, or {_RENEW}")


def _public(holder: object) -> bytes:
    public = holder.public_key()  # type: ignore[attr-defined]
    return bytes(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _issued(server: x509.Certificate, ca: x509.Certificate) -> Iterator[Finding]:
    try:
        server.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        yield fail(CERTIFICATES, "server.pem was not issued by ca.pem", _RENEW)


def roster_of(folder: Path) -> Roster | None:
    """The roster, None if there is none that can be used."""
    try:
        return read_roster(folder / ROSTER, allow_two=True)
    except RosterError:
        return None


def roster(folder: Path) -> Iterator[Finding]:
    """Whether the signing key made the roster, and how many of its platforms may be missing.

    Raises:
        IdentityError: if the key can't be used.
        RosterError: if the roster can't.
    """
    try:
        key = read_key(folder / KEY, what="signing key", folder="folder", refusal=IdentityError)
    except FileNotFoundError:
        raise IdentityError(
            f"signing key {folder / KEY} is missing; restore it, since platforms trust no other"
        ) from None
    if not (folder / ROSTER).exists():
        waiting = len(list((folder / PENDING).glob("*.join")))
        found = f"there is no roster yet, {waiting} join requests of {FEWEST} are here"
        yield fail("roster", found, f"{_ADMIT} the platforms' join requests")
        return
    listed = read_roster(folder / ROSTER, allow_two=True)
    if listed.signer != key.public:
        yield fail(
            "roster",
            f"roster.key is {key.public.fingerprint}, {ROSTER} is signed by "
            f"{listed.signer.fingerprint}",
            "restore that key, since platforms trust no other",
        )
        return
    settings = settings_of(folder)
    if settings and settings.name != listed.federation:
        found = f"the roster is of {listed.federation}, {SETTINGS} names {settings.name}"
        yield fail("roster", found, f"correct name in {SETTINGS}")
        return
    yield _spare(listed, _share(folder, listed))


def _spare(listed: Roster, share: float) -> Finding:
    count, needed = len(listed.members), listed.threshold(share)
    found = (
        f"version {listed.version} of {listed.federation}: {', '.join(listed.platforms)}; "
        f"{count - needed} of {count} may be missing"
    )
    if count < FEWEST:
        return warn("roster", f"{found}: {OF_TWO}", f"{_ADMIT} a third platform")
    if count == needed:
        return warn("roster", found, f"{_ADMIT} another platform, or one that is away stops all")
    return ok("roster", found)


def _share(folder: Path, listed: Roster) -> float:
    try:
        signed = read_plan(folder / PLAN, listed.signer)
    except ConfigError:
        signed = None
    return signed.plan.aggregation.colluding_share if signed else COLLUDING_SHARE


def plan(folder: Path) -> Iterator[Finding]:
    """Whether the plan's signature holds, it fits the roster, and costs what it says.

    Raises:
        ConfigError: if it is damaged or its signature does not hold.
    """
    listed = roster_of(folder)
    if listed is None:
        yield unchecked("plan", "there is no roster to verify it by", "the line roster")
        return
    signed = read_plan(folder / PLAN, listed.signer)
    if signed is None:
        found = f"{PLAN} is missing"
        yield fail("plan", found, "restore it from a backup")
        return
    yield _priced(signed, listed)
    settings = settings_of(folder)
    if settings is not None and settings.signed_for(listed) != signed.plan:
        found = f"{SETTINGS} asks for another plan than the signed version {signed.version}"
        yield fail("plan", found, f"sign it: {_SIGN}, or put {SETTINGS} back")


def _priced(signed: SignedPlan, listed: Roster) -> Finding:
    plan, count = signed.plan, len(listed.members)
    if signed.federation != listed.federation:
        found = f"it is of {signed.federation}, the roster of {listed.federation}"
        return fail("plan", found, "sign the plan of this federation")
    try:
        plan.check_rounds()
    except CrossrecError as error:
        return refused("plan", error)
    if plan.federation.min_platforms > count:
        found = f"it waits for {plan.federation.min_platforms} platforms, the roster has {count}"
        return fail("plan", found, "admit more, or sign a plan with a lower min_platforms")
    named = f"version {signed.version}: {plan.federation.rounds} rounds"
    if not plan.privacy.on:
        found = f"{named}, no differential privacy: the model may tell about single users"
        return warn("plan", found, "sign a plan with noise, if that is not meant")
    privacy = plan.privacy
    honest = listed.honest(plan.aggregation.colluding_share)
    price = epsilon(run_events(plan, honest), privacy.delta)
    found = f"{named}, {privacy.noise} noise, costs a user epsilon {price:.3g} at {privacy.delta:g}"
    if price > privacy.epsilon * (1 + _TOLERANCE):
        found += f", more than the {privacy.epsilon:g} it says"
        return fail(
            "plan", found, "sign it with more noise or what it costs: platforms price it themselves"
        )
    return ok("plan", found)
