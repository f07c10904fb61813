"""The connection policy: what is tried again, what ends at once, and what leaves a platform."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from clients import connection
from clients.connection import (
    ABREAST,
    EAGER_S,
    POLL_S,
    Endpoint,
    NotThereError,
    abreast,
    answer,
    pause_after,
    probe,
    wait_for_coordinator,
)
from crossrec_model.errors import ConfigError, ConnectionRefusedByPeerError, DataError
from crossrec_model.wire import messages as wire
from server.listener import bind, serving
from server.tls import TlsFiles, make_certificates


def _ack(_payload: bytes) -> bytes:
    return wire.encode(wire.Ack())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"address": "example.org"}, "is not HOST:PORT"),
        ({"address": ":9092"}, "is not HOST:PORT"),
        ({"address": "example.org:0"}, "is not HOST:PORT"),
        ({"address": "example.org:99999"}, "is not HOST:PORT"),
        ({"address": "example.org:\u00b2"}, "is not HOST:PORT"),
        ({"address": "shop..example:9092"}, "is not HOST:PORT"),
        ({"address": f"{'a' * 70}.example:9092"}, "is not HOST:PORT"),
        ({"address": "http://example.org:9092"}, "plain HTTP, which anyone on the way can read"),
        ({"address": "e:1", "ca": Path("/nowhere/ca.pem")}, "can't be read as a PEM certificate"),
        ({"address": "e:1", "ca": Path(__file__)}, "can't be read as a PEM certificate"),
        ({"address": "e:1", "ca": Path(__file__), "insecure": True}, "exclude each other"),
    ],
)
def test_an_endpoint_that_can_not_work_is_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Endpoint(**settings)  # type: ignore[arg-type]


def test_an_endpoint_takes_schemes_and_ipv6() -> None:
    assert Endpoint(address="https://example.org:9092/").address == "example.org:9092"
    assert Endpoint(address="http://example.org:1", insecure=True).address == "example.org:1"
    six = Endpoint(address="[::1]:9092")
    assert (six.host, six.port) == ("::1", "9092")


@contextmanager
def _health(status: int, tls: TlsFiles | None) -> Iterator[str]:
    async def application(scope: object, receive: object, send: object) -> None:
        if scope["type"] == "lifespan":  # type: ignore[index]
            return
        head = {"type": "http.response.start", "status": status, "headers": []}
        await send(head)  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    with bind("127.0.0.1", 0) as listener, serving(application, listener, tls):
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_probe_tells_apart_what_a_person_must_mend(tmp_path: Path, tls_files: TlsFiles) -> None:
    with _health(200, tls_files) as address:
        probe(Endpoint(address=address, ca=tls_files.ca))
        other = make_certificates(tmp_path, []).ca
        with pytest.raises(ConnectionRefusedByPeerError, match="did not sign the certificate"):
            probe(Endpoint(address=address, ca=other))
        with pytest.raises(ConnectionRefusedByPeerError, match="the system's authorities did not"):
            probe(Endpoint(address=address))
        with pytest.raises(ConnectionRefusedByPeerError, match="it may expect TLS: give --ca"):
            probe(Endpoint(address=address, insecure=True))
    with _health(503, tls_files) as address, pytest.raises(NotThereError, match="answered 503"):
        probe(Endpoint(address=address, ca=tls_files.ca))
    with _health(404, None) as address:
        with pytest.raises(ConnectionRefusedByPeerError, match="answered 404: no coordinator"):
            probe(Endpoint(address=address, insecure=True))
        with pytest.raises(ConnectionRefusedByPeerError, match="does not speak TLS"):
            probe(Endpoint(address=address, ca=tls_files.ca))


def test_a_certificate_for_another_name_names_the_remedy(tls_files: TlsFiles) -> None:
    with bind("127.0.0.2", 0) as listener:

        async def application(scope: object, receive: object, send: object) -> None: ...

        with serving(application, listener, tls_files):
            address = f"127.0.0.2:{listener.getsockname()[1]}"
            with pytest.raises(
                ConnectionRefusedByPeerError,
                match=r"certificate for another name; .* certificates --host 127\.0\.0\.2",
            ):
                probe(Endpoint(address=address, ca=tls_files.ca))


def test_a_peer_that_hangs_or_hangs_up_is_not_taken_for_a_coordinator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "PROBE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(NotThereError, match="timed out"):
            probe(Endpoint(address=address, insecure=True))

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises((NotThereError, ConnectionRefusedByPeerError)):
            probe(Endpoint(address=address, insecure=True))
        thread.join()


@pytest.mark.parametrize("after", [0, 200])
def test_a_line_that_is_cut_is_tried_again(tls_files: TlsFiles, after: int) -> None:
    """In the handshake, or with a part of the answer to it on the way."""
    with _health(200, tls_files) as address, socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            near = listener.accept()[0]
            host, _, port = address.partition(":")
            with near, socket.create_connection((host, int(port))) as far:
                near.recv(1)
                if after:
                    far.sendall(b"\x16" + near.recv(4096))
                    near.sendall(far.recv(after))

        thread = threading.Thread(target=cut)
        thread.start()
        cut_address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(NotThereError):
            probe(Endpoint(address=cut_address, ca=tls_files.ca))
        thread.join()


def test_a_coordinator_that_is_killed_while_it_is_asked_is_tried_again(tls_files: TlsFiles) -> None:
    """The handshake is done and the question is sent, but no answer comes."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls_files.certificate, tls_files.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as near:
                near.recv(4096)

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(NotThereError):
            probe(Endpoint(address=address, ca=tls_files.ca))
        thread.join()


