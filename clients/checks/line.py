"""Checks of the way to the coordinator: from the address to its answer, its clock and its versions."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from clients.connection import PROBE_TIMEOUT_S, Endpoint, NotThereError, fetch_notice, probe
from crossrec_model.checkup import Finding, fail, ok, refused, unchecked, warn
from crossrec_model.checkup_certificates import CERTIFICATES, read_certificate, validity
from crossrec_model.checkup_machine import Clock, skew
from crossrec_model.errors import ConfigError, ConnectionRefusedByPeerError
from crossrec_model.federation_files import Versions, told_versions

_MOST_ANSWER: Final = 1 << 16
_NEW_INVITATION: Final = "ask the coordinator's operator for a new invitation"
_RENEW: Final = "ask the coordinator's operator to renew it"
_TOO_MANY: Final = 429


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What came back from /health."""

    status: int
    date: str | None
    body: bytes


def authority(ca: Path | None, now: Clock) -> Iterator[Finding]:
    """Whether the federation's ca.pem can be read and is in date."""
    if ca is None:
        found = "there is no ca.pem, so every authority of this system is trusted"
        yield warn(CERTIFICATES, found, f"{_NEW_INVITATION}, or give --ca")
        return
    certificate = read_certificate(ca, _NEW_INVITATION)
    yield validity(ca.name, certificate, now(), _NEW_INVITATION)


def line(
    address: str | None,
    ca: Path | None,
    *,
    pinned: Versions,
    now: Clock,
    introduction: Callable[[], dict[str, str]] | None = None,
) -> Iterator[Finding]:
    """Go to the coordinator step by step; the first step that fails is the last one that is told.

    Args:
        address: HOST:PORT, None if none is known.
        ca: the federation's authority; None to trust the system's.
        pinned: versions of the roster and plan that this platform trusts.
        now: this machine's clock.
        introduction: makes the headers with which this platform shows who it is; None if it can't.
    """
    if address is None:
        yield fail("address", "no address is known", f"give --server, or {_NEW_INVITATION}")
        return
    answer = yield from _went(Endpoint(address=address), ca, now)
    if answer is None:
        yield unchecked("clock", "the coordinator's could not be asked", "the way to it")
        return
    yield _clock(answer, now())
    yield from _told(Endpoint(address=address, ca=ca), pinned, introduction)


def _went(
    endpoint: Endpoint, ca: Path | None, now: Clock
) -> Generator[Finding, None, _Answer | None]:
    connected = yield from _reached(endpoint)
    if connected is None:
        return None
    with closing(connected):
        secure = yield from _secured(endpoint.address, ca, connected)
    if secure is None:
        return None
    with closing(secure):
        certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
        yield validity("the coordinator's certificate", certificate, now(), _RENEW)
        return (yield from _asked(endpoint, secure))


def _reached(endpoint: Endpoint) -> Generator[Finding, None, socket.socket | None]:
    host, port, where = endpoint.host, int(endpoint.port), endpoint.address
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        found = f"{host} does not resolve ({error.strerror or error})"
        yield fail("address", found, "check its spelling and this machine's DNS")
        return None
    try:
        connected = socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S)
    except ConnectionRefusedError:
        found = f"nothing listens at {where}"
        yield fail("address", found, "start the coordinator, or check the port")
    except TimeoutError:
        found = f"{where} does not answer within {PROBE_TIMEOUT_S:g} s"
        yield fail("address", found, "check the firewalls on the way and whether the machine is on")
    except OSError as error:
        found = f"{where} can't be reached ({error.strerror or error})"
        yield fail("address", found, "check this machine's network and routes")
    else:
        yield ok("address", f"{where} is reachable at {connected.getpeername()[0]}")
        return connected
    return None


def _secured(
    address: str, ca: Path | None, connected: socket.socket
) -> Generator[Finding, None, ssl.SSLSocket | None]:
    try:
        endpoint = Endpoint(address=address, ca=ca)
        context = endpoint.context()
    except ConfigError as error:
        yield refused("TLS", error)
        return None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        secure = context.wrap_socket(connected, server_hostname=endpoint.host)
    except OSError as error:
        yield _why_not(endpoint, error)
        return None
    trusted = f"by {ca.name}" if ca else "by this system's authorities"
    yield ok(
        "TLS", f"{secure.version()}, and the certificate for {endpoint.host} verifies {trusted}"
    )
    return secure


def _why_not(endpoint: Endpoint, error: OSError) -> Finding:
    """Say why there was no handshake in the words that a platform would end with."""
    try:
        probe(endpoint)
    except ConnectionRefusedByPeerError as reason:
        return refused("TLS", reason)
    except NotThereError as reason:
        found = f"{endpoint.address} broke off the handshake ({reason})"
        return fail("TLS", found, "see the coordinator's log, and run this again")
    why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    found = f"no handshake of TLS 1.3 with {endpoint.address} ({why})"
    return fail("TLS", found, "update the coordinator, or take away what stands before it")


def _asked(endpoint: Endpoint, secure: ssl.SSLSocket) -> Generator[Finding, None, _Answer | None]:
    client = http.client.HTTPConnection(endpoint.host, int(endpoint.port))
    client.sock = secure
    try:
        client.request("GET", "/health")
        response = client.getresponse()
        date, body = response.getheader("Date"), response.read(_MOST_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        found = f"{endpoint.address} does not answer as a coordinator ({type(error).__name__})"
        yield fail("health", found, "check the address, then the coordinator's log")
        return None
    status = response.status
    if status == http.HTTPStatus.OK:
        yield ok("health", "the coordinator answers")
    elif status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or status == _TOO_MANY:
        yield warn("health", f"the coordinator answered {status}", "wait, and run this again")
    else:
        found = f"{endpoint.address} answered {status}: no coordinator listens there"
        yield fail("health", found, "check the address")
    return _Answer(status=status, date=date, body=body)


def _clock(answer: _Answer, now: datetime) -> Finding:
    try:
        reference = parsedate_to_datetime(answer.date or "")
    except (ValueError, TypeError):
        return unchecked("clock", "the coordinator's answer bears no time", "the coordinator")
    if reference.tzinfo is None:
        reference = reference.replace(tzinfo=UTC)
    return skew(reference, now, "the coordinator")


def _told(
    endpoint: Endpoint, pinned: Versions, introduction: Callable[[], dict[str, str]] | None
) -> Iterator[Finding]:
    """Show who we are, and compare what the coordinator tells those whom it knows."""
    if introduction is None:
        return
    try:
        notice = fetch_notice(endpoint, introduction())
    except (ConnectionRefusedByPeerError, NotThereError) as error:
        yield fail("admission", str(error), "see what it says, or call the coordinator's operator")
        return
    yield ok("admission", "the coordinator knows this platform by its key")
    yield from versions(told_versions(notice), pinned)


def versions(told: Versions, pinned: Versions) -> Iterator[Finding]:
    """Compare what the coordinator uses with what this platform trusts; no line where unknown."""
    for what in ("roster", "plan"):
        theirs, ours = getattr(told, what), getattr(pinned, what)
        if theirs is None or ours is None:
            continue
        found = f"the coordinator uses version {theirs}, version {ours} is trusted here"
        if theirs > ours:
            yield warn(what, found, "take part: the changes are shown, and asked for, first")
        elif theirs < ours:
            yield fail(
                what, found, "call the coordinator's operator: its latest files must be used"
            )
        else:
            yield ok(what, f"the coordinator uses version {theirs} too")
