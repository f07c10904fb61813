"""Checks of where the coordinator works: its port, its checkpoints, its disk, its clock, its records."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from crossrec_model.checkup import Finding, fail, ok, unchecked, warn
from crossrec_model.checkup_certificates import read_certificate
from crossrec_model.checkup_machine import SKEW_WARN, Clock, disk, held, private_files, size_of
from crossrec_model.errors import ConfigError
from crossrec_model.federation_files import PLAN, read_plan
from server.checkpoint import KEPT, CheckpointStore
from server.checks.papers import CA_KEY, roster_of, settings_of
from server.folder import Settings
from server.rosters import KEY
from server.tls import TlsFiles

STATE: Final = "state"
CHECKPOINTS: Final = "checkpoints"
#: The log, the database and the audit log beside the checkpoints.
_SLACK: Final = 64 << 20
_TIMEOUT_S: Final = 5.0
#: Modules that may offer `checkup(folder: Path) -> str`: what is well, or a CrossrecError.
RECORDS: Final[Mapping[str, str]] = {"state": "server.store", "audit": "server.audit"}


def files(folder: Path) -> Iterator[Finding]:
    """Whether the folder and its keys are this user's alone, and whether a coordinator runs."""
    keys = (folder / CA_KEY, TlsFiles.in_folder(folder).key, folder / KEY)
    yield from private_files("folder", folder, keys)
    if held(folder / STATE / "lock"):
        yield ok("folder", "a coordinator runs on it now")


def port(folder: Path) -> Iterator[Finding]:
    """Whether the port is free, or held by our own coordinator, and the public host is known here."""
    settings = settings_of(folder)
    if settings is None:
        yield unchecked("port", "it is not known", "the line settings")
        return
    yield _host(settings.host, settings.port)
    number, other = settings.port, "stop what holds it, or give another port in federation.toml"
    try:
        _bind(number)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            found = f"port {number} can't be used ({error.strerror})"
            yield fail("port", found, "give one above 1023 in federation.toml")
            return
    else:
        yield ok("port", f"{number} is free")
        return
    yield _holder(settings, TlsFiles.in_folder(folder), other)


def _holder(settings: Settings, tls: TlsFiles, otherwise: str) -> Finding:
    """Tell our own coordinator from whatever else holds the port, by the certificate it shows."""
    number = settings.port
    server, ca = (read_certificate(path, "restore it") for path in (tls.certificate, tls.ca))
    shown = _shown((settings.host, "127.0.0.1"), number)
    if shown == server:
        return ok("port", f"{number} is held by our own coordinator")
    with suppress(InvalidSignature, ValueError, TypeError):
        if shown is not None:
            shown.verify_directly_issued_by(ca)
            found = f"{number} is held by our coordinator, which shows another one than server.pem"
            return warn("port", found, "start the coordinator again to use the new certificate")
    return fail("port", f"{number} is held by something else than our coordinator", otherwise)


def _host(host: str, port: int) -> Finding:
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        found = f"{host} does not resolve here ({getattr(error, 'strerror', None) or error})"
        return warn("address", found, "check host in federation.toml: platforms connect to it")
    return ok("address", f"{host} resolves")


def _bind(number: int) -> None:
    """Raise OSError unless the port could be listened on; nobody can connect meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", number))


def _shown(hosts: tuple[str, ...], number: int) -> x509.Certificate | None:
    """The certificate of who listens, None if there is no TLS."""
    # Not verified here: that it is the very one on disk, or of our authority, is what is looked at.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for host in dict.fromkeys(hosts):
        try:
            with socket.create_connection((host, number), timeout=_TIMEOUT_S) as plain:
                with context.wrap_socket(plain) as secure:
                    shown = secure.getpeercert(binary_form=True)
        except (OSError, UnicodeError):
            continue
        return x509.load_der_x509_certificate(shown) if shown else None
    return None


def checkpoints(folder: Path) -> Iterator[Finding]:
    """Whether the newest checkpoint loads and its checksum holds; raises FederationError if not."""
    last = max((folder / STATE / CHECKPOINTS).glob("round-*.json"), default=None)
    for path in (last, last.with_suffix(".safetensors")) if last else ():
        if path.exists() and not path.is_file():
            yield fail("checkpoints", f"{path} is no plain file", "move it away")
            return
    try:
        newest = CheckpointStore(folder / STATE).latest()
    except RecursionError:
        found = f"checkpoint {last} is damaged"
        yield fail("checkpoints", found, "remove it to resume from the one before it")
        return
    if newest is None:
        yield ok("checkpoints", "there is none yet: a run starts from the beginning")
        return
    rounds = newest.plan.federation.rounds
    run = f"run {newest.run.hex()[:8]}"
    yield ok("checkpoints", f"{run}: round {newest.round} of {rounds} is whole")


def room(folder: Path) -> Iterator[Finding]:
    """Whether the next checkpoints fit on the disk: as many as are kept, and one that is being written."""
    place = folder / STATE
    newest = max((place / CHECKPOINTS).glob("round-*.json"), default=None)
    there = (newest, newest.with_suffix(".safetensors")) if newest else ()
    one = size_of(*there) if there else _expected(folder)
    yield disk(place, (KEPT + 1) * one + _SLACK, "checkpoints")


def _expected(folder: Path) -> int:
    """Bytes of a checkpoint of the plan: the model and at most two vectors of the optimiser."""
    from crossrec_model.config import Plan
    from crossrec_model.parameters import Layout

    listed = roster_of(folder)
    try:
        signed = read_plan(folder / PLAN, listed.signer) if listed else None
    except ConfigError:
        signed = None
    return 3 * 4 * Layout((signed.plan if signed else Plan()).model).size


def clock(folder: Path, now: Clock) -> Iterator[Finding]:
    """Whether the clock went back: behind the certificates, or behind the newest checkpoint."""
    moment = now()
    tls = TlsFiles.in_folder(folder)
    remedy = "set the clock by a time server, e.g. timedatectl set-ntp true"
    for path in (tls.ca, tls.certificate):
        try:
            first = read_certificate(path, remedy).not_valid_before_utc
        except ConfigError:
            continue  # told among the certificates
        if moment < first:
            found = f"this clock says {moment:%Y-%m-%d %H:%M} UTC, {path.name} was made later"
            yield fail("clock", found, remedy)
            return
    times = [p.stat().st_mtime for p in (folder / STATE / CHECKPOINTS).glob("round-*.json")]
    newest = datetime.fromtimestamp(max(times, default=0.0), UTC)
    if newest > moment + SKEW_WARN:
        ahead = (newest - moment).total_seconds()
        yield warn(
            "clock", f"the newest checkpoint was written {ahead:.0f} s in its future", remedy
        )
        return
    yield ok("clock", f"{moment:%Y-%m-%d %H:%M} UTC, not before what is in the folder")


def records(what: str, folder: Path, module: str) -> Iterator[Finding]:
    """What a module's own `checkup(folder)` says; no line where there is no such module."""
    if importlib.util.find_spec(module) is None:
        return
    look = getattr(importlib.import_module(module), "checkup", None)
    if look is not None:
        yield ok(what, look(folder))
