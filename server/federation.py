"""The whole run: wait for platforms, hand out the plan, rounds, evaluation, finish."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from crossrec_model.config import Plan
from crossrec_model.errors import FederationError
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire.codec import FloatVector
from server.admission import Admission
from server.aggregation import Aggregation, CohortTooSmallError
from server.checkpoint import Checkpoint, CheckpointStore, RoundRecord
from server.courier import Courier, NodeId
from server.handover import Handover, hand_out
from server.optimizer import initial_state
from server.progress import Progress, progress_for
from server.round import ModelVersion, Outcome, RoundRunner
from server.securesum import SecureSum
from server.store import Store

#: How often the coordinator looks for new platforms while it waits.
LOOK_EVERY_S: Final = 0.1
#: SQLite's file in the state folder, where no other database is named.
DATABASE: Final = "coordinator.db"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the coordinator's operator runs a plan.

    `platforms` are waited for before the first round; afterwards a round needs the plan's
    `min_platforms`, or `platforms` where that is fewer. `wait_s` bounds every wait, in seconds.
    """

    platforms: int
    evaluate_every: int = 1
    wait_s: float = float("inf")

    def __post_init__(self) -> None:
        for name, value, least in (
            ("platforms", self.platforms, 1),
            ("evaluate_every", self.evaluate_every, 0),
        ):
            if value < least:
                raise FederationError(f"{name} is {value}; at least {least} is needed")
        if not self.wait_s > 0:
            raise FederationError(f"wait_s is {self.wait_s}; it must be above 0")


def fresh_start(plan: Plan, parameters: FloatVector) -> Checkpoint:
    """Return the checkpoint before the first round, with a new run id."""
    return Checkpoint(
        run=secrets.token_bytes(16),
        plan=plan,
        round=0,
        parameters=parameters,
        optimizer=initial_state(plan.federation, len(parameters)),
        history=(),
    )


class Federation:
    """Drives one run over a courier; `save` is called with every new checkpoint.

    `joined` hears of each platform that accepts the plan: its id, and its software's version.
    `handover` remembers who has the final model.

    Raises:
        FederationError: if fewer platforms are to be waited for than a sum needs.
    """

    def __init__(
        self,
        courier: Courier,
        start: Checkpoint,
        options: RunOptions,
        *,
        aggregation: Aggregation,
        save: Callable[[Checkpoint], object],
        progress: Progress,
        joined: Callable[[str, str], object] = lambda platform, software: None,
        handover: Handover | None = None,
    ) -> None:
        self._courier, self._options = courier, options
        self._handover = handover or Handover(start.run)
        self._save, self._progress = save, progress
        self._config, self._pairs = start.plan.federation, start.plan.pairs
        if options.platforms < aggregation.least:
            raise FederationError(
                f"{options.platforms} platforms are too few for a secure sum, which needs "
                f"{aggregation.least} of the roster; give more --platforms"
            )
        if options.platforms > aggregation.most:
            raise FederationError(
                f"{options.platforms} platforms are more than the {aggregation.most} of the roster; "
                "give fewer --platforms, or put more on the roster"
            )
        self._aggregation = aggregation
        self._least = max(aggregation.least, min(self._config.min_platforms, options.platforms))
        self._checkpoint = start
        self._admission = Admission(
            courier,
            session=secrets.token_bytes(16),
            plan=start.plan.to_json(),
            dimension=len(start.parameters),
            timeout_s=self._config.round_timeout_s,
            objection=aggregation.objection,
            note=progress.note,
            joined=joined,
        )

    def run(self) -> Checkpoint:
        """Run all rounds that are left and return the last checkpoint.

        Raises:
            FederationError: if the platforms needed don't come within `wait_s` seconds, or the
                model diverges. The last checkpoint saved is whole.
        """
        self._save(self._checkpoint)
        needed, failing_since = self._options.platforms, float("inf")
        while self._checkpoint.round < self._config.rounds:
            seats = self._wait_for(needed)
            needed = self._least
            try:
                self._round(self._runner(), seats)
                failing_since = float("inf")
            except CohortTooSmallError as error:
                failing_since = min(failing_since, time.monotonic())
                if time.monotonic() - failing_since > self._options.wait_s:
                    raise FederationError(
                        f"round {self._checkpoint.round + 1} failed for {self._options.wait_s:g} s: "
                        f"{error}; all before it is saved: start again with --resume"
                    ) from None
                self._progress.round_repeated(self._checkpoint.round + 1, str(error))
                self._admission.lost(seats[platform] for platform in error.lost)
                # A platform that fails at once must not be asked in a tight loop.
                time.sleep(min(1.0, self._options.wait_s))
        hand_out(
            self._checkpoint,
            self._courier,
            self._admission,
            self._handover,
            wait_s=self._options.wait_s,
            note=self._progress.note,
        )
        return self._checkpoint

    def _runner(self) -> RoundRunner:
        agreed = self._admission.agreed
        if agreed is None:
            raise FederationError("no platform accepted the plan; look at the platforms' output")
        return RoundRunner(
            aggregation=self._aggregation, config=self._config, agreed=agreed, pairs=self._pairs
        )

    def _wait_for(self, needed: int) -> dict[str, NodeId]:
        """Return the seats online once at least `needed` are."""
        end = time.monotonic() + self._options.wait_s
        seats = self._admission.seats()
        while len(seats) < needed:
            self._progress.waiting(tuple(seats), needed)
            if time.monotonic() > end:
                here = ", ".join(seats) or "none"
                raise FederationError(
                    f"{len(seats)} of {needed} platforms came within {self._options.wait_s:g} s "
                    f"(here: {here}); start the others, then start again with --resume"
                )
            time.sleep(LOOK_EVERY_S)
            seats = self._admission.seats()
        return seats

    def _round(self, runner: RoundRunner, seats: dict[str, NodeId]) -> None:
        """Train, evaluate, save: in that order, so that a saved round is a finished one."""
        before = self._checkpoint
        number = before.round + 1
        self._progress.round_started(number, self._config.rounds, tuple(seats))
        model = ModelVersion(
            run=before.run,
            round=before.round,
            parameters=before.parameters,
            optimizer=before.optimizer,
        )
        following, trained = runner.train(model, seats)
        self._left_out(trained, seats)
        # One that was lost after its vector counted would be waited for once more.
        present = {p: seats[p] for p in trained.contributors if p not in trained.lost}
        evaluated = self._evaluate(runner, following, present)
        record = RoundRecord(
            round=number,
            platforms=trained.contributors,
            seconds=trained.seconds,
            training=trained.metrics,
            evaluation=evaluated,
        )
        self._checkpoint = replace(
            before,
            round=number,
            parameters=following.parameters,
            optimizer=following.optimizer,
            history=(*before.history, record),
        )
        self._save(self._checkpoint)
        self._progress.round_finished(record, self._config.rounds)

    def _evaluate(
        self, runner: RoundRunner, model: ModelVersion, seats: dict[str, NodeId]
    ) -> dict[str, float]:
        """Return the validation metrics where they are due; a failed evaluation costs no round."""
        every = self._options.evaluate_every
        due = every and (model.round % every == 0 or model.round == self._config.rounds)
        if not due or not runner.agreed.evaluation_metrics:
            return {}
        try:
            outcome = runner.evaluate(model, seats)
        except FederationError as error:
            self._progress.note(f"round {model.round} was not evaluated: {error}")
            return {}
        self._left_out(outcome, seats)
        return outcome.metrics

    def _left_out(self, outcome: Outcome, seats: dict[str, NodeId]) -> None:
        for platform, reason in sorted(outcome.lost.items()):
            self._progress.left_out(platform, str(reason))
        if outcome.lost:
            self._admission.lost(seats[platform] for platform in outcome.lost)


