"""One process that serves: both interfaces on one event loop, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import torch
import uvicorn

from clients.serving.access import Doorkeeper, read_keys
from clients.serving.desk import Desk
from clients.serving.events import EVENTS, EventStore
from clients.serving.limits import RateLimit
from clients.serving.metrics import Metrics
from clients.serving.model import load_model
from clients.serving.rpc import RpcServer
from clients.serving.service import Service
from clients.serving.watch import Watch
from clients.serving.web import Gate, is_loopback, loopback_names, make_app
from clients.state import PlatformFolder
from crossrec_model.errors import ConfigError, FederationError
from crossrec_model.journal import LogFormat, log_handler

LOG: Final = "serving.log"
GRACE_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where and to whom a platform serves. Port 0 is any free one.

    `rate` and `burst` are calls a second and at once, of one caller.
    """

    platform: str
    folder: PlatformFolder
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    require_keys: bool = False
    rate: float = 1000.0
    burst: float = 2000.0
    look_every_s: float = 1.0
    log_format: LogFormat = "json"
    log_calls: bool = False

    def __post_init__(self) -> None:
        for name, port in (("grpc-port", self.grpc_port), ("http-port", self.http_port)):
            if not 0 <= port < 65536:
                raise ConfigError(f"--{name} {port} is outside [0, 65535]; give another")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together; give both or none")
        if not is_loopback(self.host) and self.tls_cert is None:
            raise ConfigError(
                f"--host {self.host} is not loopback: give --tls-cert and --tls-key, so that "
                "nobody on the way reads or changes what is said"
            )
        for name, value in (("rate", self.rate), ("burst", self.burst)):
            if not 1 <= value <= 1e9:
                raise ConfigError(f"--{name} {value:g} is outside [1, 1e9]; give e.g. 1000")

    @property
    def keyed(self) -> bool:
        """Whether callers must show an API key."""
        return self.require_keys or not is_loopback(self.host)


def serve(settings: ServeSettings, note: Callable[[str], None]) -> int:
    """Serve until SIGINT or SIGTERM; return its number.

    Raises:
        StateError, DataError: if there is no model, or what is on disk is damaged.
        ConfigError: for a certificate, key or port that can't be used.
    """
    # Requests are answered one at a time on one core: more threads would only wait for each other.
    torch.set_num_threads(1)
    folder = settings.folder.path
    doorkeeper = None
    if settings.keyed:
        if not read_keys(folder):
            raise ConfigError(
                "callers need API keys and there are none; make one first: "
                f"python -m clients.platform api-keys make NAME --id {settings.platform}"
            )
        doorkeeper = Doorkeeper(folder)
    model = load_model(settings.folder, settings.platform)
    store, metrics = EventStore(folder / EVENTS), Metrics()
    service = Service(model, store.all(), np.random.default_rng())
    desk = Desk(
        *(service, store, metrics),
        doorkeeper=doorkeeper,
        limit=RateLimit(settings.rate, settings.burst),
        log_calls=settings.log_calls,
    )
    metrics.taken_over(time.time(), len(model.candidates))
    with _journal(folder / LOG, settings.log_format):
        return asyncio.run(_serve(settings, desk, note))


async def _serve(settings: ServeSettings, desk: Desk, note: Callable[[str], None]) -> int:
    """1. Bind both ports. 2. Answer and watch the folder. 3. At a signal answer what was begun, end."""
    stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _stop, stopped, int(number))
    listener = _listen(settings.host, settings.http_port)
    rpc = _rpc(settings, desk)
    web = _Web(_web_config(settings, desk))
    await rpc.start()
    serving = asyncio.create_task(web.serve(sockets=[listener]))
    watch = Watch(desk, settings.folder, settings.platform, settings.look_every_s)
    watching = asyncio.create_task(watch.run())
    secure = "s" if settings.tls_cert is not None else ""
    while not web.started and not serving.done():
        await asyncio.sleep(0.01)
    http_port = listener.getsockname()[1]
    note(
        f"platform {settings.platform} serves model {desk.service.model.version}: "
        f"gRPC on {_url(settings.host, rpc.port)}{' (TLS)' if secure else ''}, "
        f"HTTP on http{secure}://{_url(settings.host, http_port)}"
    )
    try:
        ends: list[asyncio.Future[Any]] = [stopped, serving, watching]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            # Never by itself: whichever ended has an error to tell.
            for task in (serving, watching):
                if task.done():
                    task.result()
            raise FederationError("the service ended by itself; see its log")
    finally:
        watching.cancel()
        web.should_exit = True
        await rpc.stop(GRACE_S)
        await asyncio.wait([serving], timeout=GRACE_S)
        await desk.close()
    return stopped.result()


def _stop(stopped: asyncio.Future[int], number: int) -> None:
    if not stopped.done():
        stopped.set_result(number)


class _Web(uvicorn.Server):
    """Leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _web_config(settings: ServeSettings, desk: Desk) -> uvicorn.Config:
    gate = Gate(make_app(desk), desk, loopback_names(settings.host))
    return uvicorn.Config(
        gate,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        limit_concurrency=1000,
        lifespan="off",
        timeout_graceful_shutdown=int(GRACE_S),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
    )


def _rpc(settings: ServeSettings, desk: Desk) -> RpcServer:
    credentials = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        chain, key = _pair(settings.tls_cert, settings.tls_key)
        credentials = grpc.ssl_server_credentials([(key, chain)])
    try:
        return RpcServer(desk, _url(settings.host, settings.grpc_port), credentials)
    except RuntimeError:
        raise ConfigError(
            f"gRPC port {settings.grpc_port} on {settings.host} can't be used; give another --grpc-port"
        ) from None


def _pair(chain: Path, key: Path) -> tuple[bytes, bytes]:
    """Certificates and key as they are read; raises ConfigError if they don't belong together."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key, password=lambda: "")
        return chain.read_bytes(), key.read_bytes()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {chain} and --tls-key {key} can't be used ({error}); give PEM files that "
            "belong together"
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
        return listener
    except OSError as error:
        raise ConfigError(
            f"HTTP port {port} on {host} can't be used: {error.strerror}; give another --http-port"
        ) from None


def _url(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def _journal(path: Path, format: LogFormat) -> Iterator[None]:
    """Send our records, and the libraries' warnings, to one file."""
    handler = log_handler(path, format)
    names = {
        "crossrec.platform.serving": logging.INFO,
        "uvicorn": logging.ERROR,
        "grpc": logging.ERROR,
    }
    for name, level in names.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).handlers = [logging.NullHandler()]
        handler.close()
