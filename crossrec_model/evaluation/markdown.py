"""The report as Markdown, for a pull request or a README."""

from __future__ import annotations

import re
from collections.abc import Iterator

from crossrec_model.evaluation.comparison import AVERAGE
from crossrec_model.evaluation.findings import LOCAL, POOLED, Findings
from crossrec_model.evaluation.privacy_cost import PrivacyCost
from crossrec_model.evaluation.results import Group
from crossrec_model.evaluation.summary import Summary
from crossrec_model.evaluation.wording import (
    MISSING,
    decimals,
    interval,
    metric_name,
    number,
    signed,
)


def markdown(title: str, data: str, findings: Findings, summary: Summary) -> str:
    """Title, summary, a table a view, differences, groups and variety."""
    lines = [f"# {escaped(title)}", "", escaped(data), "", f"**{escaped(summary.headline)}.**", ""]
    lines += [f"- {escaped(sentence)}" for sentence in summary.sentences]
    for view in findings.views:
        lines += ["", f"## {escaped(view.capitalize())}", "", *_main_table(findings, view)]
        if findings.gain(view, LOCAL) is not None:
            lines += ["", *_gains(findings, view)]
        lines += ["", *_groups(findings, view), "", *_variety(findings, view)]
    lines += [
        "",
        f"Brackets: {findings.level:.0%} percentile intervals, {findings.resamples} resamples of "
        "users inside each platform. Bold: best in its column, pooled (the ceiling) apart. "
        f"Seeds: {', '.join(map(str, findings.seeds))}.",
    ]
    return "\n".join(lines) + "\n"


def privacy_markdown(cost: PrivacyCost) -> str:
    """The section on what privacy costs: levels, then gains over local."""
    columns = [escaped(column) for column in cost.columns]
    levels = [
        [escaped(row), *(number(line[column].value) for column in cost.columns)]
        for row, line in cost.levels.items()
    ]
    gains = [
        [
            f"{escaped(row)} − local",
            *(f"{signed(g.value)} [{interval(g, sign=True)}]" for g in line.values()),
        ]
        for row, line in cost.gains.items()
    ]
    lines = [
        "",
        "## What privacy costs",
        "",
        f"{metric_name(cost.metric)}, {cost.view}, as served; (ε, δ = {cost.delta:g}) of each user's "
        "whole history.",
        "",
        *_table(["", *columns], levels),
        "",
        *_table(["Gain over local", *columns], gains),
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text in which no character can start markup, a table cell or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _main_table(findings: Findings, view: str) -> Iterator[str]:
    rows = []
    for row in findings.rows:
        cells = [escaped(row)]
        for column in findings.columns:
            estimate = findings.estimate(view, row, column)
            value = number(estimate.value)
            strong = f"**{value}**" if row in findings.best(view, column) else value
            spread = f" ±{estimate.seed_sd:.4f}" if estimate.seed_sd is not None else ""
            cells.append(f"{strong} [{interval(estimate)}]{spread}")
        rows.append(cells)
    columns = [escaped(column) for column in findings.columns]
    return _table([metric_name(findings.metric), *columns], rows)


def _gains(findings: Findings, view: str) -> Iterator[str]:
    rows = []
    for against in findings.rows:
        cells = [f"federated − {escaped(against)}"]
        for column in findings.columns:
            gain = findings.gain(view, against, column)
            if gain is None:
                break
            cells.append(f"{signed(gain.value)} [{interval(gain, sign=True)}]")
        else:
            rows.append(cells)
    return _table(["Difference", *(escaped(column) for column in findings.columns)], rows)


def _groups(findings: Findings, view: str) -> Iterator[str]:
    rows = []
    for row in findings.rows:
        cells = [escaped(row)]
        for group in (Group.COLD, Group.WARM):
            estimate = findings.estimate(view, row, AVERAGE, group=group)
            cells.append(f"{number(estimate.value)} [{interval(estimate)}]")
        rows.append(cells)
    counts = [
        f"{group} ({findings.estimate(view, findings.rows[0], AVERAGE, group=group).users:,})"
        for group in (Group.COLD, Group.WARM)
    ]
    return _table([f"{metric_name(findings.metric)}, average", *counts], rows)


def _variety(findings: Findings, view: str) -> Iterator[str]:
    """All metrics, averaged over the platforms."""
    names = list(findings.totals[view, findings.rows[0]])
    rows = []
    for row in findings.rows:
        mark = " (ceiling)" if row == POOLED else ""
        figures = [
            number(findings.estimate(view, row, AVERAGE, metric).value, decimals(metric))
            for metric in findings.metrics
        ]
        whole = findings.totals[view, row]
        figures += [number(whole[name][AVERAGE]) if name in whole else MISSING for name in names]
        rows.append([escaped(row) + mark, *figures])
    return _table(["Average", *(metric_name(name) for name in (*findings.metrics, *names))], rows)
