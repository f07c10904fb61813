"""How a platform keeps in touch with its coordinator: the policy, whatever carries the bytes.

What can be fixed only by a person (a wrong authority, no TLS, an id that is taken) ends with one
clear line at once. What may pass by itself (a coordinator that is not there yet, or restarts) is
tried again, with the reason shown, until a deadline.
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from clients.passport import refusal
from crossrec_model.errors import (
    ConfigError,
    ConnectionRefusedByPeerError,
    CrossrecError,
    WireError,
)
from crossrec_model.wire.messages import (
    Ack,
    Failure,
    FailureCode,
    Finish,
    OtherVersionError,
    Refuse,
    Welcome,
    decode,
    encode,
)
from crossrec_model.wire.pieces import Frame, Payload

#: Answers a frame.
Handler = Callable[[Payload], Frame]
Report = Callable[[str], None]
Item = TypeVar("Item")

PROBE_TIMEOUT_S: Final = 5.0
#: Where a coordinator tells its signed roster and plan, and the most that is read of it.
NOTICE: Final = "/federation"
MOST_NOTICE: Final = 4 << 20
#: An idle platform polls at a tenth of the time it has been idle, between these bounds (seconds).
POLL_S: Final = (0.03, 0.5)
#: So long after an answer it does not slow down: a short question often follows a long answer.
EAGER_S: Final = 5.0
#: So many pieces of a frame are under way at a time.
ABREAST: Final = 2
#: First and longest pause between two attempts, in seconds; each is twice the one before.
PAUSE_S: Final = (0.2, 5.0)
#: Characters of a host name in DNS.
_MOST_HOST: Final = 253
_LOG = logging.getLogger("crossrec.platform")
#: OpenSSL's verify codes: the certificate is for another name or address; it is out of date.
_OTHER_NAME, _OUT_OF_DATE = frozenset({62, 63, 64}), frozenset({9, 10})
#: OpenSSL's reasons for a connection that ended in the midst of a handshake.
_HUNG_UP: Final = frozenset({"UNEXPECTED_EOF_WHILE_READING", None})


class NotThereError(Exception):
    """The coordinator could not be reached now; it may be there later."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the coordinator is, `HOST:PORT`, and the authority (PEM file) that vouches for it.

    Without `ca` the system's own authorities are trusted. `insecure` speaks plain HTTP.
    """

    address: str
    ca: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.address.startswith("http://") and not self.insecure:
            raise ConfigError(
                f"{self.address} is plain HTTP, which anyone on the way can read; "
                "give HOST:PORT and --ca, or add --insecure for an experiment"
            )
        bare = self.address.removeprefix("https://").removeprefix("http://").rstrip("/")
        object.__setattr__(self, "address", bare)
        port = int(self.port) if re.fullmatch(r"[0-9]{1,5}", self.port) else 0
        if not _is_host(self.host) or not 0 < port < 65536:
            raise ConfigError(
                f"address {self.address[:300]!r} is not HOST:PORT; give e.g. example.org:9092"
            )
        if self.insecure and self.ca is not None:
            raise ConfigError("--insecure and --ca exclude each other; leave one out")
        if self.ca is not None:
            self.context()

    @property
    def host(self) -> str:
        """The host's name or address, without the brackets of IPv6."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> str:
        """The port, as text."""
        return self.address.rpartition(":")[2]

    def context(self) -> ssl.SSLContext:
        """Return a context that verifies the coordinator; ConfigError for an unusable CA file."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except (OSError, ssl.SSLError):
            raise ConfigError(
                f"CA file {self.ca} can't be read as a PEM certificate; "
                "give the coordinator's ca.pem as --ca"
            ) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


def _is_host(host: str) -> bool:
    """Whether the resolver may be asked for it; it fails on empty or too long labels."""
    if len(host) > _MOST_HOST or not host.isprintable() or re.search(r"[\s/@\[\]]", host):
        return False
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def probe(endpoint: Endpoint) -> None:
    """Ask the coordinator whether it is there.

    Raises:
        NotThereError: if trying again may help.
        ConnectionRefusedByPeerError: if only a person can help.
    """
    client = open_client(endpoint)
    try:
        client.request("GET", "/health")
        status = client.getresponse().status
    except ssl.SSLCertVerificationError as error:
        raise ConnectionRefusedByPeerError(_certificate_problem(endpoint, error)) from None
    except ssl.SSLError as error:
        if error.reason in _HUNG_UP:
            raise NotThereError("it hung up") from None
        raise ConnectionRefusedByPeerError(
            f"{endpoint.address} does not speak TLS 1.3 ({error.reason}); check the port, "
            "and that the coordinator runs with --tls"
        ) from None
    except http.client.HTTPException as error:
        # A coordinator that is killed at this moment, or a line that is cut.
        if not endpoint.insecure and isinstance(error, OSError | http.client.IncompleteRead):
            raise NotThereError("it hung up") from None
        hint = "it may expect TLS: give --ca instead of --insecure" if endpoint.insecure else ""
        raise ConnectionRefusedByPeerError(
            f"{endpoint.address} does not answer as a coordinator; {hint or 'check the address'}"
        ) from None
    except OSError as error:
        raise NotThereError(error.strerror or str(error) or type(error).__name__) from None
    finally:
        client.close()
    # 429: somebody at the same address, maybe not this platform, asked too often.
    if status >= 500 or status == http.client.TOO_MANY_REQUESTS:
        raise NotThereError(f"it answered {status}")
    if status != 200:
        raise ConnectionRefusedByPeerError(
            f"{endpoint.address} answered {status}: no coordinator listens there; check the address"
        )


def fetch_notice(endpoint: Endpoint, headers: Mapping[str, str]) -> bytes | None:
    """Ask for the federation's signed roster and plan; None from a coordinator that tells none.

    Raises:
        NotThereError: if trying again may help.
        ConnectionRefusedByPeerError: if the coordinator refuses this platform.
    """
    client = open_client(endpoint)
    try:
        client.request("GET", NOTICE, headers=dict(headers))
        response = client.getresponse()
        body = response.read(MOST_NOTICE + 1)
    except (OSError, http.client.HTTPException) as error:
        raise NotThereError(str(error) or type(error).__name__) from None
    finally:
        client.close()
    if response.status == http.client.NOT_FOUND:
        return None
    if response.status != http.client.OK or len(body) > MOST_NOTICE:
        word = response.getheader("crossrec-refused", str(response.status))
        if response.status in {429, 503}:
            raise NotThereError(f"it answered {response.status}")
        raise ConnectionRefusedByPeerError(refusal(endpoint.address, word))
    return body


def open_client(endpoint: Endpoint) -> http.client.HTTPConnection:
    """Return a connection for single questions, not opened yet."""
    place = (endpoint.host, int(endpoint.port))
    if endpoint.insecure:
        return http.client.HTTPConnection(*place, timeout=PROBE_TIMEOUT_S)
    context = endpoint.context()
    return http.client.HTTPSConnection(*place, timeout=PROBE_TIMEOUT_S, context=context)


def _certificate_problem(endpoint: Endpoint, error: ssl.SSLCertVerificationError) -> str:
    where = f"the coordinator at {endpoint.address}"
    if error.verify_code in _OTHER_NAME:
        return (
            f"{where} has a certificate for another name; use a name that it holds, "
            f"or make one with: python -m server certificates --host {endpoint.host}"
        )
    if error.verify_code in _OUT_OF_DATE:
        return f"{where} has a certificate that is out of date; make a new one, or set the clock"
    trusted = f"CA file {endpoint.ca}" if endpoint.ca else "the system's authorities"
    return f"{trusted} did not sign the certificate of {where}; give its own ca.pem as --ca"


def wait_for_coordinator(
    endpoint: Endpoint,
    *,
    timeout_s: float,
    report: Report,
    attempt: Callable[[Endpoint], None] = probe,
) -> None:
    """Try until the coordinator is there; report each new reason why it is not.

    Raises:
        ConnectionRefusedByPeerError: after `timeout_s` seconds, or at once where waiting is no use.
    """
    end, pause, last = time.monotonic() + timeout_s, PAUSE_S[0], ""
    while True:
        try:
            return attempt(endpoint)
        except NotThereError as reason:
            left = end - time.monotonic()
            if left <= 0:
                raise ConnectionRefusedByPeerError(
                    f"the coordinator at {endpoint.address} was not there for {timeout_s:g} s "
                    f"({reason}); start it, check the address, or raise --connect-timeout"
                ) from None
            if str(reason) != last:
                last = str(reason)
                report(f"the coordinator at {endpoint.address} is not there ({last}); trying again")
            time.sleep(min(pause, left))
            pause = min(2 * pause, PAUSE_S[1])


def pause_after(idle_s: float, poll_s: float) -> float:
    """Return the seconds until the next poll, `idle_s` after the last answer.

    A poll that took long (`poll_s`) met a busy coordinator, which is asked less often.
    """
    least, most = POLL_S
    return min(most, max(least, 0.1 * (idle_s - EAGER_S), poll_s))


def quiet_libraries() -> None:
    """Keep the libraries' lines out of the user's output; ours go where logging sends them."""
    for name in ("flwr", "httpx", "httpcore"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False


def abreast(work: Callable[[str], Item], names: Iterable[str]) -> Iterator[Item]:
    """Yield the results of `work` in order; no more than `ABREAST` are under way or waiting."""
    running: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(ABREAST) as pool:
        try:
            for name in names:
                if len(running) == ABREAST:
                    yield running.popleft().result()
                running.append(pool.submit(work, name))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to send back, and whether it is the last: then `error` says why, None for a good end."""

    payload: Frame
    last: bool = False
    error: CrossrecError | None = None


