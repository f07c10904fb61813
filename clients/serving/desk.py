"""Between the interfaces and the service: who may call, how often, and what is written down of it."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, overload

from clients.serving import calls
from clients.serving.access import Doorkeeper, KeyFileError
from clients.serving.calls import Code, RefusedCallError
from clients.serving.events import EventStore, EventStoreError
from clients.serving.limits import RateLimit
from clients.serving.metrics import Metrics
from clients.serving.service import Service

#: Wrong keys from one address: each costs a caller's time, and ours.
_TRIES_A_SECOND: Final = 2.0
_TRIES_AT_ONCE: Final = 10.0
_LOG: Final = logging.getLogger("crossrec.platform.serving")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls: an address without its port, and the API key that was shown, if any."""

    address: str
    key: str | None


class Desk:
    """Admits callers, runs their calls, keeps their events. Used from one event loop.

    Args:
        doorkeeper: who knows the API keys; None lets everybody in.
        limit: how often a caller may call.
        log_calls: write a line for every call, not only for refused ones.
    """

    def __init__(
        self,
        service: Service,
        store: EventStore,
        metrics: Metrics,
        *,
        doorkeeper: Doorkeeper | None,
        limit: RateLimit,
        log_calls: bool = False,
    ) -> None:
        self.service, self.metrics = service, metrics
        self._store, self._doorkeeper, self._limit = store, doorkeeper, limit
        self._tries = RateLimit(_TRIES_A_SECOND, _TRIES_AT_ONCE)
        self._log_calls = log_calls
        # One thread: events are kept in the order in which they came.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._keeping: set[asyncio.Future[calls.Recorded]] = set()

    async def admit(self, caller: Caller) -> None:
        """Let a caller in.

        Raises:
            RefusedCallError: without a key of this platform, or if it calls too often.
        """
        name = caller.address
        if self._doorkeeper is not None:
            try:
                name = await self._named(caller, self._doorkeeper)
            except KeyFileError as error:
                _LOG.error("nobody is let in", extra={"reason": str(error)})
                raise RefusedCallError(
                    Code.UNAVAILABLE, "the service can't look at its API keys; try again later"
                ) from None
        if not self._limit.allows(name):
            raise RefusedCallError(Code.EXHAUSTED, "too many calls; wait a second and try again")

    async def _named(self, caller: Caller, doorkeeper: Doorkeeper) -> str:
        wrong = RefusedCallError(
            Code.UNAUTHENTICATED, "no valid API key was shown; send Authorization: Bearer KEY"
        )
        if caller.key is None:
            raise wrong
        name = doorkeeper.known(caller.key)
        if name is None:
            if not self._tries.allows(caller.address):
                raise RefusedCallError(
                    Code.EXHAUSTED, "too many keys were tried from this address; wait a second"
                )
            name = await asyncio.to_thread(doorkeeper.proven, caller.key)
        if name is None:
            raise wrong
        return f"key {name}"

    @overload
    async def run(self, call: calls.RecommendCall) -> calls.Recommended: ...
    @overload
    async def run(self, call: calls.SimilarCall) -> calls.Similar: ...
    @overload
    async def run(self, call: calls.RecordCall) -> calls.Recorded: ...
    @overload
    async def run(self, call: calls.ExplainCall) -> calls.Explained: ...

    async def run(
        self,
        call: calls.RecommendCall | calls.SimilarCall | calls.RecordCall | calls.ExplainCall,
    ) -> calls.Recommended | calls.Similar | calls.Recorded | calls.Explained:
        """Answer a call of somebody who was admitted.

        Raises:
            RefusedCallError: for what can't be answered; of a fault of ours it says no more than that.
        """
        try:
            match call:
                case calls.RecommendCall():
                    return self.service.recommend(call)
                case calls.SimilarCall():
                    return self.service.similar(call)
                case calls.RecordCall():
                    return await self._record(call)
                case calls.ExplainCall():
                    # Gradients take a while: others are answered meanwhile.
                    return await asyncio.to_thread(self.service.explain, call)
        except RefusedCallError:
            raise
        except EventStoreError as error:
            _LOG.error("an event could not be kept", extra={"reason": str(error)})
            raise RefusedCallError(
                Code.UNAVAILABLE, "the event could not be kept; try again later"
            ) from None
        except Exception as error:
            # Where, not what: a message could quote a user.
            where = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("a call failed", extra={"reason": f"{type(error).__name__} at {where}"})
            raise RefusedCallError(
                Code.INTERNAL, "the service failed; its log says where"
            ) from None

    async def _record(self, call: calls.RecordCall) -> calls.Recorded:
        event = self.service.checked(call, datetime.now(UTC))

        async def keep() -> calls.Recorded:
            loop = asyncio.get_running_loop()
            kept, again = await loop.run_in_executor(self._writer, self._store.add, event)
            if not again:
                self.service.remember(kept)
                self.metrics.kept()
            return calls.Recorded(number=kept.number, again=again)

        # A caller that goes away must not keep the service from knowing what is on the disk.
        task = asyncio.ensure_future(keep())
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        return await asyncio.shield(task)

    def told(self, interface: str, call: str, code: str, started: float) -> None:
        """Write down that a call begun at `time.perf_counter() = started` was answered or refused."""
        seconds = time.perf_counter() - started
        self.metrics.called(interface, call, code, seconds)
        if self._log_calls or code != "ok":
            _LOG.info(
                "%s over %s: %s", call, interface, code,
                extra={"event": call, "code": code, "seconds": round(seconds, 6)},
            )  # fmt: skip

    async def close(self) -> None:
        """Finish what is being kept and let the file of events go."""
        if self._keeping:
            await asyncio.wait(set(self._keeping))
        self._writer.shutdown()
        self._store.close()
