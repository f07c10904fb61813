"""The door as the network meets it: over TLS, with Flower's application behind it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import httpx
import pytest

from clients.connection import Endpoint, NotThereError, probe
from clients.flower import (
    FleetHttpClient,
    NodeAuthHttpInterceptor,
    _Session,
    fleet,
    generate_key_pairs,
    public_key_to_bytes,
    serve,
)
from clients.passport import Passport
from crossrec_model.errors import ConnectionRefusedByPeerError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.node_pass import HEADER, NodePass, federation_of
from crossrec_model.secagg.roster import Roster
from server import http_heads
from server.courier import NodeId
from server.doorkeeper import BURST, KEY_HEADER, SESSIONS, Doorkeeper
from server.flower import Link
from server.listener import bind, serving
from server.tls import TlsFiles

KEYS = {name: IdentityKey.generate(SystemRandomness()) for name in "ABC"}
SIGNER = IdentityKey.generate(SystemRandomness())
ROSTER = Roster(
    federation="north",
    version=1,
    members=tuple(Member(name, key.public) for name, key in KEYS.items()),
    signer=SIGNER.public,
)


ALWAYS = (("host", "x"), ("connection", "close"))


@dataclass
class Door:
    """A coordinator's port, and what was written down of refusals."""

    link: Link
    keeper: Doorkeeper
    port: int
    tls: TlsFiles
    audited: list[tuple[str, str, str]] = field(default_factory=list)
    rosters: list[Roster] = field(default_factory=list)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(address=f"127.0.0.1:{self.port}", ca=self.tls.ca)

    @contextmanager
    def line(self) -> Iterator[ssl.SSLSocket]:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        with self.endpoint.context().wrap_socket(raw, server_hostname="127.0.0.1") as line:
            yield line

    def ask(self, *headers: tuple[str, str], path: str = "/federation") -> bytes:
        head = "".join(f"{name}: {value}\r\n" for name, value in (*ALWAYS, *headers))
        with self.line() as line:
            line.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
            return _all_of(line)


def _all_of(line: ssl.SSLSocket) -> bytes:
    found = b""
    try:
        while piece := line.recv(65536):
            found += piece
    except TimeoutError:
        raise  # it was not let go
    except OSError:
        pass
    return found


@pytest.fixture
def door(tls_files: TlsFiles) -> Iterator[Door]:
    audited: list[tuple[str, str, str]] = []
    rosters = [ROSTER]
    keeper = Doorkeeper(lambda: rosters[-1], audit=lambda *entry: audited.append(entry))
    link = Link(keeper, lambda: b"north")
    with bind("127.0.0.1", 0) as listener, serving(link.application, listener, tls_files):
        yield Door(link, keeper, listener.getsockname()[1], tls_files, audited, rosters)


def _shown(platform: str, node: bytes) -> tuple[tuple[str, str], ...]:
    now = int(time.time())
    given = NodePass.issue(platform, KEYS[platform], federation_of(ROSTER), node, now)
    return (KEY_HEADER, b64encode(node).decode()), (HEADER, given.to_header())


class _TwoKeys:
    """Shows Flower one key and the door another."""

    def __init__(self, headers: tuple[tuple[str, str], ...]) -> None:
        self._headers = headers

    def intercept(self, context, call_next):  # type: ignore[no-untyped-def]
        raw = context.request.headers.raw
        more = [(name.encode(), value.encode()) for name, value in self._headers]
        context.request.headers = httpx.Headers([*raw, *more])
        return call_next(context)


def _register(
    door: Door, headers: tuple[tuple[str, str], ...], keys: tuple | None = None
) -> NodeId:
    private, public = keys or generate_key_pairs()
    key = public_key_to_bytes(public)
    with FleetHttpClient.from_server_address(
        f"127.0.0.1:{door.port}",
        False,
        door.tls.ca.read_bytes(),
        interceptors=[NodeAuthHttpInterceptor(private, public), _TwoKeys(headers)],
    ) as client:
        client.RegisterNode(fleet.RegisterNodeFleetRequest(public_key=key))
        request = fleet.ActivateNodeRequest(public_key=key, heartbeat_interval=10.0)
        return NodeId(client.ActivateNode(request).node_id)