class End:
    """How far a platform is with its last answer: given, heard by the coordinator, its error if any."""

    def __init__(self) -> None:
        #: How often the last answer was given.
        self.given = 0
        self.heard = False
        self.error: CrossrecError | None = None

    def __call__(self, error: CrossrecError | None) -> None:
        """The last answer is given."""
        # Whoever has kept the final model only confirms it.
        self.error = self.error if self.reached else error
        self.given += 1

    @property
    def reached(self) -> bool:
        """Whether the last answer was given."""
        return self.given > 0

    @property
    def over(self) -> bool:
        """Whether there is nothing left to say."""
        return self.heard or self.error is not None


def answer(handle: Handler, payload: Payload) -> Answer:
    """Return a platform's answer to one frame; whatever goes wrong, only a code leaves it.

    A refusal and the end of the run are recognised here. A CrossrecError raised by `handle` is a
    mistake that its operator must mend, so it ends the platform; any other exception is a fault of
    ours, which is logged and answered, and the platform stays.
    """
    try:
        message = decode(payload)
    except OtherVersionError as error:
        return Answer(payload=_failure(FailureCode.OTHER_VERSION), last=True, error=error)
    except WireError:
        _LOG.exception("a malformed frame of %d bytes came", len(payload))
        return Answer(payload=_failure(FailureCode.MALFORMED))
    if isinstance(message, Refuse):
        refused = ConnectionRefusedByPeerError(f"the coordinator refused: {message.reason}")
        return Answer(payload=encode(Ack()), last=True, error=refused)
    try:
        return Answer(payload=handle(payload), last=isinstance(message, Finish))
    except CrossrecError as error:
        code = FailureCode.PLAN_REFUSED if isinstance(message, Welcome) else FailureCode.INTERNAL
        return Answer(payload=_failure(code), last=True, error=error)
    except Exception:
        _LOG.exception("%s could not be answered", type(message).__name__)
        return Answer(payload=_failure(FailureCode.INTERNAL))


def _failure(code: FailureCode) -> bytes:
    return encode(Failure(code=code))
