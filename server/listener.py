"""Serves a web application over TLS from a thread of this process."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import uvicorn

from crossrec_model.errors import FederationError
from server.gate import Application
from server.http_heads import BoundedHeads
from server.tls import TlsFiles

START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 3.0


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to host and port (0: any free one).

    Raises:
        FederationError: if the port is in use, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Listening now, not later: a second coordinator must fail here, before it touches anything.
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is in use; stop what holds it or" if taken else f"can't be used ({error});"
        raise FederationError(f"port {port} on {host} {reason} give another --port") from None
    return listener


@contextlib.contextmanager
def serving(
    application: Application, listener: socket.socket, tls: TlsFiles | None
) -> Iterator[None]:
    """Serve the application on a bound socket while the context lasts; plain HTTP without `tls`.

    Raises:
        FederationError: if the application does not start.
    """
    server = uvicorn.Server(_config(application, tls))
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="listener", daemon=True
    )
    thread.start()
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise FederationError("the coordinator's listener did not start; see its log file")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(STOP_TIMEOUT_S)
        listener.close()


def _config(application: Application, tls: TlsFiles | None) -> uvicorn.Config:
    secure: dict[str, Any] = {}
    if tls is not None:
        secure = {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.key)}
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http=BoundedHeads,
        # Nobody stands between: an address that a header claims is whatever its sender likes.
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=1,
        **secure,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return config
