"""What a sealed block must be before anything is done with it: in turn, of its size, points, each once."""

from __future__ import annotations

import numpy as np

from crossrec_model.linkage.channel import Channel
from crossrec_model.linkage.errors import (
    BlockNumberError,
    BlockSizeError,
    MissingBlockError,
    PointError,
    RepeatedElementError,
    ReplayedBlockError,
)
from crossrec_model.linkage.group import Rows
from crossrec_model.linkage.messages import POINT_BYTES, Sealed


def check_number(sealed: Sealed, due: int, end: int) -> None:
    """Return if a block is the one that is due, of `end`.

    Raises:
        LinkageError: ReplayedBlockError, BlockNumberError or MissingBlockError.
    """
    what = f"block {sealed.number} of {sealed.stream.name.lower()}"
    if sealed.number < due:
        raise ReplayedBlockError(f"{what} came again; it was taken once")
    if sealed.number >= end:
        raise BlockNumberError(f"{what} came; there are {end}")
    if sealed.number > due:
        raise MissingBlockError(f"{what} came where {due} was due: one is missing")


def opened_points(channel: Channel, sealed: Sealed, rows: slice) -> Rows:
    """Open a block for the places `rows`: points uint8 [n, 32].

    That they lie on the curve shows only when they are multiplied.

    Raises:
        LinkageError: TamperedError, OtherSessionError, BlockSizeError, PointError or RepeatedElementError.
    """
    plain, count = channel.open(sealed), rows.stop - rows.start
    if len(plain) != count * POINT_BYTES:
        raise BlockSizeError(
            f"block {sealed.number} has {len(plain)} bytes; {count * POINT_BYTES} are needed"
        )
    points = np.frombuffer(plain, dtype=np.uint8).reshape(count, POINT_BYTES)
    # An encoding is even and below 2^255 - 19; all zeros are the identity.
    top = points[:, ::-1]
    above = (top[:, 0] > 0x7F) | (
        (top[:, 0] == 0x7F) & (top[:, 1:31] == 0xFF).all(axis=1) & (top[:, 31] >= 0xED)
    )
    if (above | (points[:, 0] & 1 == 1) | ~points.any(axis=1)).any():
        raise PointError(f"block {sealed.number} holds a malformed point or the identity")
    whole = np.sort(points.view(f"S{POINT_BYTES}")[:, 0])
    if (whole[1:] == whole[:-1]).any():
        raise RepeatedElementError(f"block {sealed.number} holds an element twice")
    return points
