"""A platform whose numbers lie on the grid of the sum, so that a run has one outcome; it says its phase.

A line "@ PHASE ROUND" before each answer; a line of JSON in `--journal` for each model that came.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from counting_platform import make_handler

from clients.flower import serve
from clients.keys import load_identity, read_roster
from clients.opened import Opened
from clients.passport import Passport
from clients.sealing import secure_sealer
from crossrec_model.errors import CrossrecError, WireError
from crossrec_model.secagg import messages as frames
from crossrec_model.wire import messages as wire

#: What a frame of the secure sum asks a platform to do.
PHASES = {
    frames.Invite: "keys",
    frames.KeyList: "shares",
    frames.Delivery: "ready",
    frames.Unmask: "unmask",
}


class Watch:
    """Says and notes what is asked, then dawdles so that a fault can meet it."""

    def __init__(self, journal: Path, dawdle_s: float) -> None:
        self._dawdle_s = dawdle_s
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, payload: bytes) -> None:
        match message := wire.decode(payload):
            case wire.Secure():
                try:
                    phase = PHASES.get(type(frames.decode(message.frame)), "secure")
                except WireError:
                    phase = "secure"
                self._say(phase)
            case wire.TrainRequest():
                self._note("train", message)
            case wire.EvaluateRequest():
                self._note("evaluate", message)
            case wire.Finish():
                self._note("finish", message)
            case _:
                self._say(type(message).__name__.lower())

    def _note(
        self, phase: str, message: wire.TrainRequest | wire.EvaluateRequest | wire.Finish
    ) -> None:
        digest = hashlib.sha256(bytes(message.parameters)).hexdigest()
        entry = {"phase": phase, "run": message.run.hex(), "round": message.round, "model": digest}
        os.write(self._journal, json.dumps(entry).encode() + b"\n")
        self._say(f"{phase} {message.round}")

    def _say(self, phase: str) -> None:
        print(f"@ {phase}", flush=True)
        time.sleep(self._dawdle_s)


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--roster", type=Path, required=True)
    parser.add_argument("--connect-timeout", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--dawdle", type=float, default=0.05)
    parser.add_argument("--journal", type=Path, required=True)
    options = parser.parse_args()
    try:
        folder = options.state / options.id
        identity, roster = load_identity(folder), read_roster(options.roster).roster
        handler = make_handler(
            options.id,
            8,
            seconds=options.seconds,
            seen=Watch(options.journal, options.dawdle),
            sealer_for=secure_sealer(options.id, identity, roster, Opened(folder).check_and_record),
            exact=True,
        )
        serve(
            handler,
            address=options.server,
            ca=options.ca,
            connect_timeout_s=options.connect_timeout,
            report=lambda line: print(line, flush=True),
            passport=Passport(platform=options.id, identity=identity, roster=lambda: roster),
        )
    except CrossrecError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