def test_the_door_and_flower_never_read_two_different_keys(door: Door) -> None:
    shown = _shown("B", b"the key that the door looks at")
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        _register(door, shown)
    for twice in (("content-length", "0"), ("crossrec-pass", "x"), ("Flwr-Public-Key", "x")):
        assert b"HTTP/1.1 400" in door.ask(*shown, twice, twice)


def test_a_node_whose_pass_was_forgotten_is_nobodys(door: Door) -> None:
    keys = generate_key_pairs()
    node = _register(door, _shown("B", public_key_to_bytes(keys[1]))[1:], keys)
    assert door.link._owner(node) == "B"
    for number in range(SESSIONS):
        assert b" 200 " in door.ask(*_shown("B", bytes([number]) * 32))
    with door.link.courier() as courier:
        # Not None: that would mean that nobody knows, and any id would do.
        assert [courier.owner(node), courier.owner(NodeId(1))] == ["", ""]


def test_the_notice_is_for_members_alone(door: Door) -> None:
    assert b"north" in door.ask(*_shown("A", b"n" * 32))
    for headers in ((), _shown("A", b"n" * 31)[:1], _shown("A", b"m" * 32)[1:]):
        answer = door.ask(*headers)
        assert b"HTTP/1.1 401" in answer
        assert b"north" not in answer


def test_nobody_makes_up_the_address_that_he_comes_from(door: Door) -> None:
    door.ask(("x-forwarded-for", "192.0.2.7"))
    assert door.audited == [("no-pass", "", "127.0.0.1")]


def test_a_flood_from_its_address_does_not_end_a_platform(door: Door) -> None:
    for _ in range(int(BURST) + 1):
        door.keeper.strangers_turn("127.0.0.1")
    with pytest.raises(NotThereError, match="429"):
        probe(door.endpoint)


def test_a_head_without_end_is_cut_off(door: Door) -> None:
    with door.line() as line:
        line.sendall(b"GET /health HTTP/1.1\r\nx: ")
        sent = 0
        with suppress(OSError):
            while sent < 64 << 20:
                line.sendall(b"y" * 65536)
                sent += 65536
        # No more than what lay in the sockets' buffers.
        assert sent < 32 << 20
    assert b" 200 " in door.ask(path="/health")


def test_who_sends_no_request_is_let_go(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_heads, "PATIENCE_S", 0.2)
    for start in (b"", b"GET /health HTTP/1.1\r\nx: "):
        with door.line() as line:
            line.sendall(start)
            assert _all_of(line) == b""
    # So is one that was answered and then begins a second request without end.
    with door.line() as line:
        line.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        line.sendall(b"GET /health HTTP/1.1\r\nx: ")
        assert b"HTTP" not in _all_of(line)


def test_who_is_expelled_in_a_session_is_told_so(door: Door) -> None:
    said: list[BaseException] = []
    passport = Passport(
        platform="C", identity=KEYS["C"], roster=lambda: ROSTER, notice=lambda notice: None
    )

    def take_part() -> None:
        try:
            serve(
                lambda frame: (bytes(frame),),
                address=door.endpoint.address,
                ca=door.tls.ca,
                report=lambda line: None,
                passport=passport,
            )
        except ConnectionRefusedByPeerError as error:
            said.append(error)

    with door.link.courier() as courier:
        thread = threading.Thread(target=take_part, daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not courier.nodes():
            assert time.monotonic() < end
            time.sleep(0.02)
        members = (*ROSTER.members[:2], Member("D", SIGNER.public))
        door.rosters.append(replace(ROSTER, version=2, members=members))
        thread.join(20)
    assert not thread.is_alive()
    assert "not, or no longer, on its roster" in str(said[0])


def test_a_session_that_is_slowed_down_is_tried_again(door: Door) -> None:
    now = time.time()
    door.keeper._clock = lambda: now
    for _ in range(int(BURST) + 1):
        door.keeper.strangers_turn("127.0.0.1")
    client = FleetHttpClient.from_server_address(
        door.endpoint.address, False, door.tls.ca.read_bytes(), interceptors=[]
    )
    reported: list[str] = []

    def report(line: str) -> None:
        reported.append(line)
        door.keeper._buckets.clear()

    with client, pytest.raises(httpx.HTTPStatusError, match="401"):
        _Session(client, b"", report)
    assert reported == ["the coordinator does not answer (it answered 429); trying again"]
