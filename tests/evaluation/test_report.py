from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from rich.console import Console
from scipy import sparse

from crossrec_model.errors import DataError
from crossrec_model.evaluation.baselines import Ease, ItemKnn, Popularity
from crossrec_model.evaluation.charts import (
    Curve,
    curve_chart,
    epsilon_chart,
    interval_chart,
    standalone,
)
from crossrec_model.evaluation.comparison import AVERAGE, BootstrapConfig, Estimate
from crossrec_model.evaluation.findings import find
from crossrec_model.evaluation.markdown import escaped, markdown
from crossrec_model.evaluation.metrics import binary
from crossrec_model.evaluation.privacy_cost import PrivateRow
from crossrec_model.evaluation.report import (
    PlatformFacts,
    Report,
    RunFacts,
    build_report,
    html_page,
    installed_versions,
    write_report,
)
from crossrec_model.evaluation.results import (
    ALL_PURCHASES,
    FIRST_TIME,
    Group,
    Result,
    measure,
    purchase_views,
)
from crossrec_model.evaluation.summary import Verdict, summarise, tiles
from crossrec_model.evaluation.terminal import print_report
from crossrec_model.evaluation.variety import category_features
from crossrec_model.evaluation.wording import interval, joined, metric_name, number, signed

ROWS = {"popularity": 0.2, "item-kNN": 0.3, "EASE": 0.31, "local": 0.4, "pooled": 0.5}
QUICK = BootstrapConfig(resamples=200)
HOSTILE = "<script>alert('x')</script>&\"|*_$^{"


def results(
    gains: dict[str, float],
    *,
    rows: dict[str, float] | None = None,
    views: tuple[str, ...] = (ALL_PURCHASES, FIRST_TIME),
    seeds: tuple[int, ...] = (0, 1),
) -> list[Result]:
    """Rows on every platform of `gains`, which says by how much federated differs from local."""
    found = []
    for platform, gain in gains.items():
        rng = np.random.default_rng(len(platform))
        user, noise = rng.uniform(0.5, 1.5, 60), rng.normal(0, 0.02, 60)
        values = {**(rows or ROWS), "federated": (rows or ROWS)["local"] + gain}
        for view in views:
            for row, mean in values.items():
                for seed in seeds if row in ("local", "federated", "pooled") else (0,):
                    shown = mean * user + (noise + 0.001 * seed if row == "federated" else 0)
                    found.append(
                        Result(
                            row=row,
                            platform=platform,
                            view=view,
                            seed=seed,
                            users=np.arange(60),
                            warm=np.arange(60) >= 12,
                            metrics={"ndcg@10": shown, "auc": shown + 0.1, "novelty@10": 9 * user},
                            totals={"coverage@10": 0.25},
                        )
                    )
    return found


def built(data: list[Result], *, title: str = "A run", curves: tuple[Curve, ...] = ()) -> Report:
    facts = RunFacts(
        title=title,
        data="Some <data>.",
        platforms=(PlatformFacts(name="A", users=1800, items=7, rows=12345, test_users=60),),
        split={"test from": "2017-11-06"},
        config={"rounds": "30"},
        versions=installed_versions(("numpy", "no-such-package")),
        command="make demo",
    )
    return build_report(
        data, facts, generator=np.random.default_rng(0), curves=curves, config=QUICK
    )


def said(gains: dict[str, float], **kinds: object):
    data = results(gains, **kinds)
    return summarise(find(data, generator=np.random.default_rng(0), config=QUICK))


def test_summary_when_federated_wins() -> None:
    summary = said({"A": 0.05, "B": 0.04})
    text = " ".join(summary.sentences)
    assert (summary.verdict, summary.mixed) == (Verdict.BETTER, False)
    assert summary.headline == "Training together helps"
    assert "A and B clearly better off" in text
    assert "better than popularity, item-kNN and EASE" in text
    assert re.search(r"reaches (8|9)\d% of what all data", text)
    assert "Over 2 seeds" in text


def test_summary_when_federated_loses() -> None:
    summary = said({"A": -0.15, "B": -0.12})
    text = " ".join(summary.sentences)
    assert (summary.verdict, summary.mixed) == (Verdict.WORSE, False)
    assert "harm" in summary.headline
    assert "is worse than the local one on average (−0.1" in text
    assert "A and B clearly worse off" in text
    assert "It is worse than item-kNN and EASE" in text
    assert "better than popularity" in text
    assert "helps" not in summary.headline + text


def test_summary_when_nothing_is_clear() -> None:
    summary = said({"A": 0.0, "B": 0.0}, seeds=(0,))
    assert summary.verdict is Verdict.UNCLEAR
    assert "not clearly different from the local one" in summary.sentences[0]
    assert any("one seed" in sentence for sentence in summary.sentences)


