"""What a platform lets a plan do to its users: nothing is computed for a round before it is charged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.privacy.events import Event
from crossrec_model.privacy.ledger import Budget, History, Ledger
from crossrec_model.privacy.planning import round_event, run_events
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.secagg.invitation import SignedPlan
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster

#: What a round does, as the ledger has it.
_ON_THE_LEDGER: Final = {"popularity": "statistics", "pairs": "pairs", "training": "training"}


class Guard(Protocol):
    """Decides on plans and charges rounds."""

    def accept(self, plan: Plan, run: bytes | None) -> None:
        """Raise ConfigError for a plan that this platform does not follow.

        `run` is that of an earlier part of the run, if this platform goes on with it.
        """

    def honest(self, plan: Plan) -> int:
        """Platforms in every sum, this one included, whose noise nobody else knows."""

    def charge(self, plan: Plan, run: bytes, number: int, honest: int) -> None:
        """Record durably what round `number` does, before anything is computed for it.

        `honest` is what it was when the plan was accepted: the sums are still over that roster.

        Raises:
            BudgetExceededError: if it would overspend; nothing is recorded.
        """


class LedgerGuard:
    """Charges to a ledger within a budget.

    Args:
        roster: gives the roster that this platform trusts now.
        allow_none: follow plans without differential privacy too.
        public_end: whether the day on which the data end is known without looking at them.
        agreed: gives the signed plan that this platform accepted; None: any plan will do.
    """

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        roster: Callable[[], Roster],
        *,
        allow_none: bool = False,
        public_end: bool = True,
        agreed: Callable[[], SignedPlan | None] = lambda: None,
    ) -> None:
        self._agreed = agreed
        self._ledger, self._budget, self._roster = ledger, budget, roster
        self._allow_none, self._public_end = allow_none, public_end

    def accept(self, plan: Plan, run: bytes | None) -> None:
        """See `Guard`: the whole run must fit into what is left of the budget."""
        agreed = self._agreed()
        if agreed is not None and agreed.plan != plan:
            raise ConfigError(
                f"the coordinator's plan is not the signed version {agreed.version} that this platform "
                "accepted; ask its operator which one counts"
            )
        check_noise(plan, self._roster(), allow_none=self._allow_none)
        if not plan.privacy.on:
            return
        if not self._public_end:
            raise ConfigError(
                "in a private run no user's last event may decide where the data end; give that day "
                "as --data-end YYYY-MM-DD, e.g. the day of the export"
            )
        if run is not None and self._ledger.spent(self._budget.delta, run) > 0:
            return  # it was accepted as a whole when it began; each round is still checked
        check_price(run_events(plan, self.honest(plan)), self._ledger, self._budget)

    def honest(self, plan: Plan) -> int:
        """See `Guard`."""
        return self._roster().honest(plan.aggregation.colluding_share)

    def charge(self, plan: Plan, run: bytes, number: int, honest: int) -> None:
        """See `Guard`."""
        if not plan.privacy.on:
            return
        event = round_event(plan, number, honest)
        what = _ON_THE_LEDGER[plan.work_of(number)]
        self._ledger.charge(event, run=run, round=number, what=what, budget=self._budget)


def check_noise(plan: Plan, roster: Roster, *, allow_none: bool) -> None:
    """Raise ConfigError for a plan without differential privacy, unless that is allowed."""
    if plan.privacy.on:
        return
    if len(roster.members) < FEWEST:
        raise ConfigError(f"the plan has no differential privacy, and {OF_TWO}")
    if not allow_none:
        raise ConfigError(
            "the plan has no differential privacy: updates could tell about single users; ask "
            "the coordinator's operator for a plan with it, or accept this with --no-privacy"
        )


def check_price(
    planned: Sequence[Event], history: History, budget: Budget, run: bytes | None = None
) -> None:
    """Raise ConfigError unless what is planned fits into what is left of a budget.

    With `run`, it is the rest of that run, of which something was charged before.
    """
    spent = [(record.run, record.event) for record in history.records]
    begun = (event for of, event in spent if of == run)
    asked = epsilon((*begun, *planned), budget.delta)
    life = epsilon((*planned, *(event for _, event in spent)), budget.delta)
    for name, value, limit in (
        ("--epsilon", asked, budget.epsilon),
        ("--life-epsilon", life, budget.life_epsilon),
    ):
        if value > limit:
            before = "" if name == "--epsilon" else " with all that was spent before"
            raise ConfigError(
                f"the plan costs each user epsilon = {value:.3g}{before} at delta = "
                f"{budget.delta:g}, more than {name} = {limit:g}; ask for a plan with more "
                f"noise, or raise {name}"
            )


class OpenGuard:
    """For simulations: every plan is followed and nothing is recorded."""

    def __init__(self, honest: int = 1) -> None:
        self._honest = honest

    def accept(self, plan: Plan, run: bytes | None) -> None:
        """See `Guard`."""

    def honest(self, plan: Plan) -> int:
        """See `Guard`."""
        return self._honest

    def charge(self, plan: Plan, run: bytes, number: int, honest: int) -> None:
        """See `Guard`."""
