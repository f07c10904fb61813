"""Checks of X.509 certificates: readable, in date, good for a host."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from crossrec_model.checkup import Finding, fail, ok, warn
from crossrec_model.errors import ConfigError
from crossrec_model.keyfile import read_small

CERTIFICATES: Final = "certificates"
#: An expiry nearer than this is warned of.
SOON: Final = timedelta(days=30)


def read_certificate(path: Path, remedy: str) -> x509.Certificate:
    """Read a PEM certificate, the first one in the file.

    Raises:
        ConfigError: if there is none that can be read; it ends with `remedy`.
    """
    try:
        return x509.load_pem_x509_certificate(read_small(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; {remedy}") from None
    except (ValueError, x509.InvalidVersion):
        raise ConfigError(f"{path} is no PEM certificate; {remedy}") from None


def validity(name: str, certificate: x509.Certificate, now: datetime, remedy: str) -> Finding:
    """Whether `name` is in date; `remedy` says how to get a new one."""
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        return fail(
            CERTIFICATES,
            f"{name} is not good before {first:%Y-%m-%d %H:%M} UTC, this clock says "
            f"{now:%Y-%m-%d %H:%M}",
            "set this machine's clock",
        )
    if now > last:
        return fail(
            CERTIFICATES, f"{name} expired on {last:%Y-%m-%d} ({_days(now - last)} ago)", remedy
        )
    left = f"{last:%Y-%m-%d} ({_days(last - now)})"
    if last - now < SOON:
        return warn(CERTIFICATES, f"{name} expires on {left}", remedy)
    return ok(CERTIFICATES, f"{name} is good until {left}")


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate is good for a host, by its alternative names (RFC 9525, 6.3)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass
    try:
        wanted = host.encode("idna").decode().lower().rstrip(".")
    except UnicodeError:
        return False
    known = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return wanted in known or f"*.{wanted.partition('.')[2]}" in known


def _days(span: timedelta) -> str:
    return "1 day" if span.days == 1 else f"{span.days} days"
