"""The end of a run: every platform of the last round gets the final model.

Who has confirmed it stands in `handed-out.json` in the state folder: a coordinator that is stopped
between the last round and its end goes on with those that are left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from crossrec_model.durable import write_durably
from crossrec_model.errors import FederationError, WireError
from crossrec_model.wire.messages import Ack, Finish, decode_as, encode
from server.admission import Admission
from server.checkpoint import Checkpoint
from server.courier import Courier, Lost, NodeId, Payload

FILE: Final = "handed-out.json"
LOOK_EVERY_S: Final = 0.1
#: How long a platform may take to keep the final model, and how long the last ones are waited for.
FINISH_TIMEOUT_S: Final = 60.0


class Handover:
    """The platforms of one run that have its final model; in a file, or in memory alone.

    Raises:
        FederationError: for a file that is damaged.
    """

    def __init__(self, run: bytes, state: Path | None = None) -> None:
        self._run, self._path = run.hex(), None if state is None else state / FILE
        self.confirmed: frozenset[str] = frozenset()
        if self._path is not None and self._path.exists():
            self.confirmed = self._read(self._path)

    def add(self, platform: str) -> None:
        """Write down that a platform has the model; FederationError if that can't be written."""
        self.confirmed |= {platform}
        if self._path is None:
            return
        document = {"run": self._run, "platforms": sorted(self.confirmed)}
        try:
            write_durably(self._path, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise FederationError(
                f"can't write {self._path}: {error.strerror}; free the disk and start again with "
                "--resume"
            ) from None

    def _read(self, path: Path) -> frozenset[str]:
        try:
            document = json.loads(path.read_bytes())
            platforms = frozenset(str(platform) for platform in document["platforms"])
            return platforms if document["run"] == self._run else frozenset()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FederationError(
                f"{path} is damaged ({error}); remove it, then the final model is handed out again"
            ) from None


def hand_out(
    last: Checkpoint,
    courier: Courier,
    admission: Admission,
    handover: Handover,
    *,
    wait_s: float,
    note: Callable[[str], object],
) -> None:
    """Give the final model to every platform of the last round, and to whoever else is here.

    One that is away, be it that it or this process was restarted, is waited for: `wait_s` seconds
    while nobody has the model, and no more than a minute after the last one who got it.

    Raises:
        FederationError: if nobody comes within `wait_s` seconds.
    """
    frame = encode(Finish(run=last.run, round=last.round, parameters=last.parameters))
    expected = frozenset(last.history[-1].platforms if last.history else ())
    told, heard, noted = set[NodeId](), time.monotonic(), frozenset[str]()
    while True:
        seats = {node: p for p, node in admission.seats().items() if node not in told}
        for node, answer in courier.exchange(
            dict.fromkeys(seats, frame), timeout_s=FINISH_TIMEOUT_S
        ):
            if isinstance(answer, Lost):
                admission.lost([node])
                continue
            told.add(node)
            if _is_ack(answer):
                handover.add(seats[node])
                heard = time.monotonic()
        missing = expected - handover.confirmed
        silent_s = time.monotonic() - heard
        if not missing or (missing != expected and silent_s > min(wait_s, FINISH_TIMEOUT_S)):
            break
        if silent_s > wait_s:
            raise FederationError(
                f"no platform came for the final model within {wait_s:g} s; it is saved: start the "
                "platforms, then start again with --resume"
            )
        if missing != noted:
            note(f"waiting to hand out the final model to {', '.join(sorted(missing))}")
            noted = missing
        time.sleep(LOOK_EVERY_S)
    if missing:
        names = ", ".join(sorted(missing))
        note(
            f"{names} did not say to have the final model; start again with --resume to hand it out"
        )


def _is_ack(answer: Payload) -> bool:
    try:
        decode_as(Ack, answer)
    except WireError:
        return False
    return True
