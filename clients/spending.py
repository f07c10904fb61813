"""The text of the command `privacy`: what a platform has spent of its users' privacy."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from crossrec_model.privacy.events import (
    Budget,
    DistributedGaussian,
    Event,
    Record,
    SampledGaussian,
    check_delta,
    tally,
)
from crossrec_model.privacy.ledger import History, Remaining, read_history
from crossrec_model.privacy.pricing import Prices, prices
from crossrec_model.privacy.unit import for_person

#: Where no charge has recorded one.
DEFAULT_DELTA: Final = 1e-5
_NOISE: Final = {True: "distributed", False: "local"}
_HEADS: Final = ("what", "charges", "noise", "multiplier", "rate", "steps", "honest")


@dataclass(frozen=True, kw_only=True)
class RunSpending:
    """What one run has cost so far."""

    run: bytes
    first_round: int
    last_round: int
    charges: int
    prices: Prices


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """Charges of one purpose and with equal parameters; `event` holds them, of one step."""

    what: str
    event: Event
    charges: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Everything that the command tells, at one delta; `budget` is None if none is known."""

    platform: str
    path: Path
    delta: float
    life: Prices
    runs: tuple[RunSpending, ...]
    purposes: tuple[Purpose, ...]
    budget: Budget | None
    remaining: Remaining | None
    note: str
    #: On how many platforms a person may be a user, and what all of them together cost her then.
    platforms: int = 1
    person: Prices | None = None

    def lines(self) -> list[str]:
        """The text for the operator's terminal."""
        if not self.runs:
            return [
                *([self.note] if self.note else []),
                f"nothing was spent: platform {self.platform} has no charge in {self.path}",
            ]
        return [
            *([self.note, ""] if self.note else []),
            f"spent by platform {self.platform} at delta = {_plain(self.delta)}",
            *_table(_run_rows(self)),
            "",
            *_table(_purpose_rows(self.purposes)),
            "",
            *self._budget_lines(),
            *meaning(self),
        ]

    def to_json(self) -> str:
        """The same as JSON on one line; an infinite epsilon is the text "infinite"."""
        document = {
            "platform": self.platform,
            "ledger": str(self.path),
            "delta": self.delta,
            "life": _prices(self.life),
            "runs": [_run_document(run) for run in self.runs],
            "purposes": [_purpose_document(purpose) for purpose in self.purposes],
            "budget": dataclasses.asdict(self.budget) if self.budget else None,
            "remaining": dataclasses.asdict(self.remaining) if self.remaining else None,
            "person": {"platforms": self.platforms, **_prices(self.person)}
            if self.person
            else None,
            "meaning": meaning(self) if self.runs else [],
            "note": self.note,
        }
        return json.dumps(document, allow_nan=False)

    def _budget_lines(self) -> list[str]:
        budget, left = self.budget, self.remaining
        if not budget or not left:
            return []
        return [
            f"budget: epsilon = {budget.epsilon:g} a run, {budget.life_epsilon:g} for life; left: "
            f"{left.run:.3g} for run {self.runs[-1].run.hex()[:8]}, {left.life:.3g} for life",
            "",
        ]


def read_spending(
    path: Path,
    platform: str,
    *,
    delta: float | None = None,
    epsilon: float | None = None,
    life_epsilon: float | None = None,
    platforms: int = 1,
) -> Spending:
    """Read a platform's ledger and price it; what is None is as the last charge recorded it.

    Raises:
        LedgerError: if the ledger is damaged or can't be read.
        ConfigError: for a delta or budget outside its bounds.
    """
    history = read_history(path)
    last = history.records[-1].budget if history.records else None
    if delta is None:
        delta = last.delta if last else DEFAULT_DELTA
    check_delta(delta)
    budget = _budget(last, delta, epsilon, life_epsilon)
    runs = tuple(_runs(history, delta))
    left = history.remaining(budget, runs[-1].run) if budget and runs else None
    met = for_person((record.event for record in history.records), platforms)
    return Spending(
        platform=platform,
        path=path,
        delta=delta,
        life=history.prices(delta),
        runs=runs,
        purposes=tuple(_purposes(history.records)),
        budget=budget,
        remaining=left,
        note=history.note,
        platforms=platforms,
        person=prices(met, delta) if platforms > 1 else None,
    )


