"""The way to the coordinator: each thing that can stand in it has its own line and remedy."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from doctor_folders import DAY, Authority, Federation, coordinator, now, told

from clients import connection
from clients.checks import line as lines
from clients.checks.line import authority, line
from clients.connection import Endpoint
from crossrec_model.checkup import Finding
from crossrec_model.errors import ConfigError
from crossrec_model.federation_files import Versions
from server.tls import TlsFiles


def _line(port: int, ca: Path | None, host: str = "127.0.0.1", **more: object) -> list[Finding]:
    chosen = {"pinned": Versions(), "now": now} | more
    return list(line(f"{host}:{port}", ca, **chosen))  # type: ignore[arg-type]


def test_a_coordinator_that_is_well(federation: Federation) -> None:
    with coordinator(federation.tls) as port:
        findings = _line(port, federation.tls.ca)
    assert {f.level for f in findings} == {"ok"}
    assert [f.what for f in findings] == ["address", "TLS", "certificates", "health", "clock"]
    assert "TLSv1.3, and the certificate for 127.0.0.1 verifies by ca.pem" in findings[1].found


def test_no_address_and_one_that_is_none(federation: Federation) -> None:
    (finding,) = line(None, None, pinned=Versions(), now=now)
    assert (finding.level, finding.found) == ("fail", "no address is known")
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        _line(0, None)
    with pytest.raises(ConfigError, match="plain HTTP"):
        _line(1, None, host="http://127.0.0.1")


def test_nothing_listens(federation: Federation) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        findings = _line(free.getsockname()[1], federation.tls.ca)
    level, text = told(findings, "address")
    assert level == "fail"
    assert "nothing listens at 127.0.0.1" in text
    assert "start the coordinator" in text
    # What could not be looked at is said, not passed over.
    assert told(findings, "clock")[0] == "warn"
    assert "TLS" not in {f.what for f in findings}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError("timed out"), "does not answer within 5 s; check the firewalls"),
        (OSError(101, "Network is unreachable"), "can't be reached (Network is unreachable)"),
    ],
)
def test_a_network_that_does_not_carry(
    monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", broken)
    assert words in told(_line(9, None), "address")[1]


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object, **_named: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    level, text = told(_line(9, None, host="shop.example"), "address")
    assert level == "fail"
    assert "shop.example does not resolve (Name or service not known); check its spelling" in text


def test_a_plain_http_port(federation: Federation) -> None:
    with coordinator(None) as port:
        level, text = told(_line(port, federation.tls.ca), "TLS")
    assert level == "fail"
    assert "does not speak TLS" in text


def test_a_coordinator_of_another_authority(federation: Federation, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with coordinator(Authority.make().write(other)) as port:
        level, text = told(_line(port, federation.tls.ca), "TLS")
        assert level == "fail"
        assert "did not sign the certificate" in text
        # The system's authorities did not either.
        assert told(_line(port, None), "TLS")[0] == "fail"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"names": ("shop.example.org",)}, "has a certificate for another name"),
        ({"first": now() - 9 * DAY, "last": now() - DAY}, "has a certificate that is out of date"),
        ({"first": now() + DAY, "last": now() + 9 * DAY}, "has a certificate that is out of date"),
    ],
)
def test_a_certificate_that_does_not_hold(
    federation: Federation, how: dict[str, object], words: str
) -> None:
    with coordinator(federation.authority.write(federation.folder, **how)) as port:
        findings = _line(port, federation.tls.ca)
    level, text = told(findings, "TLS")
    assert level == "fail"
    assert words in text
    assert findings[-1].what == "clock"


def test_a_certificate_that_expires_soon(federation: Federation) -> None:
    tls = federation.authority.write(federation.folder, last=now() + 3 * DAY)
    with coordinator(tls) as port:
        level, text = told(_line(port, tls.ca), "certificates")
    assert level == "warn"
    assert "the coordinator's certificate expires on" in text
    assert "ask the coordinator's operator to renew it" in text


@contextmanager
def _old(tls: TlsFiles) -> Iterator[int]:
    """Answer two callers in TLS 1.2, which the first of them refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def answer() -> None:
        for _ in range(2):
            plain, _address = listener.accept()
            with plain:
                try:
                    with context.wrap_socket(plain, server_side=True) as secure:
                        secure.recv(4096)
                        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    continue

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(20)
        listener.close()


def test_tls_1_2_is_not_enough(federation: Federation) -> None:
    with _old(federation.tls) as port:
        level, text = told(_line(port, federation.tls.ca), "TLS")
    assert level == "fail"
    assert "does not speak TLS 1.3" in text


