"""Splits by time: what was known, what is validated on, what is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from crossrec_model.data.histories import Histories
from crossrec_model.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """Days since 1970 UTC: train < validation ≤ … < test ≤ … < end."""

    validation: float
    test: float
    end: float

    def describe(self) -> str:
        """The boundaries as dates."""
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        dates = [
            (epoch + timedelta(days=d)).date().isoformat()
            for d in (self.validation, self.test, self.end)
        ]
        return f"validation from {dates[0]}, test from {dates[1]} to {dates[2]}"


def split_by_weeks(
    last_day: float, *, validation_weeks: float = 8.0, test_weeks: float = 4.0
) -> TimeSplit:
    """Test is the last `test_weeks`, validation the weeks from `validation_weeks` before the end to it."""
    if not 0 < test_weeks < validation_weeks:
        raise DataError(
            f"test_weeks = {test_weeks} must be above 0 and below validation_weeks = {validation_weeks}"
        )
    return TimeSplit(
        validation=last_day - 7 * validation_weeks,
        test=last_day - 7 * test_weeks,
        # The last event itself belongs to the test weeks.
        end=last_day + 1e-6,
    )


def check_split(histories: Histories, split: TimeSplit, *, min_users: int) -> None:
    """Refuse a platform whose training weeks hold too few users.

    Raises:
        DataError: naming the number, the minimum and the remedy.
    """
    users = len(set(histories.before(split.validation).user_of_event().tolist()))
    if users < min_users:
        raise DataError(
            f"{users} users have events before the validation weeks; at least {min_users} are needed; "
            "deliver more history or shorten the validation weeks"
        )
