"""A link over TLS on loopback with platforms as threads, and nodes without anyone behind them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import numpy as np

# Flower is imported through our adapters only, since they filter the one warning of its import.
from clients import flower as platform_side
from clients.connection import Handler
from clients.flower import (
    FleetHttpClient,
    NodeAuthHttpInterceptor,
    fleet,
    generate_key_pairs,
    public_key_to_bytes,
    serve,
)
from crossrec_model.wire import messages as wire
from server.courier import NodeId
from server.flower import GridCourier, Link
from server.gate import Receive, Scope, Send
from server.listener import bind, serving
from server.tls import TlsFiles

FINISH = wire.encode(wire.Finish(run=bytes(16), round=1, parameters=np.zeros(1, np.float32)))


@dataclass
class Line:
    """An open link, the requests that reached it, and threads that serve."""

    link: Link
    courier: GridCourier
    address: str
    tls: TlsFiles
    paths: list[str]
    threads: list[threading.Thread] = field(default_factory=list)

    def join(self, handle: Handler) -> None:
        arguments = {"address": self.address, "ca": self.tls.ca, "report": lambda _line: None}
        thread = threading.Thread(target=serve, args=(handle,), kwargs=arguments, daemon=True)
        thread.start()
        self.threads.append(thread)

    def wait_for(self, count: int) -> list[NodeId]:
        end = time.monotonic() + 20
        while len(nodes := sorted(self.courier.nodes())) < count:
            assert time.monotonic() < end
            time.sleep(0.02)
        return nodes

    def finish(self) -> None:
        dict(self.courier.exchange(dict.fromkeys(self.courier.nodes(), FINISH), timeout_s=10))
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def open_line(tls: TlsFiles) -> Iterator[Line]:
    link, paths = Link(), []

    async def recording(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope.get("path", ""))
        await link.application(scope, receive, send)

    with bind("127.0.0.1", 0) as listener:
        with serving(recording, listener, tls), link.courier() as courier:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            yield Line(link, courier, address, tls, paths)


@contextmanager
def raw_node(line: Line) -> Iterator[tuple[FleetHttpClient, platform_side.Node]]:
    """A registered node without heartbeats and without anyone behind it."""
    private, public = generate_key_pairs()
    key = public_key_to_bytes(public)
    with FleetHttpClient.from_server_address(
        line.address,
        False,
        line.tls.ca.read_bytes(),
        interceptors=[NodeAuthHttpInterceptor(private, public)],
    ) as client:
        client.RegisterNode(fleet.RegisterNodeFleetRequest(public_key=key))
        activated = client.ActivateNode(
            fleet.ActivateNodeRequest(public_key=key, heartbeat_interval=30.0)
        )
        try:
            yield client, platform_side.Node(node_id=activated.node_id)
        finally:
            with suppress(httpx.HTTPStatusError):
                client.DeactivateNode(fleet.DeactivateNodeRequest(node_id=activated.node_id))