def test_a_port_that_stays_silent(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connection, lines):
        monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        level, text = told(_line(silent.getsockname()[1], federation.tls.ca), "TLS")
    assert level == "fail"
    assert "broke off the handshake" in text
    assert "timed out" in text


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [
        (200, "ok", "the coordinator answers"),
        (429, "warn", "answered 429; wait"),
        (503, "warn", "answered 503; wait"),
        (404, "fail", "answered 404: no coordinator listens there; check the address"),
    ],
)
def test_health(federation: Federation, status: int, level: str, words: str) -> None:
    with coordinator(federation.tls, status) as port:
        found = told(_line(port, federation.tls.ca), "health")
    assert found[0] == level
    assert words in found[1]


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, "ok"), (120, "warn"), (-120, "warn"), (3600, "fail")]
)
def test_a_clock_that_is_shifted(federation: Federation, seconds: int, level: str) -> None:
    with coordinator(federation.tls) as port:
        findings = _line(port, federation.tls.ca, now=lambda: now() + timedelta(seconds=seconds))
    assert told(findings, "clock")[0] == level


@contextmanager
def _answering(tls: TlsFiles, answer: bytes) -> Iterator[int]:
    """Send these bytes to one caller, whatever it asks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def send() -> None:
        plain, _address = listener.accept()
        with plain, context.wrap_socket(plain, server_side=True) as secure:
            secure.recv(4096)
            secure.sendall(answer)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(20)
        listener.close()


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"


@pytest.mark.parametrize(
    ("answer", "what", "words"),
    [
        (b"SSH-2.0-x\r\n", "health", "does not answer as a coordinator (BadStatusLine)"),
        (_HEAD + b"\r\n", "clock", "not checked: the coordinator's answer bears no time"),
        (_HEAD + b"Date: soon\r\n\r\n", "clock", "not checked"),
        (_HEAD + b"Date: Sat, 01 Jan 2000 00:00:00 -0000\r\n\r\n", "clock", "beyond 240 s"),
    ],
)
def test_strange_answers(federation: Federation, answer: bytes, what: str, words: str) -> None:
    with _answering(federation.tls, answer) as port:
        level, text = told(_line(port, federation.tls.ca), what)
    assert level != "ok"
    assert words in text


@pytest.mark.parametrize(("version", "level"), [(3, "ok"), (4, "warn"), (2, "fail")])
def test_versions_against_the_coordinator_s(
    federation: Federation, version: int, level: str
) -> None:
    body = federation.notice(version)
    with coordinator(federation.tls, body=body) as port:
        findings = _line(
            port, federation.tls.ca, pinned=Versions(roster=3, plan=1), introduction=dict
        )
    assert told(findings, "admission")[0] == "ok"
    assert told(findings, "roster")[0] == level
    assert told(findings, "plan")[0] == "ok"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"roster": "3"}', b"[" * 9999])
def test_a_coordinator_that_tells_no_versions(federation: Federation, body: bytes) -> None:
    with coordinator(federation.tls, body=body) as port:
        findings = _line(
            port, federation.tls.ca, pinned=Versions(roster=3, plan=1), introduction=dict
        )
    shown = {"address", "TLS", "certificates", "health", "clock", "admission"}
    assert {f.what for f in findings} == shown


def test_a_platform_that_the_coordinator_does_not_know(federation: Federation) -> None:
    with coordinator(federation.tls, status=403) as port:
        connected = Endpoint(address=f"127.0.0.1:{port}", ca=federation.tls.ca)
        (finding,) = lines._told(connected, Versions(), dict)
    assert (finding.level, finding.what) == ("fail", "admission")


def test_the_authority_s_own_certificate(tmp_path: Path) -> None:
    (finding,) = authority(None, now)
    assert (finding.level, finding.what) == ("warn", "certificates")
    for last, level in ((400 * DAY, "ok"), (9 * DAY, "warn"), (-DAY, "fail")):
        tls = Authority.make(now() - 9 * DAY, now() + last).write(tmp_path)
        (finding,) = authority(tls.ca, now)
        assert finding.level == level
        assert "ca.pem" in finding.found


def test_a_ca_file_that_is_none_stops_at_tls(federation: Federation, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("nothing", encoding="utf-8")
    with coordinator(federation.tls) as port:
        findings = _line(port, ca)
    assert told(findings, "address")[0] == "ok"
    assert "can't be read as a PEM certificate" in told(findings, "TLS")[1]