def coordinate(
    courier: Courier,
    state: Path,
    start: Checkpoint,
    options: RunOptions,
    roster: Roster,
    *,
    database: str = "",
    progress: Progress | None = None,
) -> Checkpoint:
    """Run from a starting point, show the progress, save to the state folder; return the end.

    Sums are always secure here. `database` is SQLAlchemy's URL, empty for SQLite in the state folder.

    Raises:
        FederationError: as `Federation.run`, or for a database that can't be used.
        ConfigError: for a plan that can't be summed securely over the roster.
    """
    checkpoints, run = CheckpointStore(state), start.run
    with Store.open(database or state / DATABASE) as store, progress or progress_for() as listener:
        store.begin_run(run, start.plan.to_json())
        store.take_over(run, start.history)

        def save(checkpoint: Checkpoint) -> None:
            # The checkpoint first: what the database lacks is taken over at the next start.
            checkpoints.save(checkpoint)
            if checkpoint.history:
                store.save_round(run, checkpoint.history[-1])

        openings = store.openings(run)
        aggregation = SecureSum(courier, start.plan, roster, openings, listener.note)
        try:
            end = Federation(
                courier,
                start,
                options,
                aggregation=aggregation,
                save=save,
                progress=listener,
                joined=lambda platform, software: store.saw({platform: software}),
                handover=Handover(run, state),
            ).run()
        except BaseException as error:
            # A database that is gone, too, must not hide why the run ends.
            with suppress(FederationError):
                store.end_run(run, "failed" if isinstance(error, FederationError) else "stopped")
            raise
        store.end_run(run, "finished")
        return end


def starting_point(
    store: CheckpointStore,
    plan: Plan | None,
    *,
    initial: Callable[[Plan], FloatVector],
    resume: bool,
    rounds: int | None = None,
) -> Checkpoint:
    """Return the checkpoint to go on from; `rounds` overrides the plan's number of rounds.

    `initial` makes the first model of a plan, float32 [d].

    Raises:
        FederationError: for a store that holds a run already (without `resume`), or none (with it),
            or one of another plan, or one that is finished already and should get more rounds.
    """
    last = store.latest()
    if last is None:
        if resume:
            raise FederationError("no run to resume in the state folder; start without --resume")
        fresh = with_rounds(plan or Plan(), rounds)
        return fresh_start(fresh, initial(fresh))
    if not resume:
        raise FederationError(
            f"the state folder holds a run with {last.round} rounds done; "
            "add --resume to go on, or give another --state"
        )
    if plan is not None and with_rounds(plan, 1) != with_rounds(last.plan, 1):
        raise FederationError(
            "the plan differs from the one the run was started with; "
            "leave out --plan to go on, or give another --state"
        )
    wanted = with_rounds(plan or last.plan, rounds).federation.rounds
    if last.plan.federation.rounds <= last.round < wanted:
        # Its last statistics have seen the validation weeks: training must not start from them.
        raise FederationError(
            f"the run was finished after {last.round} rounds and can't get {wanted}; "
            "leave out --rounds, or start a longer run in another --state"
        )
    return replace(last, plan=with_rounds(last.plan, wanted))


def with_rounds(plan: Plan, rounds: int | None) -> Plan:
    """Return the plan with another number of rounds; None leaves it as it is."""
    if rounds is None:
        return plan
    return replace(plan, federation=replace(plan.federation, rounds=rounds))
