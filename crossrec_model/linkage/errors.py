"""Every reason why a linkage is refused, by name. None quotes an identifier."""

from __future__ import annotations

from crossrec_model.errors import CrossrecError


class LinkageError(CrossrecError):
    """A linkage that can't begin or go on; nothing about a user was shown."""


class UnknownPlatformError(LinkageError):
    """A partner that is not on the roster, or this platform itself."""


class HandshakeError(LinkageError):
    """An offer or acceptance that is not signed by the pinned identity, or is for something else."""


class OtherSessionError(LinkageError):
    """A frame of another session than this one."""


class TamperedError(LinkageError):
    """A sealed block that does not open: it was changed, cut, or sealed for something else."""


class ReplayedBlockError(LinkageError):
    """A block that was taken already."""


class MissingBlockError(LinkageError):
    """A block whose predecessor has not come: one is missing, or they come out of order."""


class BlockNumberError(LinkageError):
    """A block beyond the last one that was announced, or an answer to one that was not sent."""


class BlockSizeError(LinkageError):
    """A block with another number of points than its place has."""


class PointError(LinkageError):
    """Bytes that are no canonical encoding of a point of the group, or the identity."""


class RepeatedElementError(LinkageError):
    """The same element twice in one set: it would be counted twice, or probe for one person."""


class MadeUpError(LinkageError):
    """An answer by which padding, that nobody else can have, would be common: answers are made up."""


class TruncatedError(LinkageError):
    """The other side ended before its last block."""


class ReceiptError(LinkageError):
    """A receipt of something else than was sent."""


class SmallSetError(LinkageError):
    """A set below the minimum size: its intersection would tell about single persons."""


class LargeSetError(LinkageError):
    """A set above the size that a session may have."""


class TooOftenError(LinkageError):
    """More linkages with one partner in a period than allowed."""


class SmallChangeError(LinkageError):
    """A set with so few new elements that the intersections' difference would tell about them."""
