"""Plans: as the coordinator sends them, as their operator writes them, as they are explained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from targets import OF_JSON, OF_TEXT, Check, Cost, Target, same
from targets_keys import (
    sealed_plan,
    signed_roster,
    written,
)
from targets_platform import BUDGET, SMALL, _events

from clients.terms import explainer
from crossrec_model.config import Plan
from crossrec_model.parameters import Layout


def plan_json(data: bytes) -> None:
    """A plan as the coordinator sends it."""
    plan = Plan.from_json(data)
    same(Plan.from_json(plan.to_json()), plan, "plan")
    same(plan.to_json(), Plan.from_json(plan.to_json()).to_json(), "plan")
    # What a platform works out before it answers.
    same(Layout(plan.model).size > 0, True, "size")
    same(math.isfinite(plan.aggregation.step), True, "step")


def _plan_toml(scratch: Path) -> Check:
    path = scratch / "plan.toml"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        plan = Plan.from_toml(path)
        same(Plan.from_json(plan.to_json()), plan, "plan")

    return check


def _plan_texts() -> list[bytes]:
    return [
        b"seed = 3\n[model]\nbuckets = 1024\ndimension = 8\ntower = [16, 4, 1]\n"
        b'activation = "relu"\nrelations = ["self", "brand"]\n[training]\nlearning_rate = 0.01\n',
        b'[federation]\nrounds = 9\nserver_lr = 1\noptimizer = "fedadam"\ntau = 1e-3\n'
        b'[privacy]\nnoise = "local"\nmultiplier = 1.0\nstatistics_multiplier = 1.0\n',
        b"[aggregation]\nlevels = 4096\nbound = 0.5\n",
    ]


def _with_plan(read: Check) -> Check:
    """Read the plan in a signed plan that is signed anew around a changed one."""
    federation = {"federation": "demo", "format": 1, "version": 3}

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        raw = written(sealed_plan(federation | {"plan": text}))
        read(raw or data)

    return check


def _terms(_folder: Path) -> Check:
    """A plan, explained to an operator as the change of another one."""
    from crossrec_model.secagg.invitation import SignedPlan

    explain, roster = explainer(BUDGET, _events()[:1]), signed_roster().roster

    def read(data: bytes) -> None:
        lines = explain(SignedPlan.from_json(data), roster, Plan())
        same(all(line.isprintable() for line in lines), True, "printable terms")

    return _with_plan(read)


def _plans() -> Sequence[bytes]:
    return [SMALL.to_json(), Plan().to_json(), json.dumps({"seed": 1}).encode()]


def _private_plans() -> Sequence[bytes]:
    from dataclasses import replace

    from crossrec_model.config import AggregationConfig, PrivacyConfig

    noise = {"multiplier": 2.0, "statistics_multiplier": 3.0}
    local = replace(Plan(), privacy=PrivacyConfig(noise="local", **noise))  # type: ignore[arg-type]
    sums = replace(
        Plan(),
        aggregation=AggregationConfig(max_weight=1.0),
        privacy=PrivacyConfig(noise="distributed", rate=1.0, steps=1, **noise),  # type: ignore[arg-type]
    )
    return [local.to_json(), sums.to_json()]


TARGETS: Final = (
    Target(
        name="plan.json",
        seeds=_plans,
        check=lambda _: plan_json,
        changes=OF_JSON,
        bombs=lambda: [
            b'{"model":{"tower":[128,' + b"1," * 400_000 + b"1]}}",
            b'{"model":{"relations":[' + b'"self",' * 100_000 + b'"self"]}}',
        ],
    ),
    Target(
        name="plan.toml", seeds=_plan_texts, check=_plan_toml, changes=OF_TEXT, cost=Cost.MEDIUM
    ),
    Target(
        name="platform.terms",
        seeds=_private_plans,
        check=_terms,
        changes=OF_JSON,
        cost=Cost.DEAR,
        memory_mib=512,
    ),
)
