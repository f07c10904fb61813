"""A platform process for tests: the real connection, and a tiny deterministic handler.

Its update pulls every parameter to a target of its own, so that the final vector is known.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clients.connection import Handler
from crossrec_model.errors import CrossrecError
from crossrec_model.wire import messages as wire
from crossrec_model.wire.contribution import pack


def target(platform: str, dimension: int) -> np.ndarray:
    """The vector that a platform pulls to, float64 [dimension]."""
    return np.random.default_rng(list(platform.encode())).normal(size=dimension)


def make_handler(
    platform: str, dimension: int, *, seconds: float = 0.0, seen: Callable[[bytes], object] = bytes
) -> Handler:
    """Return the handler of a platform that trains for `seconds`; `seen` gets every request."""
    weight = float(len(platform) + ord(platform[0]) % 7)
    goal = target(platform, dimension)

    def handle(payload: bytes) -> bytes:
        seen(payload)
        message = wire.decode(payload)
        reply: wire.Reply = wire.Ack()
        if isinstance(message, wire.Hello):
            reply = wire.HelloReply(
                platform=platform, protocol_version=wire.PROTOCOL_VERSION, software_version="0.1.0"
            )
        elif isinstance(message, wire.Welcome):
            reply = wire.WelcomeReply(
                dimension=dimension, training_metrics=("loss",), evaluation_metrics=("ndcg@10",)
            )
        elif isinstance(message, wire.TrainRequest):
            time.sleep(seconds)
            update = 0.5 * (goal - message.parameters)
            contribution = pack(update, weight, (float(np.abs(update).mean()),))
            reply = wire.UpdateReply(
                run=message.run, round=message.round, contribution=contribution
            )
        elif isinstance(message, wire.EvaluateRequest):
            score = 1.0 / (1.0 + float(np.abs(goal - message.parameters).mean()))
            metrics = pack(np.zeros(0), weight, (score,))
            reply = wire.MetricsReply(run=message.run, round=message.round, metrics=metrics)
        return wire.encode(reply)

    return handle


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--connect-timeout", type=float, default=30.0)
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()

    def report(line: str) -> None:
        print(line, flush=True)

    try:
        from clients.flower import serve

        serve(
            make_handler(options.id, options.dimension, seconds=options.seconds),
            address=options.address,
            ca=options.ca,
            insecure=options.insecure,
            connect_timeout_s=options.connect_timeout,
            report=report,
        )
    except CrossrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
