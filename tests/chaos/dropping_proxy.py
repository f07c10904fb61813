"""A TCP proxy on loopback that spoils connections: one port a platform, rules that change any time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

_READ: Final = 64 << 10
#: How often a stalled connection looks whether it may go on, in seconds.
_LOOK_S: Final = 0.02


@dataclass
class Rules:
    """What happens to one platform's connections; written by any thread, read by the proxy's.

    `delay_s` holds each piece up. `stall` carries nothing, in new and old connections alike. `refuse`
    closes new connections at once. `bytes_per_s` throttles. `trickle` passes pieces of a few bytes
    only. `drop_after` cuts each connection after so many bytes.
    """

    delay_s: float = 0.0
    stall: bool = False
    refuse: bool = False
    bytes_per_s: float = float("inf")
    trickle: int = 0
    drop_after: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set, repr=False)

    def heal(self) -> None:
        """Carry everything again."""
        self.delay_s, self.stall, self.refuse = 0.0, False, False
        self.bytes_per_s, self.trickle, self.drop_after = float("inf"), 0, 0


class DroppingProxy:
    """Forwards to 127.0.0.1:`target_port`; `ports` and `rules` go by platform.

    A context manager: its listeners and connections end with it.
    """

    def __init__(self, names: Iterable[str], target_port: int) -> None:
        self.target_port = target_port
        self.rules = {name: Rules() for name in names}
        self.ports: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self, name: str) -> None:
        """Reset every open connection of a platform."""
        asyncio.run_coroutine_threadsafe(self._cut(name), self._loop).result(10)

    def random_fault(self, name: str, chance: random.Random) -> str:
        """Break a platform's line in one of the ways; say which."""
        rules = self.rules[name]
        kind = chance.choice(("cut", "refuse", "stall", "delay", "throttle", "trickle", "drop"))
        match kind:
            case "refuse":
                rules.refuse = True
                self.cut(name)
            case "stall":
                rules.stall = True
            case "delay":
                rules.delay_s = chance.uniform(0.05, 0.5)
            case "throttle":
                rules.bytes_per_s = chance.uniform(2e3, 2e4)
            case "trickle":
                rules.trickle = chance.randint(1, 40)
            case "drop":
                rules.drop_after = chance.randint(1, 6000)
                self.cut(name)
            case _:
                self.cut(name)
        return kind

    async def _open(self) -> None:
        for name in self.rules:
            server = await asyncio.start_server(self._accept(name), "127.0.0.1", 0)
            self._servers.append(server)
            self.ports[name] = server.sockets[0].getsockname()[1]

    def _accept(self, name: str):
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._carry(self.rules[name], reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accepted

    async def _carry(
        self, rules: Rules, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if rules.refuse:
            writer.transport.abort()
            return
        rules.open.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            inner, other = await asyncio.open_connection("127.0.0.1", self.target_port)
            rules.open.add(other)
            await asyncio.gather(_pump(rules, reader, other), _pump(rules, inner, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for one in (writer, other):
                if one is not None:
                    rules.open.discard(one)
                    one.transport.abort()

    async def _cut(self, name: str) -> None:
        for writer in list(self.rules[name].open):
            writer.transport.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(rules: Rules, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Carry one direction until its end, piece by piece, as the rules are at that moment."""
    carried = 0
    while data := await source.read(rules.trickle or _READ):
        while rules.stall:
            await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(rules.delay_s + len(data) / rules.bytes_per_s)
        carried += len(data)
        if rules.drop_after and carried > rules.drop_after:
            raise ConnectionAbortedError
        sink.write(data)
        await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()
