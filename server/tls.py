"""TLS files of a coordinator: a throw-away authority, its one certificate, and their checks.

`ca.pem` goes to every platform. The authority's own key is never written: it signs the one server
certificate and is forgotten, so nobody can issue another one.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crossrec_model.errors import ConfigError

LIFETIME = datetime.timedelta(days=365)
#: Clocks differ: a certificate made now must hold on a machine whose clock is a little behind.
CLOCK_SKEW = datetime.timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The three files in a TLS folder."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> TlsFiles:
        """Name the files in a folder, whether they exist or not."""
        return cls(
            ca=folder / "ca.pem", certificate=folder / "server.pem", key=folder / "server.key"
        )

    def check(self) -> None:
        """Raise ConfigError, naming the remedy, unless the files exist and belong together."""
        folder = self.ca.parent
        remedy = f"make them with: python -m server certificates --out {folder} --host NAME"
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


def make_certificates(folder: Path, hosts: Sequence[str]) -> TlsFiles:
    """Write a new authority's certificate, a server certificate and its key (mode 0600).

    The server certificate is good for localhost, 127.0.0.1, ::1 and every name in `hosts`.

    Raises:
        ConfigError: if the folder can't be written, or already holds a key.
    """
    files = TlsFiles.in_folder(folder)
    if files.key.exists():
        raise ConfigError(f"{files.key} exists already; give another --out or remove it first")
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = _name("crossrec throw-away authority")
    ca = _authority(ca_name, ca_key)
    server = _server_certificate(ca_name, ca_key, server_key, hosts)
    pem = serialization.Encoding.PEM
    private = server_key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(files.ca, ca.public_bytes(pem), 0o644)
        _write(files.certificate, server.public_bytes(pem), 0o644)
        _write(files.key, private, 0o600)
    except OSError as error:
        raise ConfigError(
            f"can't write TLS files in {folder}: {error.strerror}; give another --out"
        ) from None
    return files


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _authority(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
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
        _builder(name, name)
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
        _builder(_name("crossrec coordinator"), issuer)
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


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write through a temporary name, so that no half-written file has the real one."""
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