def test_a_losing_platform_or_a_stronger_plain_row_stands_in_the_headline() -> None:
    losing = said({"A": 0.2, "B": -0.05})
    assert (losing.verdict, losing.mixed) == (Verdict.BETTER, True)
    assert losing.headline.endswith("but B loses")
    beaten = said({"A": 0.05, "B": 0.05}, rows={**ROWS, "EASE": 0.7})
    assert (beaten.verdict, beaten.mixed) == (Verdict.BETTER, True)
    assert beaten.headline.endswith("but EASE alone would do better")


def test_baselines_alone_make_a_report_that_claims_nothing() -> None:
    data = [r for r in results({"A": 0.0}) if r.row in ("popularity", "EASE")]
    report = built(data)
    assert report.summary.verdict is Verdict.MISSING
    assert report.summary.sentences == ()
    assert tiles(report.findings) == ()
    assert "EASE" in html_page(report)


def test_tiles_name_the_strongest_plain_row_and_the_ceiling() -> None:
    shown = tiles(find(results({"A": 0.05}), generator=np.random.default_rng(0), config=QUICK))
    assert [tile.label for tile in shown] == [
        "federated minus local",
        "federated minus EASE",
        "share of the ceiling",
    ]
    assert shown[0].value.startswith("+0.0")


def test_best_leaves_the_ceiling_out_and_keeps_ties() -> None:
    data = results({"A": -0.1}, rows={**ROWS, "EASE": 0.4}, views=(FIRST_TIME,))
    findings = find(data, generator=np.random.default_rng(0), config=QUICK)
    assert findings.best(FIRST_TIME, "A") == {"local", "EASE"}
    assert findings.views == (FIRST_TIME,)


def test_first_time_purchases_decide_and_unknown_rows_follow_the_plain_ones() -> None:
    data = results({"A": 0.05})
    data += [dataclasses.replace(r, row="new model") for r in data if r.row == "EASE"]
    findings = find(data, generator=np.random.default_rng(0), config=QUICK)
    assert findings.views == (FIRST_TIME, ALL_PURCHASES)
    assert findings.rows == (
        "popularity",
        "item-kNN",
        "EASE",
        "new model",
        "local",
        "federated",
        "pooled",
    )


def test_figures_are_those_of_the_users() -> None:
    data = results({"A": 0.05, "B": -0.02}, seeds=(0,))
    findings = find(data, generator=np.random.default_rng(0), config=QUICK)
    by_row = {(r.row, r.platform): r for r in data if r.view == FIRST_TIME}
    cold = by_row["federated", "A"].members(Group.COLD)
    federated = by_row["federated", "A"].metrics["ndcg@10"]
    local = by_row["local", "A"].metrics["ndcg@10"]
    assert findings.estimate(FIRST_TIME, "federated", "A").value == pytest.approx(federated.mean())
    gain = findings.gain(FIRST_TIME, "local", "A", Group.COLD)
    assert gain is not None
    assert gain.value == pytest.approx((federated - local)[cold].mean())
    assert gain.users == 12


class Page(HTMLParser):
    """Checks that tags close in order; collects what could leave the page, ids and text."""

    void = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def curve(name: str = "A", metric: str = "loss") -> Curve:
    return Curve(name=name, metric=metric, rounds=(1, 2, 3), values=(0.3, math.nan, 0.1))


def test_page_is_self_contained_and_well_formed() -> None:
    text = html_page(
        built(results({"A": 0.05, "B": 0.01}), curves=(curve(), curve("B"), curve("x", "y")))
    )
    page = Page(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)", text)
    assert not re.findall(r"#0102[0-9a-f]{2}", text)  # every stand-in colour was replaced
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert text.count("<svg") == 2 * 2 + 2
    for expected in ("A run", "federated", "pooled", "12,345", "2017-11-06", "make demo", "numpy"):
        assert expected in page.text


def test_every_text_is_escaped() -> None:
    data = [
        dataclasses.replace(r, platform=HOSTILE, row=HOSTILE if r.row == "EASE" else r.row)
        for r in results({"A": 0.05})
    ]
    report = built(data, title=HOSTILE, curves=(curve(HOSTILE, HOSTILE), curve("_hidden", HOSTILE)))
    page = Page(html_page(report))
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "_hidden" in page.text
    text = markdown(HOSTILE, HOSTILE, report.findings, report.summary)
    assert "<script" not in text.replace("\\<", "")
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if "ndcg" in line}
    assert len(widths) <= 1


def test_same_input_gives_the_same_page() -> None:
    data = results({"A": 0.05})
    assert html_page(built(data, curves=(curve(),))) == html_page(built(data, curves=(curve(),)))


