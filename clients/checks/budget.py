"""Checks of what is left of the users' privacy for the accepted plan, without holding the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

from clients.adapters import COMPLETE_JOURNEY
from clients.checks.folder import accepted_plan, trusted_roster
from clients.guard import check_price
from clients.membership import Received
from clients.state import PlatformFolder
from crossrec_model.checkup import Finding, ok, refused, warn
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError, StateError
from crossrec_model.privacy.events import Budget, Event
from crossrec_model.privacy.ledger import LEDGER, History, read_history
from crossrec_model.privacy.planning import run_events
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.secagg.roster import Roster


def left(folder: Path, budget: Budget) -> Iterator[Finding]:
    """Whether the accepted plan, or the rest of the run that was begun, fits into what is left.

    Raises:
        LedgerError: if the ledger is damaged or can't be read.
    """
    history = read_history(folder / LEDGER)
    if history.note:
        yield warn("budget", history.note, "nothing to do: it is mended when a run starts")
    spent = f"epsilon {history.spent(budget.delta):.3g} of {budget.life_epsilon:g} is spent"
    roster, begun = trusted_roster(folder), _begun(folder)
    plan = begun.plan if begun else _accepted(folder)
    if roster is None or plan is None:
        yield ok("budget", f"{spent}; there is no plan yet to compare with what is left")
        return
    if not plan.privacy.on:
        yield ok("budget", f"{spent}; the plan has no differential privacy and spends none of it")
        return
    planned, run = _planned(plan, roster, begun)
    try:
        check_price(planned, history, budget, run)
    except ConfigError as error:
        yield refused("budget", error)
        return
    price = epsilon(planned, budget.delta)
    of = "the rest of the run" if run else "the plan"
    found = f"{spent}, {of} costs {price:.3g} (delta {budget.delta:g}) and fits"
    yield _for_another(found, plan, roster, history, budget, planned)


def _for_another(
    found: str,
    plan: Plan,
    roster: Roster,
    history: History,
    budget: Budget,
    planned: tuple[Event, ...],
) -> Finding:
    whole = run_events(plan, roster.honest(plan.aggregation.colluding_share))
    spent = (record.event for record in history.records)
    if epsilon((*spent, *planned, *whole), budget.delta) <= budget.life_epsilon:
        return ok("budget", found)
    remedy = "ask for more noise or fewer rounds in the next plan, or raise --life-epsilon"
    return warn("budget", f"{found}, another run like it would not", remedy)


def data_end(folder: Path, data: str | None, day: date | None) -> Iterator[Finding]:
    """Whether a private run would know where the data end without looking at them."""
    plan = _accepted(folder)
    if plan is None or not plan.privacy.on or data is None:
        return
    if day is None and data != COMPLETE_JOURNEY:
        found = "in a private run no user's last event may decide where the data end"
        yield warn("data end", found, "give --data-end YYYY-MM-DD, e.g. the day of the export")


def _accepted(folder: Path) -> Plan | None:
    accepted = accepted_plan(folder)
    return None if accepted is None else accepted.plan


def _begun(folder: Path) -> Received | None:
    """What the folder has of a run that is not finished."""
    try:
        kept = PlatformFolder(folder).load_received()
    except StateError:
        return None
    return None if kept is None or kept.received.finished else kept.received


def _planned(
    plan: Plan, roster: Roster, begun: Received | None
) -> tuple[tuple[Event, ...], bytes | None]:
    """What is still to be charged, and the run it belongs to if that was begun."""
    planned = run_events(plan, roster.honest(plan.aggregation.colluding_share))
    return (planned, None) if begun is None else (planned[begun.round :], begun.run)
