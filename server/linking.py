"""The coordinator as a blind courier of linkages: boxes of sealed frames, in memory, bounded.

It sees who links with whom, when, and how many frames of what length there are. It can drop, delay and
reorder; the platforms notice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crossrec_model.errors import WireError
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.post import (
    ANY_THREAD,
    NO_BOX,
    Pull,
    Pulled,
    Push,
    Pushed,
    Status,
    decode_post,
    encode_post,
)

#: Frames that wait in one box, of one sender, of all; each has at most 128 KiB.
MOST_WAITING: Final = 8
MOST_OF_SENDER: Final = 64
MOST_OF_ALL: Final = 1024
#: Requests of one platform: so many at once, and so many a second later on.
BURST: Final = 400.0
RATE_PER_S: Final = 200.0
#: Attempts that one platform may begin: so many at once, and so many a second later on. Each is a
#: line of the audit log.
BEGIN_BURST: Final = 60.0
BEGIN_PER_S: Final = 0.2
#: A box that nobody has touched for so long is thrown away, in seconds.
KEPT_S: Final = 86_400.0

#: Sender, receiver, purpose.
Way = tuple[str, str, Purpose]
#: Gets (sender, receiver, purpose) of each attempt that begins.
Note = Callable[[str, str, str], None]


class TooManyError(Exception):
    """A platform asks more often than allowed."""


@dataclass
class _Box:
    thread: bytes
    #: The number of the first frame that waits; all before it were received.
    first: int
    touched: float
    frames: deque[bytes] = field(default_factory=deque)


class _Buckets:
    """How much each platform may still do: `most` at once, `rate` a second."""

    def __init__(self, most: float, rate: float) -> None:
        self._most, self._rate = most, rate
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, platform: str, now: float) -> bool:
        """Count once; whether it was allowed."""
        left, since = self._left.get(platform, (self._most, now))
        left = min(self._most, left + max(0.0, now - since) * self._rate)
        allowed = left >= 1.0
        self._left[platform] = (left - 1.0 if allowed else left, now)
        return allowed


class PostOffice:
    """Answers the platforms' requests; for one thread.

    Args:
        members: gives the ids on the roster that counts now.
        begun: hears of each attempt that begins.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        members: Callable[[], tuple[str, ...]],
        begun: Note = lambda sender, receiver, purpose: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members, self._begun, self._clock = members, begun, clock
        self._boxes: dict[Way, _Box] = {}
        self._requests = _Buckets(BURST, RATE_PER_S)
        self._attempts = _Buckets(BEGIN_BURST, BEGIN_PER_S)

    def answer(self, platform: str, request: bytes) -> bytes:
        """Answer a request of a platform whose pass was checked.

        Raises:
            WireError: for anything but a push or a pull.
            TooManyError: for a platform that asks too often.
        """
        if not self._requests.take(platform, self._clock()):
            raise TooManyError(platform)
        message = decode_post(request)
        if isinstance(message, Push):
            return encode_post(self._push(platform, message))
        if isinstance(message, Pull):
            return encode_post(self._pull(platform, message))
        raise WireError(f"{type(message).__name__} came where a request was due")

    @property
    def waiting(self) -> int:
        """Frames in all boxes."""
        return sum(len(box.frames) for box in self._boxes.values())

    def _push(self, sender: str, push: Push) -> Pushed:
        if push.partner == sender or push.partner not in self._members():
            return Pushed(status=Status.UNKNOWN_PARTNER, received=0)
        way = (sender, push.partner, push.purpose)
        box = self._boxes.get(way)
        if push.opens and (box is None or box.thread != push.thread):
            begins = push.number == 0
            if self._is_full(sender) or (begins and not self._attempts.take(sender, self._clock())):
                return Pushed(status=Status.FULL, received=0)
            box = _Box(push.thread, push.number, self._clock())
            self._boxes[way] = box
            if begins:
                self._begun(sender, push.partner, push.purpose.name.lower())
        if box is None:
            return Pushed(status=Status.NO_THREAD, received=0)
        if box.thread != push.thread:
            return Pushed(status=Status.OTHER_THREAD, received=0)
        box.touched = self._clock()
        due = box.first + len(box.frames)
        if push.number > due:
            return Pushed(status=Status.OUT_OF_ORDER, received=box.first)
        if push.number == due:
            if len(box.frames) >= MOST_WAITING or self._is_full(sender):
                return Pushed(status=Status.FULL, received=box.first)
            box.frames.append(push.frame)
        return Pushed(status=Status.DONE, received=box.first)

    def _pull(self, receiver: str, pull: Pull) -> Pulled:
        own = self._boxes.get((receiver, pull.partner, pull.purpose))
        received = own.first if own is not None and own.thread == pull.thread else NO_BOX

        def told(status: Status, thread: bytes = ANY_THREAD, frame: bytes = b"") -> Pulled:
            return Pulled(status=status, received=received, thread=thread, frame=frame)

        if pull.partner == receiver or pull.partner not in self._members():
            return told(Status.UNKNOWN_PARTNER)
        box = self._boxes.get((pull.partner, receiver, pull.purpose))
        if box is None:
            return told(Status.NOTHING)
        if pull.thread not in {ANY_THREAD, box.thread}:
            return told(Status.OTHER_THREAD, box.thread)
        box.touched = self._clock()
        while pull.thread == box.thread and box.frames and box.first < pull.number:
            box.frames.popleft()
            box.first += 1
        if pull.number < box.first:
            return told(Status.OUT_OF_ORDER, box.thread)
        if pull.number >= box.first + len(box.frames):
            return told(Status.NOTHING, box.thread)
        return told(Status.DONE, box.thread, box.frames[pull.number - box.first])

    def _is_full(self, sender: str) -> bool:
        """Whether nothing more may wait; boxes that nobody touches are thrown away first."""
        now = self._clock()
        for way in [way for way, box in self._boxes.items() if now - box.touched > KEPT_S]:
            del self._boxes[way]
        own = sum(len(box.frames) for way, box in self._boxes.items() if way[0] == sender)
        return own >= MOST_OF_SENDER or self.waiting >= MOST_OF_ALL
