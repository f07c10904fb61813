"""TLS files of a coordinator: an authority, its server certificate, and their checks.

`ca.pem` goes to every platform. A federation keeps the authority's key beside it, so that the server
certificate can be renewed without any platform's doing; a throw-away authority forgets its key.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crossrec_model.durable import write_durably
from crossrec_model.errors import ConfigError

LIFETIME = datetime.timedelta(days=365)
#: Of a federation's authority: every platform has pinned it.
AUTHORITY_LIFETIME = datetime.timedelta(days=3650)
#: A certificate that ends within it is worth a warning.
WARN_BEFORE = datetime.timedelta(days=30)
#: Clocks differ: a certificate made now must hold on a machine whose clock is a little behind.
CLOCK_SKEW = datetime.timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The files in a TLS folder; `authority` is the authority's key, where it was kept."""

    ca: Path
    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def in_folder(cls, folder: Path) -> TlsFiles:
        """Name the files in a folder, whether they exist or not."""
        return cls(
            ca=folder / "ca.pem",
            certificate=folder / "server.pem",
            key=folder / "server.key",
            authority=folder / "ca.key",
        )

    def expiry_warning(self, now: datetime.datetime) -> str:
        """One line if the server certificate ends within 30 days, else nothing.

        Raises:
            ConfigError: if there is no certificate.
        """
        try:
            server = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        except (OSError, ValueError, x509.InvalidVersion):
            raise ConfigError(f"{self.certificate} is no certificate; make it anew") from None
        left = server.not_valid_after_utc - now
        if left > WARN_BEFORE:
            return ""
        return (
            f"the coordinator's certificate ends on {server.not_valid_after_utc:%Y-%m-%d}, in "
            f"{max(left.days, 0)} days; renew it with: python -m server renew --federation "
            f"{self.ca.parent}"
        )

    def check(self) -> None:
        """Raise ConfigError, naming the remedy, unless the files exist and belong together."""
        folder = self.ca.parent
        # With the authority's key there, platforms need not notice.
        command = f"certificates --out {folder} --host NAME"
        if self.authority.exists():
            command = f"renew --federation {folder}"
        remedy = f"make them with: python -m server {command}"
        for path in (self.ca, self.certificate, self.key):
            if not path.is_file():
                raise ConfigError(f"TLS file {path} is missing; {remedy}")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key)
            ca = x509.load_pem_x509_certificate(self.ca.read_bytes())
            server = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            server.verify_directly_issued_by(ca)
        except Exception as error:
            # OpenSSL, PEM parsing and signature checks each raise kinds of their own.
            raise ConfigError(
                f"TLS files in {folder} don't belong together ({type(error).__name__}); {remedy}"
            ) from None
        now = datetime.datetime.now(datetime.UTC)
        if now > server.not_valid_after_utc:
            expiry = f"{server.not_valid_after_utc:%Y-%m-%d}"
            raise ConfigError(f"{self.certificate} expired on {expiry}; {remedy}")


def make_certificates(
    folder: Path, hosts: Sequence[str], *, keep_authority: bool = False
) -> TlsFiles:
    """Write a new authority's certificate, a server certificate and its key (mode 0600).

    The server certificate is good for localhost, 127.0.0.1, ::1 and every name in `hosts`. The
    authority's key is forgotten, or written to `ca.key` (mode 0600).

    Raises:
        ConfigError: if the folder can't be written, or already holds a key.
    """
    files = TlsFiles.in_folder(folder)
    if files.key.exists():
        raise ConfigError(f"{files.key} exists already; give another --out or remove it first")
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = _name("crossrec federation" if keep_authority else "crossrec throw-away authority")
    ca = _authority(ca_name, ca_key, AUTHORITY_LIFETIME if keep_authority else LIFETIME)
    server = _server_certificate(ca_name, ca_key, server_key, hosts)
    pem = serialization.Encoding.PEM
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if keep_authority:
            write_durably(files.authority, _private(ca_key), mode=0o600)
        write_durably(files.ca, ca.public_bytes(pem), mode=0o644)
        write_durably(files.certificate, server.public_bytes(pem), mode=0o644)
        write_durably(files.key, _private(server_key), mode=0o600)
    except OSError as error:
        raise ConfigError(
            f"can't write TLS files in {folder}: {error.strerror}; give another --out"
        ) from None
    return files


def renew_certificate(folder: Path, hosts: Sequence[str]) -> TlsFiles:
    """Write a new server key and certificate under the authority whose key was kept.

    Platforms notice nothing: they trust the authority. A running coordinator uses the old one until it
    is started again.

    Raises:
        ConfigError: if the authority's key or certificate is missing or damaged, or nothing can be
            written.
    """
    files = TlsFiles.in_folder(folder)
    try:
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
        ca_key = serialization.load_pem_private_key(files.authority.read_bytes(), password=None)
        ca_public, subject = ca.public_key(), ca.subject
    except (
        *(OSError, ValueError, TypeError, UnsupportedAlgorithm, InternalError, x509.InvalidVersion),
    ) as error:
        raise ConfigError(
            f"the authority in {folder} can't be used ({type(error).__name__}); restore ca.key and "
            "ca.pem from a backup"
        ) from None
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != ca_public:
        raise ConfigError(f"ca.key and ca.pem in {folder} don't belong together; restore them")
    server_key = ec.generate_private_key(ec.SECP256R1())
    server = _server_certificate(subject, ca_key, server_key, hosts)
    try:
        # The pair is checked at the start: torn between the two files, it is simply renewed again.
        write_durably(files.key, _private(server_key), mode=0o600)
        write_durably(
            files.certificate, server.public_bytes(serialization.Encoding.PEM), mode=0o644
        )
    except OSError as error:
        raise ConfigError(f"can't write TLS files in {folder}: {error.strerror}") from None
    return files


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, lifetime: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _authority(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: datetime.timedelta
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, lifetime)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server_certificate(
    issuer: x509.Name,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
) -> x509.Certificate:
    every = dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])
    alternatives = x509.SubjectAlternativeName([_alternative(host) for host in every])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(_name("crossrec coordinator"), issuer, LIFETIME)
        .public_key(key.public_key())
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(f"host {host!r} is no DNS name or address; give one as --host") from None
