"""A comparison as one page, one text, one file of numbers, and one table on the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from markupsafe import Markup

from crossrec_model.errors import DataError
from crossrec_model.evaluation import wording
from crossrec_model.evaluation.charts import Curve, curve_chart, epsilon_chart, interval_chart
from crossrec_model.evaluation.comparison import AVERAGE, BootstrapConfig, Estimates
from crossrec_model.evaluation.files import write_whole
from crossrec_model.evaluation.findings import FEDERATED, LOCAL, POOLED, Findings, find
from crossrec_model.evaluation.markdown import markdown, privacy_markdown
from crossrec_model.evaluation.privacy_cost import PrivacyCost, PrivateRow, privacy_cost
from crossrec_model.evaluation.results import COLD_LIMIT, Group, Result
from crossrec_model.evaluation.summary import Summary, summarise, tiles

#: Counts up when the JSON changes in a way that a reader must know of.
JSON_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class PlatformFacts:
    """The size of a platform's data."""

    name: str
    users: int
    items: int
    rows: int
    test_users: int


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What was run; shown as it is given, so keep passwords and paths out of it."""

    title: str
    data: str  # one sentence: which data, from where
    platforms: tuple[PlatformFacts, ...]
    split: Mapping[str, str] = field(default_factory=dict)  # such as "test from" → "2017-12-04"
    config: Mapping[str, str] = field(default_factory=dict)
    command: str = ""  # makes the report again
    versions: Mapping[str, str] = field(default_factory=dict)  # such as `installed_versions()`


@dataclass(frozen=True, kw_only=True)
class Report:
    """Facts, figures, curves and the words that follow from them."""

    facts: RunFacts
    findings: Findings
    summary: Summary
    curves: tuple[Curve, ...]
    privacy: PrivacyCost | None = None


def installed_versions(
    names: Sequence[str] = ("crossrec", "flwr", "torch", "numpy", "scipy", "polars"),
) -> dict[str, str]:
    """Versions of the packages that shape the figures; those not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build_report(
    results: Sequence[Result],
    facts: RunFacts,
    *,
    generator: np.random.Generator,
    curves: Sequence[Curve] = (),
    metric: str = "ndcg@10",
    config: BootstrapConfig | None = None,
    private: Sequence[PrivateRow] = (),
) -> Report:
    """Compare the results and put them into words; `private` names the rows with noise.

    Raises:
        DataError: see `find`; or a curve with unequal numbers of rounds and values.
    """
    for curve in curves:
        if len(curve.rounds) != len(curve.values) or not curve.rounds:
            raise DataError(
                f"curve '{curve.name}' has {len(curve.rounds)} rounds and {len(curve.values)} "
                "values; give one value a round, at least one"
            )
    findings = find(results, generator=generator, metric=metric, config=config)
    privacy = (
        privacy_cost(results, private, generator=generator, metric=metric, config=config)
        if private
        else None
    )
    return Report(
        facts=facts,
        findings=findings,
        summary=summarise(findings),
        curves=tuple(curves),
        privacy=privacy,
    )


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write report.html, report.md and report.json; each is whole or not there.

    Returns:
        Paths under the keys `html`, `md` and `json`.

    Raises:
        DataError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"can't make the folder {folder}: {error.strerror}; choose another"
        ) from None
    texts = {
        "html": html_page(report),
        "md": markdown(report.facts.title, report.facts.data, report.findings, report.summary)
        + (privacy_markdown(report.privacy) if report.privacy else ""),
        "json": json.dumps(as_json(report), ensure_ascii=False, allow_nan=False) + "\n",
    }
    paths = {kind: folder / f"report.{kind}" for kind in texts}
    for kind, text in texts.items():
        write_whole(paths[kind], text)
    return paths


