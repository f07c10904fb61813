"""Real folders of a federation and of a platform, and a coordinator that answers /health."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from clients.keys import make_identity, pin, read_roster
from clients.membership import Received
from clients.state import Kept
from crossrec_model.checkup import Finding
from crossrec_model.config import FederationConfig, ModelConfig, Plan, PrivacyConfig
from crossrec_model.data.splits import TimeSplit
from crossrec_model.parameters import Layout
from crossrec_model.privacy.ledger import LEDGER, Budget, Ledger
from crossrec_model.privacy.planning import private_plan, run_events
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import Card, IdentityKey
from crossrec_model.secagg.invitation import Notice, SignedPlan
from crossrec_model.secagg.roster import sign
from server.folder import SETTINGS, FederationFolder, Settings
from server.listener import bind, serving
from server.rosters import list_platforms
from server.tls import TlsFiles

BUDGET = Budget(epsilon=8.0, delta=1e-5, life_epsilon=24.0)
RUN = b"r" * 16
PORT = 9092
NAMES = ("localhost", "127.0.0.1")
DAY = timedelta(days=1)
TINY = Plan(
    model=ModelConfig(buckets=128, dimension=4, neighbours=2, sketch_width=64, tower=(8, 4, 1)),
    federation=FederationConfig(rounds=4),
    privacy=PrivacyConfig(rate=0.5, steps=2, population=60, negatives=4),
)


def now() -> datetime:
    return datetime.now(UTC)


def private(plan: Plan = TINY, *, epsilon: float = 8.0, honest: int = 2) -> Plan:
    return private_plan(plan, noise="local", epsilon=epsilon, delta=1e-5, honest=honest)


@dataclass(frozen=True)
class Authority:
    """A CA with its key, and the certificates that it issues."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, first: datetime | None = None, last: datetime | None = None) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("test authority")
        builder = _builder(name, name, first, last).public_key(key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    def issue(
        self,
        key: ec.EllipticCurvePrivateKey,
        names: Sequence[str] = NAMES,
        first: datetime | None = None,
        last: datetime | None = None,
    ) -> x509.Certificate:
        builder = _builder(_name("coordinator"), self.certificate.subject, first, last)
        builder = builder.public_key(key.public_key())
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def write(self, folder: Path, **how: object) -> TlsFiles:
        """Write ca.pem, ca.key, server.pem and server.key."""
        files, key = TlsFiles.in_folder(folder), ec.generate_private_key(ec.SECP256R1())
        files.ca.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        files.certificate.write_bytes(
            self.issue(key, **how).public_bytes(Encoding.PEM)  # type: ignore[arg-type]
        )
        for path, secret in ((files.key, key), (folder / "ca.key", self.key)):
            path.touch(mode=0o600)
            path.write_bytes(
                secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
        return files


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, first: datetime | None, last: datetime | None
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(first or now() - DAY)
        .not_valid_after(last or now() + 365 * DAY)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass(frozen=True)
class Federation:
    """A coordinator's folder, and the platforms' folders under `state`."""

    folder: Path
    state: Path
    authority: Authority
    signer: IdentityKey
    port: int = 0

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles.in_folder(self.folder)

    def on(self, port: int) -> Federation:
        """The same on another port, also for its platforms."""
        self.set(port=port)
        for place in self.state.iterdir():
            (place / "address").write_text(f"127.0.0.1:{port}\n", encoding="utf-8")
        return replace(self, port=port)

    def set(self, *, port: int = PORT, host: str = "127.0.0.1", name: str = "demo") -> None:
        """Write the settings that ask for the plan that is signed."""
        signed = FederationFolder(self.folder).plan()
        plan = signed.plan if signed else Plan()
        privacy = plan.privacy
        settings = Settings(
            name=name,
            host=host,
            port=port,
            noise=privacy.noise,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            plan=replace(plan, privacy=replace(privacy, noise="none")),
        )
        (self.folder / SETTINGS).write_text(settings.to_toml(), encoding="utf-8")

    def sign(self, plan: Plan, version: int = 1, federation: str = "demo") -> bytes:
        roster = read_roster(self.folder / "roster.json", allow_two=True).roster
        return SignedPlan.sign(
            replace(roster, federation=federation, signer=self.signer.public, allow_two=True),
            version,
            plan,
            self.signer,
        ).to_json()

    def notice(self, version: int) -> bytes:
        """What a coordinator with this version of the roster tells."""
        roster = read_roster(self.folder / "roster.json", allow_two=True).roster
        later = sign(replace(roster, version=version, allow_two=True), self.signer)
        plan = FederationFolder(self.folder).plan()
        assert plan is not None
        return Notice(later, plan).to_json()

    def give(self, plan: Plan, version: int = 1) -> None:
        """Sign a plan, for the coordinator and all platforms."""
        signed = self.sign(plan, version)
        for folder in (self.folder, *self.state.iterdir()):
            (folder / "plan.json").write_bytes(signed)
        self.set(port=self.port or PORT)

    def list(self, ids: str, *, allow_two: bool = False) -> None:
        """Sign a roster of these platforms, for all."""
        cards = [self.state / name / f"{name}.join" for name in ids]
        listed = list_platforms(
            self.folder, federation="demo", cards=cards, expel=(), allow_two=allow_two
        )
        for name in ids:
            pin(self.state / name, read_roster(listed.path, allow_two=allow_two), accept=True)


def make_federation(
    home: Path, ids: str = "ABCD", plan: Plan | None = None, *, allow_two: bool = False
) -> Federation:
    """Make everything as onboarding leaves it."""
    folder, state = home / "federation", home / "crossrec-state"
    for path in (folder, state):
        path.mkdir(mode=0o700)
    authority = Authority.make()
    files = authority.write(folder)
    for name in ids:
        place = state / name
        key, _ = make_identity(place, SystemRandomness())
        (place / f"{name}.join").write_bytes(Card.of(name, key).to_json())
        (place / "ca.pem").write_bytes(files.ca.read_bytes())
    listed = list_platforms(
        folder,
        federation="demo",
        cards=[state / name / f"{name}.join" for name in ids],
        expel=(),
        allow_two=allow_two,
    )
    for name in ids:
        pin(state / name, read_roster(listed.path, allow_two=allow_two), accept=False)
    signer = IdentityKey.from_pem((folder / "roster.key").read_bytes())
    federation = Federation(folder, state, authority, signer)
    honest = listed.signed.roster.honest()
    federation.give(private(honest=honest) if plan is None else plan)
    return federation


def received(plan: Plan, number: int, *, finished: bool = False, platform: str = "A") -> Kept:
    given = Received(
        plan=plan,
        run=RUN,
        round=number,
        vector=np.zeros(Layout(plan.model).size, np.float32),
        validation=None,
        finished=finished,
    )
    split = TimeSplit(validation=100.0, test=120.0, end=140.0)
    return Kept(platform=platform, split=split, received=given)


def charge(
    federation: Federation, plan: Plan, *, run: bytes, rounds: int, budget: Budget = BUDGET
) -> None:
    with Ledger.open(federation.state / "A" / LEDGER) as ledger:
        for number, event in enumerate(run_events(plan, 2)[:rounds], 1):
            ledger.charge(event, run=run, round=number, what="training", budget=budget)


@contextmanager
def coordinator(tls: TlsFiles | None, status: int = 200, body: bytes = b"{}") -> Iterator[int]:
    """Answer everything on a free port of 127.0.0.1; plain HTTP without `tls`."""

    async def application(scope: object, receive: object, send: object) -> None:
        if scope["type"] == "lifespan":  # type: ignore[index]
            return
        head = {"type": "http.response.start", "status": status, "headers": []}
        await send(head)  # type: ignore[operator]
        await send({"type": "http.response.body", "body": body})  # type: ignore[operator]

    with bind("127.0.0.1", 0) as listener, serving(application, listener, tls):
        yield listener.getsockname()[1]


def told(findings: Sequence[Finding] | Iterator[Finding], what: str) -> tuple[str, str]:
    """The worst line about a subject, as its level and its text."""
    lines = [f for f in findings if f.what == what]
    assert lines, what
    worst = max(lines, key=lambda f: ("ok", "warn", "fail").index(f.level))
    return worst.level, f"{worst.found}; {worst.remedy}"
