"""A plan in plain words, for the operator who is asked to follow it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from clients.joining import Ask, Explain
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.parameters import Layout
from crossrec_model.privacy.events import Budget, Event
from crossrec_model.privacy.planning import run_events
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.secagg.invitation import SignedPlan
from crossrec_model.secagg.roster import Roster


def explainer(budget: Budget, spent: Sequence[Event]) -> Explain:
    """Return what explains plans against a budget, of which `spent` is used up already."""

    def explain(plan: SignedPlan, roster: Roster, before: Plan | None) -> list[str]:
        lines = [f"plan version {plan.version}:", *_meaning(plan.plan, roster, budget, spent)]
        if before is not None:
            lines += [f"  changed: {change}" for change in changes(before, plan.plan)]
        return lines

    return explain


def _meaning(plan: Plan, roster: Roster, budget: Budget, spent: Sequence[Event]) -> list[str]:
    federation, model, privacy = plan.federation, plan.model, plan.privacy
    share = plan.aggregation.colluding_share
    tower = "-".join(map(str, model.tower))
    lines = [
        f"  {federation.rounds} rounds; each needs {roster.threshold(share)} of the "
        f"{len(roster.members)} platforms and takes at most {federation.round_timeout_s:g} s",
        f"  a model of {Layout(plan.model).size:,} shared numbers: a table of {model.buckets:,} x "
        f"{model.dimension}, a graph over {', '.join(model.relations)}, a tower {tower}",
    ]
    if not privacy.on:
        return [
            *lines,
            "  no differential privacy: the model may tell about single users (needs --no-privacy)",
        ]
    events = run_events(plan, roster.honest(share))
    asked = epsilon(events, budget.delta)
    used = epsilon(spent, budget.delta) if spent else 0.0
    both = epsilon((*events, *spent), budget.delta)
    per_round = (
        f"{privacy.steps} noised steps a round" if privacy.steps > 1 else "one noised sum a round"
    )
    return [
        *lines,
        f"  each user's gradient is clipped to {privacy.clip:g}; {per_round}, {privacy.noise} noise of "
        f"{privacy.multiplier:.3g} x the clip",
        f"  it costs each user epsilon = {asked:.3g} at delta = {budget.delta:g} (you allow "
        f"{budget.epsilon:g} a run); with the {used:.3g} spent so far {both:.3g} (you allow "
        f"{budget.life_epsilon:g} for life)",
    ]


def changes(before: Plan, after: Plan) -> list[str]:
    """Every setting that differs, as `section.key: old -> new`."""
    one, two = (json.loads(plan.to_json()) for plan in (before, after))
    found = []
    for section in sorted(one):
        if not isinstance(one[section], dict):
            if one[section] != two[section]:
                found.append(f"{section}: {one[section]} -> {two[section]}")
            continue
        found += [
            f"{section}.{key}: {one[section][key]} -> {two[section][key]}"
            for key in sorted(one[section])
            if one[section][key] != two[section][key]
        ]
    return found


def asking(*, yes: bool, note: Callable[[str], None]) -> Ask:
    """Return what asks the operator: on a terminal by a question, else only `yes` accepts."""

    def ask(lines: list[str], question: str) -> bool:
        for line in lines:
            note(line)
        if yes:
            note("accepted (--yes)")
            return True
        if not sys.stdin.isatty():
            raise ConfigError(
                "the roster or plan above was not accepted yet, and nobody can be asked here; look at it "
                "and accept it with --yes"
            )
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}

    return ask
