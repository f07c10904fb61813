"""What the findings say, in plain words that follow from the numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from crossrec_model.evaluation.comparison import AVERAGE, Estimate
from crossrec_model.evaluation.findings import (
    EASE,
    FEDERATED,
    ITEM_KNN,
    LOCAL,
    POOLED,
    Findings,
)
from crossrec_model.evaluation.results import Group
from crossrec_model.evaluation.wording import interval, joined, metric_name, signed


class Verdict(StrEnum):
    """Where an interval lies: above zero, below zero, or around it."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "unclear"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The headline and the sentences below it.

    `mixed` tells that the verdict has a reservation, which stands in the headline too.
    """

    verdict: Verdict
    mixed: bool
    headline: str
    sentences: tuple[str, ...]


def verdict(difference: Estimate | None) -> Verdict:
    """Which way a difference points; an interval that touches zero is unclear."""
    if difference is None or math.isnan(difference.value):
        return Verdict.MISSING
    if difference.low > 0:
        return Verdict.BETTER
    return Verdict.WORSE if difference.high < 0 else Verdict.UNCLEAR


_HEADLINES = {
    Verdict.BETTER: "Training together helps",
    Verdict.WORSE: "Training together does harm here",
    Verdict.UNCLEAR: "No clear difference between training together and alone",
    Verdict.MISSING: "Training together was not compared with training alone",
}
_WORDS = {
    Verdict.BETTER: "better than",
    Verdict.WORSE: "worse than",
    Verdict.UNCLEAR: "not clearly different from",
}


def summarise(findings: Findings) -> Summary:
    """Put the findings into words; the deciding view and metric give the verdict."""
    view = findings.views[0]
    outcome = verdict(findings.gain(view, LOCAL))
    sentences = [
        *_against_local(findings),
        *_by_platform(findings, view),
        *_against_baselines(findings, view),
        *_against_pooled(findings, view),
        *_by_group(findings, view),
        *_caveats(findings),
    ]
    good = outcome in (Verdict.BETTER, Verdict.UNCLEAR)
    reservation = _reservation(findings, view) if good else ""
    return Summary(
        verdict=outcome,
        mixed=bool(reservation),
        headline=_HEADLINES[outcome] + reservation,
        sentences=tuple(sentences),
    )


def _reservation(findings: Findings, view: str) -> str:
    """What a headline must not keep quiet: a platform that loses, or a plain row that wins."""
    losers = [
        platform
        for platform in findings.platforms
        if verdict(findings.gain(view, LOCAL, platform)) is Verdict.WORSE
    ]
    stronger = [
        row for row in plain_rows(findings) if verdict(findings.gain(view, row)) is Verdict.WORSE
    ]
    if stronger:
        return f", but {joined(stronger)} alone would do better"
    if losers:
        return f", but {joined(losers)} {'loses' if len(losers) == 1 else 'lose'}"
    return ""


def plain_rows(findings: Findings) -> list[str]:
    """The rows that need no training: everything but local, federated and pooled."""
    return [row for row in findings.rows if row not in (LOCAL, FEDERATED, POOLED)]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the few figures that stand out."""

    label: str
    value: str
    detail: str


def tiles(findings: Findings) -> tuple[Tile, ...]:
    """Federated against local, the strongest plain row and the ceiling; averages, deciding view."""
    view, found = findings.views[0], []
    plain = plain_rows(findings)
    strongest = max(
        plain, key=lambda row: findings.estimate(view, row, AVERAGE).value, default=LOCAL
    )
    for row in dict.fromkeys((LOCAL, strongest)):
        gain = findings.gain(view, row)
        if gain is not None and verdict(gain) is not Verdict.MISSING:
            detail = f"{findings.level:.0%} interval {interval(gain, sign=True)}"
            found.append(
                Tile(label=f"federated minus {row}", value=signed(gain.value), detail=detail)
            )
    share = _share_of_pooled(findings, view)
    if share is not None:
        found.append(
            Tile(label="share of the ceiling", value=f"{share:.0%}", detail="federated over pooled")
        )
    return tuple(found)