def test_a_coordinator_that_counts_too_many_requests_is_asked_again(tls_files: TlsFiles) -> None:
    with _health(429, tls_files) as address, pytest.raises(NotThereError, match="answered 429"):
        probe(Endpoint(address=address, ca=tls_files.ca))


def test_waiting_reports_each_reason_once_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSE_S", (0.001, 0.002))
    reasons = iter(["refused", "refused", "answered 503", "refused"])
    lines: list[str] = []

    def attempt(_endpoint: Endpoint) -> None:
        if reason := next(reasons, None):
            raise NotThereError(reason)

    where = Endpoint(address="example.org:9092")
    wait_for_coordinator(where, timeout_s=30, report=lines.append, attempt=attempt)
    assert [line.split("(")[1].split(")")[0] for line in lines] == [
        "refused",
        "answered 503",
        "refused",
    ]

    def never(_endpoint: Endpoint) -> None:
        raise NotThereError("refused")

    with pytest.raises(ConnectionRefusedByPeerError, match=r"not there for 0\.05 s \(refused\)"):
        wait_for_coordinator(where, timeout_s=0.05, report=lines.append, attempt=never)


def test_only_codes_leave_a_platform_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(_payload: bytes) -> bytes:
        raise ZeroDivisionError("user 17 bought nothing")

    ack = wire.encode(wire.Ack())
    result = answer(faulty, ack)
    assert result.payload == wire.encode(wire.Failure(code=wire.FailureCode.INTERNAL))
    assert not result.last
    assert "user 17 bought nothing" in caplog.text
    result = answer(faulty, b"rubbish")
    assert result.payload == wire.encode(wire.Failure(code=wire.FailureCode.MALFORMED))
    assert not result.last


def test_an_operators_mistake_ends_the_platform_with_its_line() -> None:
    def refuses(_payload: bytes) -> bytes:
        raise DataError("column user_id is missing")

    welcome = wire.encode(wire.Welcome(plan=b"{}"))
    result = answer(refuses, welcome)
    assert result.payload == wire.encode(wire.Failure(code=wire.FailureCode.PLAN_REFUSED))
    assert result.last
    assert isinstance(result.error, DataError)


def test_a_refusal_another_version_and_the_end_are_recognised() -> None:
    refused = answer(_ack, wire.encode(wire.Refuse(reason="id A is taken")))
    assert refused.last
    assert str(refused.error) == "the coordinator refused: id A is taken"
    other = bytearray(wire.encode(wire.Ack()))
    other[4] = 77
    version = answer(_ack, bytes(other))
    assert version.payload == wire.encode(wire.Failure(code=wire.FailureCode.OTHER_VERSION))
    assert version.last
    assert "protocol version is 77" in str(version.error)
    final = wire.Finish(run=bytes(16), round=1, parameters=np.zeros(1, np.float32))
    assert answer(_ack, wire.encode(final)).last
    assert answer(_ack, wire.encode(final)).error is None
    assert not answer(_ack, wire.encode(wire.Hello(session=bytes(16)))).last


def test_polls_follow_quickly_after_an_answer_and_slow_down_later() -> None:
    assert {pause_after(idle, 0.001) for idle in (0.0, 1.0, EAGER_S)} == {POLL_S[0]}
    pauses = [pause_after(EAGER_S + idle, 0.001) for idle in (0.1, 1.0, 2.0, 60.0)]
    assert pauses == [POLL_S[0], pytest.approx(0.1), pytest.approx(0.2), POLL_S[1]]
    # A coordinator that needs long to answer is not asked all the time.
    assert pause_after(0.0, 0.2) == 0.2
    assert pause_after(0.0, 9.0) == POLL_S[1]


def test_few_run_abreast_and_results_keep_their_order() -> None:
    started: list[str] = []
    go = threading.Event()

    def work(name: str) -> str:
        started.append(name)
        go.wait(10)
        return name.upper()

    results = abreast(work, "abcdef")
    first = threading.Timer(0.2, go.set)
    first.start()
    assert next(results) == "A"
    first.join()
    time.sleep(0.1)
    assert len(started) == ABREAST
    assert list(results) == list("BCDEF")

    def faulty(name: str) -> str:
        if name == "b":
            raise ZeroDivisionError
        return name

    results = abreast(faulty, "abc")
    assert next(results) == "a"
    with pytest.raises(ZeroDivisionError):
        list(results)
