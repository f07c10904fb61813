"""The line to the partner through the courier: every frame received once, in order, whatever is lost.

A frame to send lies in the session's folder before anything counts on it, and stays there until the partner
has received it; so a courier that loses its boxes gets it again.
"""

from __future__ import annotations

import http.client
import os
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, TypeVar

from clients.connection import Endpoint, NotThereError, Report, open_client
from clients.keys import write_file
from clients.passport import Passport, refusal
from crossrec_model.errors import ConnectionRefusedByPeerError, WireError
from crossrec_model.linkage.errors import LinkageError, OtherSessionError, UnknownPlatformError
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.post import (
    ANY_THREAD,
    MAX_POST,
    NO_BOX,
    PostMessage,
    Pull,
    Pulled,
    Push,
    Pushed,
    Status,
    decode_post_as,
    encode_post,
)

PATH: Final = "/linkage"
A = TypeVar("A", bound=PostMessage)
#: First and longest pause between two questions, in seconds.
PAUSE_S: Final = (0.02, 1.0)
#: A pass is made anew after so long, in seconds.
PASS_S: Final = 60.0


class Ask(Protocol):
    """Sends a request to the courier and returns its answer."""

    def __call__(self, request: bytes) -> bytes:
        """Raises NotThereError if asking again may help."""


class HttpAsk:
    """Asks the coordinator over TLS, on a connection that stays open."""

    def __init__(self, endpoint: Endpoint, passport: Passport) -> None:
        self._endpoint, self._passport = endpoint, passport
        self._node_key, self._made = os.urandom(32), float("-inf")
        self._headers: Mapping[str, str] = {}
        self._client: http.client.HTTPConnection | None = None

    def __call__(self, request: bytes) -> bytes:
        """See `Ask`; raises ConnectionRefusedByPeerError for a refusal."""
        if time.monotonic() - self._made > PASS_S:
            key = b64encode(self._node_key).decode("ascii")
            self._headers = {**self._passport.headers(self._node_key), "flwr-public-key": key}
            self._made = time.monotonic()
        client = self._client or open_client(self._endpoint)
        self._client = None
        try:
            client.request("POST", PATH, request, dict(self._headers))
            response = client.getresponse()
            body = response.read(MAX_POST + 1)
        except (OSError, http.client.HTTPException) as error:
            client.close()
            raise NotThereError(str(error) or type(error).__name__) from None
        if response.status == http.client.OK and len(body) <= MAX_POST:
            self._client = client
            return body
        client.close()
        word = response.getheader("crossrec-refused", str(response.status))
        if response.status in {429, 502, 503}:
            raise NotThereError(f"it answered {response.status}")
        raise ConnectionRefusedByPeerError(refusal(self._endpoint.address, word))

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()


