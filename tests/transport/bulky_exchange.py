"""A coordinator and a platform that exchange one long frame, and say how much memory each took.

Growth is peak resident memory above what was resident before the exchange, in MiB: what a side
holds of its own (the platform's reply, the coordinator's request) is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from clients.connection import Handler
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.pieces import Payload
from server.courier import NodeId
from server.tls import TlsFiles

RUN = bytes(16)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def resident() -> float:
    """Resident memory in MiB."""
    return _status("VmRSS")


class Growth:
    """Peak resident memory since it was made, above what was resident then."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._start = resident()

    def peak(self) -> float:
        return round(_status("VmHWM") - self._start, 1)

    def left(self) -> float:
        return round(resident() - self._start, 1)


def handler(mebibytes: int) -> Handler:
    """Return a platform that answers a request to train with so many MiB."""
    body = np.random.default_rng(1).integers(0, 2**32, mebibytes << 18, dtype=np.uint32)
    growth = Growth()

    def handle(payload: Payload) -> Pieces:
        nonlocal growth
        message = wire.decode(payload)
        if isinstance(message, wire.TrainRequest):
            reply = wire.SumReply(run=RUN, round=1, body=(memoryview(body).cast("B"),))
            return wire.encode_pieces(reply)
        if isinstance(message, wire.Hello):
            print(json.dumps({"peak": growth.peak()}), flush=True)
            growth = Growth()
        return wire.encode_pieces(wire.Ack())

    return handle


def coordinate(tls: Path, mebibytes: int) -> None:
    """Ask for a long reply to a short request, then to a long one."""
    from server.flower import GridCourier, Link
    from server.listener import bind, serving

    def ask(courier: GridCourier, node: NodeId, frame: Pieces) -> int:
        # The answer is dropped before the next pair is asked for.
        return sum(len(answer) for _, answer in courier.exchange({node: frame}, timeout_s=300))

    files, link = TlsFiles.in_folder(tls), Link()
    short = np.zeros(1, dtype=np.float32)
    long = np.random.default_rng(2).random(mebibytes << 18, dtype=np.float32)
    hello = wire.encode_pieces(wire.Hello(session=RUN))
    with bind("127.0.0.1", 0) as listener:
        with serving(link.application, listener, files), link.courier() as courier:
            print(listener.getsockname()[1], flush=True)
            while not courier.nodes():
                time.sleep(0.02)
            (node,) = courier.nodes()
            ask(courier, node, hello)
            for name, parameters in (("short", short), ("long", long)):
                request = wire.TrainRequest(
                    run=RUN, round=1, rounds=1, ticket=b"", parameters=parameters
                )
                growth, started = Growth(), time.monotonic()
                arrived = ask(courier, node, wire.encode_pieces(request))
                took = time.monotonic() - started
                stored = sum(len(e.content) for e in link._state.object_store.store.values())
                figures = {"request": name, "peak": growth.peak(), "left": growth.left()}
                print(json.dumps({**figures, "arrived": arrived, "stored": stored}), flush=True)
                print(f"{took:.2f} s", file=sys.stderr)
                ask(courier, node, hello)
            ask(courier, node, wire.encode_pieces(wire.Finish(run=RUN, round=1, parameters=short)))


def main() -> None:
    role, where, mebibytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if role == "coordinator":
        coordinate(Path(where), mebibytes)
    else:
        from clients.flower import serve

        serve(handler(mebibytes), address=where, ca=Path(sys.argv[4]))


if __name__ == "__main__":
    main()
