"""Bounds what somebody may send before the door has seen a request: a head's length, and its time.

The HTTP parser keeps a head of any length and waits for its end for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: A platform's request has a head of about 1 KiB; a pass in it at most 2 KiB.
MOST_BYTES: Final = 64 << 10
#: From a connection, or the first byte of a head, to its end, in seconds.
PATIENCE_S = 15.0


class BoundedHeads(HttpToolsProtocol):
    """Ends a connection whose request's head is too long or does not come to its end."""

    _bytes, _in_head = 0, True
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio; the time begins."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio; what is left of a head after these bytes counts."""
        super().data_received(data)
        if self._in_head:
            self._bytes += len(data)
            if self._bytes > MOST_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """The parser's: a head begins."""
        super().on_message_begin()
        self._in_head, self._bytes = True, 0
        self._wait()

    def on_headers_complete(self) -> None:
        """The parser's: a head ends."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self._end = self.loop.call_later(PATIENCE_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
