"""From results to the report's files and the project's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from clients.dataset import Dataset
from crossrec_model.config import Plan
from crossrec_model.errors import DataError
from crossrec_model.evaluation.charts import Curve
from crossrec_model.evaluation.comparison import AVERAGE
from crossrec_model.evaluation.figures import Figure, write_figures
from crossrec_model.evaluation.findings import Findings
from crossrec_model.evaluation.privacy_cost import PrivateRow
from crossrec_model.evaluation.report import (
    PlatformFacts,
    Report,
    RunFacts,
    build_report,
    installed_versions,
)
from crossrec_model.evaluation.results import ALL_PURCHASES, FIRST_TIME, Result
from crossrec_model.randomness import ExperimentRandomness
from server.checkpoint import RoundRecord

#: figure → (row that the federated one is held against, goal)
_RATIOS: Final = {
    "quality.cj.federated_over_knn_local": ("item-kNN", ">=1"),
    "quality.cj.federated_over_ease_local": ("EASE", ">=1"),
    "quality.cj.federated_over_pooled": ("pooled", ">=0.9"),
}
#: figure → view; each is the worst platform's.
_WORST_OVER_EASE: Final = {
    "quality.cj.first_over_ease": FIRST_TIME,
    "quality.cj.all_over_ease": ALL_PURCHASES,
}


def facts(
    datasets: Mapping[str, Dataset],
    results: Sequence[Result],
    plan: Plan,
    *,
    data: str,
    mode: str,
    seeds: Sequence[int],
    command: str,
) -> RunFacts:
    """What was run, for the report's head."""
    test_users = {r.platform: len(r.users) for r in results}
    platforms = tuple(
        PlatformFacts(
            name=name,
            users=len(dataset.histories),
            items=len(dataset.candidates(dataset.split.test)),
            rows=len(dataset.histories.day),
            test_users=test_users[name],
        )
        for name, dataset in sorted(datasets.items())
    )
    split = next(iter(datasets.values())).split
    dates = {"validation": split.validation, "test": split.test, "end": split.end}
    return RunFacts(
        title="Local, federated and pooled",
        data=data,
        platforms=platforms,
        split={
            f"{name} from" if name != "end" else "to": _date(day) for name, day in dates.items()
        },
        config={
            "mode": mode,
            "rounds": str(plan.federation.rounds),
            "server optimiser": plan.federation.optimizer,
            "objective": plan.training.objective,
            "local optimiser": f"{plan.training.optimizer}, {plan.training.learning_rate}",
            "embedding": f"{plan.model.buckets} x {plan.model.dimension}",
            "seeds": ", ".join(map(str, seeds)),
        },
        command=command,
        versions=installed_versions(),
    )


def _date(day: float) -> str:
    return datetime.fromtimestamp(day * 86_400, tz=UTC).date().isoformat()


def curves(histories: Mapping[int, Sequence[RoundRecord]]) -> list[Curve]:
    """Loss and validation quality a round, one line a seed."""
    lines: list[Curve] = []
    for seed, records in histories.items():
        for kind in ("training", "evaluation"):
            names = {name for record in records for name in getattr(record, kind)}
            for metric in sorted(names):
                seen = [r for r in records if metric in getattr(r, kind)]
                values = [getattr(r, kind)[metric] for r in seen]
                lines.append(
                    Curve(
                        name=f"seed {seed}",
                        metric=f"{kind}: {metric}",
                        rounds=tuple(r.round for r in seen),
                        values=tuple(values),
                    )
                )
    return lines


def compare(
    results: Sequence[Result],
    run: RunFacts,
    histories: Mapping[int, Sequence[RoundRecord]],
    private: Sequence[PrivateRow] = (),
) -> Report:
    """Work out means, differences and intervals; the bootstrap's stream is fixed."""
    generator = ExperimentRandomness(0, "bootstrap").numpy()
    return build_report(
        results, run, generator=generator, curves=curves(histories), private=private
    )


def quality_figures(findings: Findings, command: str) -> list[Figure]:
    """nDCG@10 of first-time purchases, average of the platforms; over EASE also the worst of them."""
    seeds = len(findings.seeds)
    gain = findings.gain(FIRST_TIME, "local")
    if gain is None:
        raise DataError("the rows federated and local are needed for the quality figures")
    figures = [
        Figure(
            figure="quality.cj.federated_minus_local_low",
            value=float(np.round(gain.low, 6)),
            goal=">0",
            command=command,
            seeds=seeds,
        )
    ]
    mean = {row: findings.estimate(FIRST_TIME, row, AVERAGE).value for row in findings.rows}
    for name, (row, goal) in _RATIOS.items():
        ratio = float(np.round(mean["federated"] / mean[row], 4))
        figures.append(Figure(figure=name, value=ratio, goal=goal, command=command, seeds=seeds))
    for name, view in _WORST_OVER_EASE.items():
        worst = min(
            findings.estimate(view, "federated", platform).value
            / findings.estimate(view, "EASE", platform).value
            for platform in findings.platforms
        )
        ratio = float(np.round(worst, 4))
        figures.append(Figure(figure=name, value=ratio, goal=">1", command=command, seeds=seeds))
    return figures


def write_quality(path: Path, findings: Findings, command: str) -> None:
    """Write the quality figures as a benchmark result."""
    write_figures(path, quality_figures(findings, command))