class Line:
    """The frames of one thread, out and in. `sent` and `taken` count them; the owner keeps both."""

    def __init__(
        self,
        ask: Ask,
        folder: Path,
        partner: str,
        purpose: Purpose,
        *,
        thread: bytes,
        patience_s: float,
        report: Report,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._ask, self._folder = ask, folder
        self._partner, self._purpose = partner, purpose
        self.thread = thread
        self._patience_s, self._report, self._sleep = patience_s, report, sleep
        self._heard, self._told = time.monotonic(), ""
        #: Frames that the courier has, and those that the partner has received.
        self._posted = self._received = 0

    def put(self, number: int, frame: bytes) -> None:
        """Keep frame `number` until the partner has it; it is sent with the next question."""
        write_file(self._folder / f"out-{number}", frame)

    def receive(self, taken: int, sent: int) -> bytes:
        """Send what is to be sent, and wait for frame `taken`.

        Raises:
            LinkageError: if the partner began anew, is unknown to the courier, or stays silent.
            ConnectionRefusedByPeerError: if the courier refuses this platform.
        """
        waited = 0
        while True:
            self._flush(sent)
            pulled = self._pull(taken)
            if pulled is not None and pulled.status is Status.DONE:
                self._heard = time.monotonic()
                self.thread = pulled.thread
                return pulled.frame
            self._wait(waited, f"waiting for {self._partner}")
            waited += 1

    def settle(self, taken: int, sent: int, *, within_s: float) -> bool:
        """Tell the partner what was received, and wait until it has all that was sent."""
        end, waited = time.monotonic() + within_s, 0
        while time.monotonic() < end:
            self._flush(sent)
            self._pull(taken)
            if self._received >= sent:
                return True
            self._sleep(min(PAUSE_S[1], PAUSE_S[0] * 2**waited))
            waited = min(waited + 1, 10)
        return False

    def _flush(self, sent: int) -> None:
        while self._posted < sent:
            opens = self._posted == self._received
            path = self._folder / f"out-{self._posted}"
            push = Push(
                partner=self._partner,
                purpose=self._purpose,
                thread=self.thread,
                opens=opens,
                number=self._posted,
                frame=path.read_bytes() if path.exists() else b"",
            )
            answer = self._asked(push, Pushed)
            if answer is None or answer.status is Status.FULL:
                return
            if answer.status is Status.DONE:
                self._posted += 1
                self._forget(answer.received)
            elif answer.status in {Status.NO_THREAD, Status.OUT_OF_ORDER} and not opens:
                # The courier has lost its boxes: all that was not received goes out again.
                self._posted = self._received
                return
            else:
                self._check(answer.status)
                return

    def _pull(self, taken: int) -> Pulled | None:
        pull = Pull(partner=self._partner, purpose=self._purpose, thread=self.thread, number=taken)
        answer = self._asked(pull, Pulled)
        if answer is None:
            return None
        if answer.received == NO_BOX:
            self._posted = self._received
        else:
            self._forget(answer.received)
        if taken == 0 and answer.status in {Status.OTHER_THREAD, Status.OUT_OF_ORDER}:
            return None  # what is left of an earlier session
        if answer.status is not Status.NOTHING:
            self._check(answer.status)
        return answer

    def _check(self, status: Status) -> None:
        if status is Status.UNKNOWN_PARTNER:
            raise UnknownPlatformError(
                f"the coordinator's roster has no platform {self._partner}; check --with"
            )
        if status is not Status.DONE:
            raise OtherSessionError(
                f"{self._partner} has begun another session ({status.name.lower()}); "
                "begin anew with --restart"
            )

    def _forget(self, received: int) -> None:
        """Delete what the partner has received."""
        while self._received < received <= self._posted:
            (self._folder / f"out-{self._received}").unlink(missing_ok=True)
            self._received += 1

    def _asked(self, request: Push | Pull, kind: type[A]) -> A | None:
        try:
            answer = decode_post_as(kind, self._ask(encode_post(request)))
        except NotThereError as error:
            self._tell(f"the coordinator is not there ({error}); trying again")
            self._sleep(PAUSE_S[1] / 4)
            return None
        except WireError as error:
            raise LinkageError(f"the coordinator's answer can't be read: {error}") from None
        return answer

    def _wait(self, waited: int, what: str) -> None:
        if time.monotonic() - self._heard > self._patience_s:
            raise LinkageError(
                f"{self._partner} was silent for {self._patience_s:g} s; start again to go on when it "
                "links too"
            )
        if waited == 8:
            self._tell(what)
        self._sleep(min(PAUSE_S[1], PAUSE_S[0] * 1.5 ** min(waited, 30)))

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._report(text)


def resumed_at(line: Line, folder: Path, sent: int) -> None:
    """Let a line go on: what lies in the folder was not received yet."""
    numbers = [int(path.name[4:]) for path in folder.glob("out-*") if path.name[4:].isdigit()]
    first = min([number for number in numbers if number < sent], default=sent)
    line._posted = line._received = first


__all__ = ["ANY_THREAD", "Ask", "HttpAsk", "Line", "resumed_at"]
