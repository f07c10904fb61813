"""A long frame on its way: cut for sending, put together on arrival, in no more than one copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

import numpy as np

from crossrec_model.errors import WireError
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.messages import MAX_BODY

#: What is sent: bytes, or pieces of which the concatenation is meant. Long pieces are not copied,
#: so they must stay as they are until the frame is sent.
Frame = bytes | memoryview | Pieces
#: What arrives: one contiguous run of bytes that can't be changed.
Payload = bytes | memoryview

#: The longest piece that travels in one request. A web framework holds a few requests for longer
#: than it needs, each some five times in parts, so short pieces save more than they cost.
PIECE_BYTES: Final = 2 << 20
SHORT_BYTES: Final = 1 << 18
#: The longest frame that is taken: a message's body and the few bytes before it.
MAX_FRAME: Final = MAX_BODY + 64


def slices(frame: Pieces) -> list[memoryview]:
    """Cut a frame into views of at most `PIECE_BYTES` bytes; only short pieces are copied.

    Each slice costs a request, so neighbouring pieces shorter than `SHORT_BYTES` become one.
    """
    cut: list[memoryview] = []
    # A view without any number can't be cast.
    flat = (view.cast("B") for view in (memoryview(piece) for piece in frame) if view.nbytes)
    for short, run in itertools.groupby(flat, key=lambda view: len(view) < SHORT_BYTES):
        for view in (memoryview(b"".join(run)),) if short else run:
            cut += (view[at : at + PIECE_BYTES] for at in range(0, len(view), PIECE_BYTES))
    return cut


def assemble(size: int, order: Iterable[str], pieces: Iterable[bytes]) -> memoryview:
    """Put pieces together in one buffer of `size` bytes, the only copy that is made.

    `order` names the piece at each place; `pieces` brings each name's once, as they first occur.

    Raises:
        WireError: for a size above `MAX_FRAME`, or pieces that don't fill the buffer exactly.
    """
    if not 0 <= size <= MAX_FRAME:
        raise WireError(f"frame has {size} bytes; at most {MAX_FRAME} are allowed")
    # Not zeroed: memory is taken as pieces come, not when their sum is announced.
    buffer = np.empty(size, dtype=np.uint8).data
    arriving, placed, end = iter(pieces), dict[str, slice](), 0
    for name in order:
        piece = buffer[placed[name]] if name in placed else next(arriving, None)
        if piece is None:
            raise WireError(f"frame's pieces have {end} bytes, then one is missing")
        start, end = end, end + len(piece)
        if end > size:
            raise WireError(f"frame's pieces have more than the {size} bytes announced")
        placed[name] = slice(start, end)
        buffer[placed[name]] = piece
        del piece  # else it would stay while the next one is fetched
    if end != size:
        raise WireError(f"frame's pieces have {end} bytes; {size} were announced")
    return buffer.toreadonly()
