"""Plots as inline SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crossrec_model.evaluation.comparison import Estimate
from crossrec_model.evaluation.wording import number, signed

#: Stand-ins that no plot uses by itself; the page's variables take their place in the SVG.
_INK, _MUTED, _LINE, _ACCENT, _PAPER = "#010203", "#010204", "#010205", "#010206", "#010207"
_SERIES: Final = ("#010206", "#010208", "#010209", "#01020a", "#01020b", "#01020c")
_VARIABLES: Final = {
    _INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    _PAPER: "--paper",
    **{colour: f"--series-{place}" for place, colour in enumerate(_SERIES, start=1)},
}
#: As on the page in daylight, see report.html.
_LIGHT: Final = {
    "--ink": "#1d2426",
    "--muted": "#5d686b",
    "--line": "#dfdfd8",
    "--paper": "#fbfaf7",
    "--series-1": "#0b6e69",
    "--series-2": "#b3591f",
    "--series-3": "#5a55a3",
    "--series-4": "#7a6a1d",
    "--series-5": "#9b3b68",
    "--series-6": "#4b6577",
}
_DASHES: Final = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)))
_STYLE: Final[dict[str, Any]] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "xtick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.color": _LINE,
    "ytick.labelcolor": _INK,
    "ytick.left": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "figure.facecolor": "none",
}
_WIDTH: Final = 4.7  # inches; small, so that letters stay readable when a phone scales the plot


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a training plot: a value a round.

    Curves with the same `metric` share a plot. A value that is not finite leaves a gap.
    """

    name: str  # what is drawn, such as "platform A"
    metric: str  # what is measured, such as "validation nDCG@10"
    rounds: tuple[int, ...]
    values: tuple[float, ...]


def interval_chart(
    name: str,
    entries: Sequence[tuple[str, Estimate]],
    label: str,
    *,
    around_zero: bool,
    apart: str = "",
) -> str:
    """Dots with intervals, one line an entry.

    Args:
        name: unique on the page; goes into the SVG's ids.
        entries: label and figure, from top to bottom; figures without users are left out.
        label: what the axis measures.
        around_zero: the figures are differences: draw zero, and fill the dots that are clear of it.
        apart: the entry with a rule above it, such as the average.
    """
    shown = [(text, e) for text, e in entries if not math.isnan(e.value)]
    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(_WIDTH, 0.68 + 0.31 * max(len(shown), 1)), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        if around_zero:
            axes.axvline(0, color=_MUTED, linewidth=0.9)
        for place, (entry, estimate) in enumerate(shown):
            if entry == apart and place:
                axes.axhline(place - 0.5, color=_LINE, linewidth=0.8)
            clear = not around_zero or estimate.low > 0 or estimate.high < 0
            bounds = [estimate.low, estimate.high]
            axes.plot(bounds, [place, place], color=_ACCENT, linewidth=1.8)
            axes.plot(
                [estimate.value],
                [place],
                marker="o",
                markersize=5.5,
                markeredgewidth=1.5,
                markeredgecolor=_ACCENT,
                markerfacecolor=_ACCENT if clear else _PAPER,
            )
            text = signed(estimate.value) if around_zero else number(estimate.value)
            axes.annotate(
                text,
                (1.0, place),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=_MUTED,
            )
        axes.set_yticks(range(len(shown)), [text for text, _ in shown], parse_math=False)
        axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(label)
        return _svg(
            figure, name, f"{label}: " + "; ".join(f"{t} {number(e.value)}" for t, e in shown)
        )


def curve_chart(name: str, metric: str, curves: Sequence[Curve]) -> str:
    """Values by round, one line a curve, named at the top."""
    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(_WIDTH, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y")
        lines = []
        for place, curve in enumerate(curves):
            lines += axes.plot(
                curve.rounds,
                [value if math.isfinite(value) else math.nan for value in curve.values],
                color=_SERIES[place % len(_SERIES)],
                linestyle=_DASHES[place % len(_DASHES)],  # readable without colours, too
                linewidth=1.6,
                marker="o" if len(curve.rounds) == 1 else "",
            )
        axes.tick_params(axis="y", labelcolor=_MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("round")
        axes.set_title(metric, loc="left", fontsize=10, color=_MUTED, parse_math=False)
        # A leading underscore would hide a name; an invisible letter before it doesn't.
        names = ["\u200b" + curve.name for curve in curves]
        legend = figure.legend(
            lines, names, loc="outside upper left", ncols=3, frameon=False, handlelength=2.4
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return _svg(figure, name, f"{metric} by round: " + ", ".join(c.name for c in curves))


def epsilon_chart(
    name: str,
    series: Sequence[tuple[str, Sequence[tuple[float, Estimate]]]],
    levels: Sequence[tuple[str, float]],
    label: str,
) -> str:
    """Quality against epsilon, one line a kind of noise, beside flat lines without noise.

    Args:
        name: unique on the page; goes into the SVG's ids.
        series: for each kind of noise its points (epsilon, figure).
        levels: names and values of the flat lines.
        label: what the vertical axis measures.
    """
    with mpl.rc_context(_style(name)):
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y")
        epsilons = sorted({epsilon for _, points in series for epsilon, _ in points})
        axes.set_xscale("log", base=2)
        lines: list[Any] = []
        for place, (_, points) in enumerate(series):
            # A little apart, so that intervals at one epsilon don't hide each other.
            x = [epsilon * 1.04 ** (place - (len(series) - 1) / 2) for epsilon, _ in points]
            found = [estimate for _, estimate in points]
            lines += [
                axes.errorbar(
                    x,
                    [f.value for f in found],
                    yerr=[[f.value - f.low for f in found], [f.high - f.value for f in found]],
                    color=_SERIES[place % len(_SERIES)],
                    marker="os^D"[place % 4],
                    markersize=5,
                    linewidth=1.6,
                    capsize=2.5,
                )
            ]
        for place, (_, value) in enumerate(levels):
            dashes = _DASHES[place % len(_DASHES)]
            lines += [axes.axhline(value, color=_MUTED, linewidth=1.1, linestyle=dashes)]
        axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
        axes.minorticks_off()
        axes.tick_params(axis="y", labelcolor=_MUTED)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("ε of each user’s whole history")
        axes.set_title(label, loc="left", fontsize=10, color=_MUTED, parse_math=False)
        names = [f"{noise} noise" for noise, _ in series] + [text for text, _ in levels]
        figure.legend(
            lines, names, loc="outside upper left", ncols=3, frameon=False, handlelength=2.4
        )
        described = "; ".join(
            f"{noise} noise, ε = {epsilon:g}: {number(estimate.value)}"
            for noise, points in series
            for epsilon, estimate in points
        )
        flat = "; ".join(f"{text}: {number(value)}" for text, value in levels)
        return _svg(figure, name, f"{label} by epsilon: {described}; {flat}")


def standalone(svg: str) -> str:
    """A plot for a file of its own: the page's light colours in place of its variables."""
    for variable, colour in _LIGHT.items():
        svg = svg.replace(f"var({variable})", colour)
    return svg.replace("<svg", '<svg font-family="sans-serif"', 1) + "\n"


def _style(name: str) -> Any:
    """The style, with a salt that makes the same plot the same bytes every time."""
    return {**_STYLE, "svg.hashsalt": f"crossrec-{name}"}


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element: no prologue, unique ids, the page's colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*;\s*", "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text)
    label = html.escape(description)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
