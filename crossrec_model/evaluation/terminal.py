"""The report's main table on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from crossrec_model.evaluation.findings import POOLED, Findings
from crossrec_model.evaluation.summary import Summary
from crossrec_model.evaluation.wording import interval, metric_name, number


def print_report(findings: Findings, summary: Summary, console: Console) -> None:
    """Print a table a view, then the summary; plain text where the console has no colours."""
    for view in findings.views:
        console.print(_table(findings, view))
    console.print(Text(summary.headline, style="bold"))
    for sentence in summary.sentences:
        console.print(Text(f"  {sentence}"))


def _table(findings: Findings, view: str) -> Table:
    title = f"{metric_name(findings.metric)}, {escape(view)}"
    table = Table(title=title, title_justify="left", header_style="dim", show_lines=False)
    table.add_column("")
    for column in findings.columns:
        table.add_column(escape(column), justify="right")
    for row in findings.rows:
        cells = [Text(row, style="dim" if row == POOLED else "")]
        for column in findings.columns:
            estimate = findings.estimate(view, row, column)
            best = row in findings.best(view, column)
            value = Text(number(estimate.value), style="bold green" if best else "")
            cells.append(value.append(f"\n{interval(estimate)}", style="not bold dim default"))
        table.add_row(*cells)
    return table
