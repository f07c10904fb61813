"""A platform process for tests: the real connection, and a tiny deterministic handler.

Its update pulls every parameter to a target of its own, so that the final vector is known.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clients.connection import Handler
from clients.keys import load_identity, read_roster
from clients.opened import Opened
from clients.passport import Passport
from clients.sealing import Sealer, SealerFor, secure_sealer
from crossrec_model.config import Plan
from crossrec_model.errors import CrossrecError
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.sums import subject_of
from crossrec_model.wire import messages as wire
from crossrec_model.wire.contribution import Contribution
from simulations.plain import PlainSealer

NOTHING = np.zeros(0, dtype=np.float32)
#: With weights that are whole and `max_weight` a power of two, multiples of this lie on the grid of a
#: sum: rounding then changes nothing, and a run has one outcome.
EXACT = 2.0**-12


def target(platform: str, dimension: int) -> np.ndarray:
    """The vector that a platform pulls to, float64 [dimension]."""
    return np.random.default_rng(list(platform.encode())).uniform(-1, 1, size=dimension)


def weight_of(platform: str) -> float:
    """The weight of a platform's contributions."""
    return float(len(platform) + ord(platform[0]) % 7)


def make_handler(
    platform: str,
    dimension: int,
    *,
    seconds: float = 0.0,
    seen: Callable[[bytes], object] = bytes,
    sealer_for: SealerFor = PlainSealer,
    exact: bool = False,
) -> Handler:
    """Return the handler of a platform that trains for `seconds`; `seen` gets every request.

    With `exact`, all that it sends is a multiple of `EXACT`.
    """
    weight = weight_of(platform)
    goal = target(platform, dimension)
    sealer: list[Sealer] = []

    def rounded(values: np.ndarray | float) -> np.ndarray:
        return np.round(np.asarray(values) / EXACT) * EXACT if exact else np.asarray(values)

    def replied(message: wire.Message) -> wire.Reply:
        match message:
            case wire.Hello():
                return wire.HelloReply(
                    platform=platform,
                    protocol_version=wire.PROTOCOL_VERSION,
                    software_version="0.1.0",
                )
            case wire.Welcome():
                sealer[:] = [sealer_for(Plan.from_json(message.plan))]
                return wire.WelcomeReply(
                    dimension=dimension, training_metrics=("loss",), evaluation_metrics=("ndcg@10",)
                )
            case wire.Secure():
                return wire.Secure(frame=sealer[0].answer(message.frame))
            case wire.TrainRequest():
                time.sleep(seconds)
                update = rounded(np.clip(0.5 * (goal - message.parameters), -1, 1))
                update = update.astype(np.float32)
                loss = float(rounded(np.abs(update).mean()))
                return sealed(message, Kind.TRAIN, update, loss)
            case wire.EvaluateRequest():
                score = 1.0 / (1.0 + float(np.abs(goal - message.parameters).mean()))
                return sealed(message, Kind.EVALUATE, NOTHING, float(rounded(score)))
            case _:
                return wire.Ack()

    def sealed(
        message: wire.TrainRequest | wire.EvaluateRequest,
        kind: Kind,
        update: np.ndarray,
        metric: float,
    ) -> wire.Reply:
        part = Contribution(update=update, weight=weight, metrics=(metric,))
        body = sealer[0].seal(
            message.ticket,
            part,
            run=message.run,
            kind=kind,
            number=message.round,
            subject=subject_of(kind, message.run, message.round, message.parameters),
        )
        return wire.SumReply(run=message.run, round=message.round, body=body)

    def handle(payload: bytes) -> bytes | tuple[bytes | memoryview, ...]:
        seen(payload)
        try:
            return wire.encode_pieces(replied(wire.decode(payload)))
        except SecureSumError as error:
            print(f"left the sum: {error}", flush=True)
            return wire.encode(wire.Failure(code=wire.FailureCode.LEFT_THE_SUM))

    return handle


def main() -> int:
    # A shell that starts the tests in the background makes its children deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--connect-timeout", type=float, default=30.0)
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--roster", type=Path, required=True)
    options = parser.parse_args()

    def report(line: str) -> None:
        print(line, flush=True)

    try:
        from clients.flower import serve

        folder = options.state / options.id
        identity, roster = load_identity(folder), read_roster(options.roster).roster
        sealer_for = secure_sealer(options.id, identity, roster, Opened(folder).check_and_record)
        serve(
            make_handler(
                options.id, options.dimension, seconds=options.seconds, sealer_for=sealer_for
            ),
            address=options.address,
            ca=options.ca,
            insecure=options.insecure,
            connect_timeout_s=options.connect_timeout,
            report=report,
            passport=Passport(platform=options.id, identity=identity, roster=lambda: roster),
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