def meaning(spending: Spending) -> list[str]:
    """Say in plain sentences, one a line, what the price for life is worth and against whom."""
    price, delta = spending.life, _plain(spending.delta)
    runs = len(spending.runs)
    scope = f"her whole history and {f'all {runs} runs' if runs > 1 else 'the one run so far'}"
    events = [purpose.event for purpose in spending.purposes]
    honest = max((e.honest for e in events if isinstance(e, DistributedGaussian)), default=0)
    if not honest:
        return [
            "Whoever sees everything that this platform has ever sent can tell whether any one "
            "user's whole history was among its data at most a factor of "
            f"{_factor(price.everyone)} better than without it, except with probability {delta} "
            f"(delta); it holds for {scope}.",
            *_of_a_person(spending),
        ]
    return [
        "Whoever sees only sums over platforms, and nothing that this platform itself has sent, can "
        "tell whether any one user's whole history was among its data at most a factor of "
        f"{_factor(price.sums)} better than without them, except with probability {delta} (delta), "
        f"as long as nobody else knows the noise of at least {honest} platforms of each sum, this one "
        f"included; it holds for {scope}.",
        "Against whoever sees this platform's own messages unmasked, or knows the noise of the other "
        "platforms, noise that was distributed gives no such bound.",
        *_of_a_person(spending),
    ]


def _of_a_person(spending: Spending) -> list[str]:
    if spending.person is None:
        return []
    return [
        f"Somebody who is a user of {spending.platforms} platforms that have all sent as much as this "
        f"one is protected by each of them; all together tell about her at most a factor of "
        f"{_factor(spending.person.sums)}."
    ]


def _budget(
    last: Budget | None, delta: float, epsilon: float | None, life_epsilon: float | None
) -> Budget | None:
    if epsilon is None:
        epsilon = last.epsilon if last else None
    if life_epsilon is None:
        life_epsilon = last.life_epsilon if last else epsilon
    if epsilon is None or life_epsilon is None:
        return None
    return Budget(epsilon=epsilon, delta=delta, life_epsilon=life_epsilon)


def _runs(history: History, delta: float) -> Iterable[RunSpending]:
    """All runs, the one with the latest charge last."""
    latest = dict.fromkeys(record.run for record in reversed(history.records))
    for run in reversed(list(latest)):
        rounds = [record.round for record in history.records if record.run == run]
        yield RunSpending(
            run=run,
            first_round=min(rounds),
            last_round=max(rounds),
            charges=len(rounds),
            prices=history.prices(delta, run),
        )


def _purposes(records: Sequence[Record]) -> Iterable[Purpose]:
    by_what: dict[str, list[Event]] = {}
    for record in records:
        by_what.setdefault(record.what, []).append(record.event)
    for what, events in by_what.items():
        for one, steps in tally(events).items():
            charges = sum(one in tally([event]) for event in events)
            yield Purpose(what=what, event=one, charges=charges, steps=steps)


def _run_rows(spending: Spending) -> list[list[str]]:
    rows = [["run", "rounds", "charges", "epsilon", "epsilon against sums only"]]
    for run in spending.runs:
        rounds = f"{run.first_round}-{run.last_round}"
        rows.append([run.run.hex()[:8], rounds, str(run.charges), *_shown(run.prices)])
    charges = sum(run.charges for run in spending.runs)
    return [*rows, ["life", "", str(charges), *_shown(spending.life)]]


def _purpose_rows(purposes: Iterable[Purpose]) -> list[list[str]]:
    rows = [list(_HEADS)]
    for purpose in purposes:
        shown = _purpose_document(purpose)
        cells = (shown.get(head) for head in _HEADS)
        rows.append(
            ["" if c is None else f"{c:.6g}" if isinstance(c, float) else str(c) for c in cells]
        )
    return rows


def _purpose_document(purpose: Purpose) -> dict[str, Any]:
    """The purpose by the names of `_HEADS`; None where the kind of event has no such number."""
    event = purpose.event
    return {
        "what": purpose.what,
        "charges": purpose.charges,
        "noise": _NOISE[isinstance(event, DistributedGaussian)],
        "multiplier": event.multiplier,
        "rate": event.rate if isinstance(event, SampledGaussian) else None,
        "steps": purpose.steps if isinstance(event, SampledGaussian) else None,
        "honest": event.honest if isinstance(event, DistributedGaussian) else None,
    }


def _run_document(run: RunSpending) -> dict[str, Any]:
    named = {"run": run.run.hex(), "rounds": [run.first_round, run.last_round]}
    return named | {"charges": run.charges, **_prices(run.prices)}


def _prices(prices: Prices) -> dict[str, float | str]:
    return {
        name: value if math.isfinite(value) else "infinite"
        for name, value in (("epsilon", prices.everyone), ("epsilon_sums_only", prices.sums))
    }


def _shown(prices: Prices) -> tuple[str, str]:
    everyone, sums = (
        f"{value:.4g}" if math.isfinite(value) else "no bound"
        for value in (prices.everyone, prices.sums)
    )
    return everyone, sums


def _factor(epsilon: float) -> str:
    if epsilon > 500:
        return f"e^{epsilon:.4g}, which protects nobody,"
    factor = math.exp(epsilon)
    return f"e^{epsilon:.2f} = {factor:.1f}" if factor < 1e6 else f"e^{epsilon:.1f} = {factor:.1e}"


def _plain(value: float) -> str:
    """A number without an exponent."""
    return f"{Decimal(repr(value)):f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns two spaces apart, the first to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