def as_json(report: Report) -> dict[str, Any]:
    """Every figure as plain data; what is not a number is null."""
    findings = report.findings
    return {
        "format": JSON_FORMAT,
        "facts": dataclasses.asdict(report.facts),
        "summary": dataclasses.asdict(report.summary),
        "metric": findings.metric,
        "level": findings.level,
        "resamples": findings.resamples,
        "seeds": list(findings.seeds),
        "figures": [
            {**place._asdict(), **entry}
            for place, table in findings.figures.items()
            for entry in _entries(table)
        ],
        "federated_minus": [
            {**place._asdict(), **entry}
            for place, table in findings.differences.items()
            for entry in _entries(table)
        ],
        "totals": [
            {"view": view, "row": row, "metric": name, "platform": platform, "value": value}
            for (view, row), table in findings.totals.items()
            for name, cells in table.items()
            for platform, value in cells.items()
        ],
        "privacy": _privacy(report.privacy) if report.privacy else None,
        "curves": [
            {**dataclasses.asdict(curve), "values": [_finite(value) for value in curve.values]}
            for curve in report.curves
        ],
    }


def _privacy(cost: PrivacyCost) -> dict[str, Any]:
    return {
        "metric": cost.metric,
        "view": cost.view,
        "rows": [{"row": row.name, **dataclasses.asdict(row)} for row in cost.rows],
        "minus_local": [
            {"row": row, **entry}
            for row, line in cost.gains.items()
            for entry in _entries({cost.metric: line})
        ],
    }


def _entries(table: Estimates) -> list[dict[str, Any]]:
    return [
        {
            "metric": metric,
            "platform": platform,
            **{
                name: _finite(value) if isinstance(value, float) else value
                for name, value in dataclasses.asdict(estimate).items()
            },
        }
        for metric, cells in table.items()
        for platform, estimate in cells.items()
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def html_page(report: Report) -> str:
    """One self-contained page: no request leaves it, and all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crossrec_model.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        facts=report.facts,
        findings=report.findings,
        summary=report.summary,
        tiles=tiles(report.findings),
        privacy=report.privacy,
        charts=_charts(report),
        words=wording,
        average=AVERAGE,
        local=LOCAL,
        pooled=POOLED,
        groups=[Group.COLD, Group.WARM],
        cold_limit=COLD_LIMIT,
    )


def _charts(report: Report) -> dict[str, Any]:
    """Plots by the place where the page shows them: two lists by view, one by training metric."""
    findings, name = report.findings, wording.metric_name(report.findings.metric)
    gains, levels = {}, {}
    for number, view in enumerate(findings.views):
        entries = [(row, findings.estimate(view, row, AVERAGE)) for row in findings.rows]
        levels[view] = Markup(  # noqa: S704 - the SVG escapes its text
            interval_chart(
                f"level{number}", entries, f"{name}, average", around_zero=False, apart=POOLED
            )
        )
        gain = [(column, findings.gain(view, LOCAL, column)) for column in findings.columns]
        known = [(column, estimate) for column, estimate in gain if estimate is not None]
        if known:
            gains[view] = Markup(  # noqa: S704
                interval_chart(
                    f"gain{number}", known, f"{name}, difference", around_zero=True, apart=AVERAGE
                )
            )
    grouped: dict[str, list[Curve]] = {}
    for curve in report.curves:
        grouped.setdefault(curve.metric, []).append(curve)
    curves = [
        Markup(curve_chart(f"curve{number}", metric, lines))  # noqa: S704
        for number, (metric, lines) in enumerate(grouped.items())
    ]
    privacy = Markup(_privacy_chart(report.privacy)) if report.privacy else ""  # noqa: S704
    return {"gains": gains, "levels": levels, "curves": curves, "privacy": privacy}


def _privacy_chart(cost: PrivacyCost) -> str:
    return epsilon_chart(
        "privacy",
        list(cost.series()),
        [(row, cost.levels[row][AVERAGE].value) for row in (LOCAL, FEDERATED, POOLED)],
        f"{wording.metric_name(cost.metric)}, average",
    )
