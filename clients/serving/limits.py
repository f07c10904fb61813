"""How much a caller may ask: a bucket of calls for each, filled at a rate."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

#: Callers beyond are forgotten, the one who asked longest ago first.
MOST_CALLERS: Final = 10_000


class RateLimit:
    """Lets each caller make `burst` calls at once and `rate` a second over time.

    `clock` gives seconds that never go back. One thread asks at a time.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, caller: str) -> bool:
        """Count a call; False if the caller has none left."""
        now = self._clock()
        left, before = self._left.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - before) * self._rate)
        allowed = left >= 1
        self._left[caller] = (left - 1 if allowed else left, now)
        if len(self._left) > MOST_CALLERS:
            self._left.popitem(last=False)
        return allowed
