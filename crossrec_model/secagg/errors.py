"""Every reason why a party leaves the secure sum, by name."""

from __future__ import annotations

from crossrec_model.errors import CrossrecError


class SecureSumError(CrossrecError):
    """A secure sum that can't go on; nothing about a single platform was shown.

    `platform` is the one at fault, where that is known.
    """

    def __init__(self, message: str, platform: str | None = None) -> None:
        super().__init__(message)
        self.platform = platform


class IdentityError(SecureSumError):
    """A long-term key that can't be used."""


class RosterError(SecureSumError):
    """A roster that can't be used, or one that is not the pinned one."""


class SignatureError(SecureSumError):
    """A signature that is missing or does not fit."""


class KeyListError(SecureSumError):
    """A list of keys with a swapped, doubled, unknown or missing entry."""


class ParametersError(SecureSumError):
    """Parameters other than those that the plan and the cohort give."""


class SharesError(SecureSumError):
    """Shares that are too few, malformed, or don't fit together."""


class ImplausibleSumError(SecureSumError):
    """A sum that no contributions within the grid can have: somebody sent something else."""


class OutOfTurnError(SecureSumError):
    """A message that is not due in this state."""


class OldSlotError(SecureSumError):
    """A slot or a key agreement that was used before: its masks must never be used twice."""


class OldRoundError(SecureSumError):
    """A round that was left behind: its sum may not be opened any more."""


class SurvivorsError(SecureSumError):
    """Lists of survivors and dropped platforms that overlap or are not the cohort."""


class OtherListError(SecureSumError):
    """A second, different list of survivors for the same sum."""


class TooFewPlatformsError(SecureSumError):
    """Fewer platforms than the threshold."""

    def __init__(self, here: int, of: int, needed: int, where: str = "") -> None:
        super().__init__(
            f"too few platforms{where and ' '}{where}: {here} of {of}, need {needed}; "
            "start the missing ones"
        )
        self.here, self.of, self.needed = here, of, needed


class NotFiniteError(SecureSumError):
    """A contribution that holds NaN or an infinity."""


class ValueOutOfBoundsError(SecureSumError):
    """A contribution beyond the bounds of the grid."""