def _share_of_pooled(findings: Findings, view: str) -> float | None:
    if findings.gain(view, POOLED) is None:
        return None
    ceiling = findings.estimate(view, POOLED, AVERAGE).value
    return findings.estimate(view, FEDERATED, AVERAGE).value / ceiling if ceiling > 0 else None


def _against_local(findings: Findings) -> Iterator[str]:
    name, level = metric_name(findings.metric), f"{findings.level:.0%}"
    for number, view in enumerate(findings.views):
        gain = findings.gain(view, LOCAL)
        if gain is None or verdict(gain) is Verdict.MISSING:
            continue
        mean = findings.estimate(view, LOCAL, AVERAGE).value
        relative = f", {signed(gain.value / mean * 100, 1)}%" if mean > 0 else ""
        detail = f"{signed(gain.value)} {name}{relative}" if number == 0 else signed(gain.value)
        yield (
            f"For {view}, the federated model is {_WORDS[verdict(gain)]} the local one on average "
            f"({detail}; {level} interval {signed(gain.low)} to {signed(gain.high)})."
        )


def _by_platform(findings: Findings, view: str) -> Iterator[str]:
    """Who gains and who loses; an average may hide a platform that is worse off."""
    sides: dict[Verdict, list[str]] = {side: [] for side in Verdict}
    for platform in findings.platforms:
        sides[verdict(findings.gain(view, LOCAL, platform))].append(platform)
    if len(sides[Verdict.MISSING]) == len(findings.platforms):
        return
    parts = []
    if sides[Verdict.BETTER]:
        parts.append(f"{joined(sides[Verdict.BETTER])} clearly better off")
    if sides[Verdict.WORSE]:
        parts.append(f"{joined(sides[Verdict.WORSE])} clearly worse off")
    if sides[Verdict.UNCLEAR]:
        parts.append(f"{joined(sides[Verdict.UNCLEAR])} without a clear difference")
    yield f"By platform: {'; '.join(parts)}."


def _against_baselines(findings: Findings, view: str) -> Iterator[str]:
    """Every plain row that federated does not clearly beat is named."""
    plain = plain_rows(findings)
    for side in (Verdict.WORSE, Verdict.UNCLEAR, Verdict.BETTER):
        rows = [row for row in plain if verdict(findings.gain(view, row)) is side]
        gains = [gain for row in rows if (gain := findings.gain(view, row))]
        if rows:
            values = joined([signed(gain.value) for gain in gains])
            yield f"It is {_WORDS[side]} {joined(rows)} ({values})."


def _against_pooled(findings: Findings, view: str) -> Iterator[str]:
    share = _share_of_pooled(findings, view)
    if share is not None:
        yield f"It reaches {share:.0%} of what all data in one place would give."


def _by_group(findings: Findings, view: str) -> Iterator[str]:
    for group in (Group.COLD, Group.WARM):
        gain = findings.gain(view, LOCAL, group=group)
        if gain is not None and verdict(gain) is not Verdict.MISSING:
            yield (
                f"{group.capitalize()} users: {_WORDS[verdict(gain)]} local ({signed(gain.value)}, "
                f"interval {signed(gain.low)} to {signed(gain.high)}; {gain.users:,} users)."
            )


def _caveats(findings: Findings) -> Iterator[str]:
    view = findings.views[0]
    if FEDERATED in findings.rows:
        federated = findings.estimate(view, FEDERATED, AVERAGE)
        if federated.seed_sd is None:
            yield "The model was trained with one seed, so training luck is not measured."
        else:
            yield (
                f"Over {federated.seeds} seeds, the federated average moves by "
                f"{federated.seed_sd:.4f} (standard deviation)."
            )
        missing = [row for row in (LOCAL, ITEM_KNN, EASE, POOLED) if row not in findings.rows]
        if missing:
            yield f"Not measured: {joined(missing)}."