def test_files_are_written_whole_and_json_holds_every_figure(tmp_path: Path) -> None:
    data = results({"A": 0.05, "B": 0.01})
    report = built(data, curves=(curve(),))
    paths = write_report(report, tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    document = json.loads(paths["json"].read_text())
    rows, views, groups, columns, metrics = 6, 2, 3, 3, 3
    assert len(document["figures"]) == rows * views * groups * columns * metrics
    assert len(document["federated_minus"]) == (rows - 1) * views * groups * columns * metrics
    assert len(document["totals"]) == rows * views * columns
    assert document["curves"][0]["values"] == [0.3, None, 0.1]
    wanted = {
        "view": FIRST_TIME,
        "row": "local",
        "group": "all",
        "platform": AVERAGE,
        "metric": "ndcg@10",
    }
    (entry,) = [e for e in document["federated_minus"] if wanted.items() <= e.items()]
    gain = report.findings.gain(FIRST_TIME, "local")
    assert gain is not None
    assert (entry["value"], entry["low"], entry["users"]) == (gain.value, gain.low, 120)


def test_group_without_users_is_null_in_json_and_a_dash_on_the_page(tmp_path: Path) -> None:
    data = [dataclasses.replace(r, warm=np.ones(60, dtype=bool)) for r in results({"A": 0.05})]
    paths = write_report(built(data), tmp_path)
    document = json.loads(paths["json"].read_text())
    assert all(e["value"] is None for e in document["figures"] if e["group"] == "cold")
    assert "nan" not in Page(paths["html"].read_text()).text.lower()
    assert "nan" not in paths["md"].read_text().lower()


def test_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't make the folder"):
        write_report(built(results({"A": 0.0})), tmp_path / "file")


def test_markdown_table_has_a_cell_for_each_row_and_column() -> None:
    report = built(results({"A": 0.05, "B": 0.01}))
    text = markdown("T", "D", report.findings, report.summary)
    table = [line for line in text.splitlines() if line.startswith("| federated |")]
    assert table[0].count("|") == 5
    best = report.findings.estimate(FIRST_TIME, "federated", AVERAGE).value
    assert f"**{best:.4f}** [" in table[0]
    assert "| federated − local |" in text


def test_terminal_table_shows_values_and_escapes_markup() -> None:
    data = [dataclasses.replace(r, platform="[red]x[/]") for r in results({"A": 0.05})]
    report = built(data)
    out = io.StringIO()
    print_report(report.findings, report.summary, Console(file=out, width=120, no_color=True))
    text = out.getvalue()
    assert "[red]x[/]" in text
    assert f"{report.findings.estimate(FIRST_TIME, 'EASE', AVERAGE).value:.4f}" in text
    assert report.summary.headline in text


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, users=5, seeds=1, seed_sd=None)


def test_charts_are_xml_and_leave_out_what_has_no_value() -> None:
    nobody = estimate(math.nan, math.nan, math.nan)
    entries = [
        ("clear", estimate(0.2, 0.1, 0.3)),
        ("open", estimate(0.0, -0.1, 0.1)),
        ("gone", nobody),
    ]
    text = interval_chart("one", entries, "difference", around_zero=True)
    root = ET.fromstring(text)
    words = "".join(root.itertext())
    assert "clear" in words
    assert "+0.2000" in words
    assert "gone" not in words
    assert text.count("fill: var(--paper)") == 1  # the open dot
    ET.fromstring(interval_chart("none", [("gone", nobody)], "d", around_zero=False))
    ET.fromstring(
        curve_chart("two", "loss", [dataclasses.replace(curve(), rounds=(1,), values=(1.0,))])
    )


PRIVATE = [
    PrivateRow(noise=noise, epsilon=epsilon, delta=1e-5)
    for noise in ("local", "distributed")
    for epsilon in (1.0, 8.0)
]


def _private_report() -> Report:
    data = results({"A": 0.05, "B": 0.0})
    for place, row in enumerate(PRIVATE):
        data += [
            dataclasses.replace(
                result,
                row=row.name,
                metrics={name: values + 0.01 * place for name, values in result.metrics.items()},
            )
            for result in data
            if result.row == "local"
        ]
    return build_report(
        data,
        built(results({"A": 0.0})).facts,
        generator=np.random.default_rng(0),
        config=QUICK,
        private=PRIVATE,
    )


def test_the_cost_of_privacy_stands_in_every_form_of_the_report(tmp_path: Path) -> None:
    report = _private_report()
    cost = report.privacy
    assert cost is not None
    assert list(cost.levels) == ["local", "federated", *(row.name for row in PRIVATE), "pooled"]
    assert cost.columns == ("A", "B", AVERAGE)
    for place, row in enumerate(PRIVATE):
        for gain in cost.gains[row.name].values():
            assert gain.value == pytest.approx(0.01 * place)
    lowest, worst = cost.worst()
    assert (lowest, worst.high) == (pytest.approx(0.0), pytest.approx(0.0))
    assert [(noise, [e for e, _ in points]) for noise, points in cost.series()] == [
        ("local", [8.0, 1.0]),
        ("distributed", [8.0, 1.0]),
    ]
    paths = write_report(report, tmp_path)
    page, text = paths["html"].read_text("utf-8"), paths["md"].read_text("utf-8")
    for row in PRIVATE:
        assert page.count(row.name) >= 2
        assert f"| {row.name} − local | " in text
    assert "What privacy costs" in page
    assert "What privacy costs" in text
    assert 'aria-label="nDCG@10, average by epsilon: local noise, ε = 8: ' in page
    document = json.loads(paths["json"].read_text("utf-8"))["privacy"]
    assert [row["epsilon"] for row in document["rows"]] == [1.0, 8.0, 1.0, 8.0]
    plain = built(results({"A": 0.0}))
    assert plain.privacy is None
    assert "What privacy costs" not in html_page(plain)


def test_a_plot_for_a_file_of_its_own_needs_no_page() -> None:
    cost = _private_report().privacy
    assert cost is not None
    drawn = epsilon_chart("x", list(cost.series()), [("local", 0.4)], "nDCG@10")
    alone = standalone(drawn)
    assert "var(--" in drawn
    assert "var(" not in alone
    assert ET.fromstring(alone).tag.endswith("svg")


@pytest.mark.parametrize("bad", [{"rounds": (1,)}, {"rounds": (), "values": ()}])
def test_curve_with_uneven_lengths_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(DataError, match="curve 'A'"):
        built(results({"A": 0.0}), curves=(dataclasses.replace(curve(), **bad),))


def test_results_that_leave_holes_are_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(DataError, match="no results"):
        find([], generator=generator)
    with pytest.raises(DataError, match="ndcg@5"):
        find(results({"A": 0.0}), generator=generator, metric="ndcg@5", config=QUICK)
    data = results({"A": 0.0, "B": 0.0}, views=(FIRST_TIME,))
    data = [r for r in data if (r.row, r.platform) != ("EASE", "B")]
    with pytest.raises(DataError, match="EASE"):
        find(data, generator=generator, config=QUICK)


def test_wording() -> None:
    assert (number(-0.5, 2), number(math.nan)) == ("−0.50", "–")
    assert [signed(v, 2) for v in (0.5, -0.5, -0.001, 0.0, math.nan)] == [
        "+0.50",
        "−0.50",
        "0.00",
        "0.00",
        "–",
    ]
    assert interval(estimate(0, -1, 1), 1, sign=True) == "−1.0 to\u00a0+1.0"
    assert (joined(["A"]), joined(["A", "B", "C"])) == ("A", "A, B and C")
    assert (metric_name("ndcg@10"), metric_name("other@5"), metric_name("auc")) == (
        "nDCG@10",
        "other@5",
        "AUC",
    )
    assert escaped("a\n|<b>") == r"a \|\<b\>"


def test_whole_line_from_purchases_to_the_files(tmp_path: Path) -> None:
    measured = []
    for platform, seed in (("A", 1), ("B", 2)):
        rng = np.random.default_rng(seed)
        taste = rng.gamma(0.3, 1.0, size=(4, 30))[rng.integers(4, size=80)]  # [users, items]
        history = sparse.csr_array(rng.poisson(taste))
        views = purchase_views(
            platform=platform,
            users=np.arange(80),
            history=history,
            purchases=sparse.csr_array(rng.poisson(taste)),
            item_features=category_features([("shop", f"aisle {item % 5}") for item in range(30)]),
            buyers=np.asarray(binary(history).sum(axis=0)),
            population=80,
        )
        baselines = {"popularity": Popularity(), "item-kNN": ItemKnn(), "EASE": Ease(l2=10.0)}
        for row, baseline in baselines.items():
            scores = baseline.fit(history).scores(history)
            measured += [measure(scores, view, row=row) for view in views]
    report = built(measured)
    write_report(report, tmp_path)
    # Four groups of taste: knowing the user must beat popularity by far.
    popular = report.findings.estimate(ALL_PURCHASES, "popularity", AVERAGE)
    for row in ("item-kNN", "EASE"):
        assert report.findings.estimate(ALL_PURCHASES, row, AVERAGE).low > popular.high
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["verdict"] == "missing"
