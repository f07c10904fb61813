"""Rows of a quality benchmark: what each model ranks for each test user, measured the same way.

A row is what a platform would serve. `local` has its own components alone, `federated` the shared ones
alone, `mix` both where they pass the platform's trial, `pooled` is `mix` with a model of all rows in one
place. Everything is chosen on validation users; test users are measured once a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from clients.assessment import Rival
from clients.dataset import Dataset
from clients.personal import Weighing
from clients.scoring import Moment
from crossrec_model.config import Plan
from crossrec_model.evaluation.baselines import Baseline, Ease, ItemKnn, Popularity
from crossrec_model.evaluation.charts import interval_chart, standalone
from crossrec_model.evaluation.comparison import AVERAGE, Estimates, estimates
from crossrec_model.evaluation.metrics import candidate_ndcg
from crossrec_model.evaluation.results import Result
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.ranking import Mixture

Scores = npt.NDArray[np.float32]
#: Scores of users (numbers into the test's list) for all candidates.
Scorer = Callable[[npt.NDArray[np.int64]], Scores]
CHUNK = 400
FULL, CANDIDATES = "ndcg@10", "candidates ndcg@10"


@dataclass(frozen=True, kw_only=True, eq=False)
class Test:
    """The test users of one platform under leave-one-out.

    `target` [U] is the column of each one's test item, `drawn` [U, 99] those of the frozen negatives,
    or None where there are none.
    """

    platform: str
    moment: Moment
    users: npt.NDArray[np.int64]
    had: sp.csr_matrix
    target: npt.NDArray[np.int64]
    drawn: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        platform: str,
        dataset: Dataset,
        plan: Plan,
        negatives: Mapping[str, Sequence[str]] | None,
    ) -> Test:
        """Everybody with a test item."""
        split = dataset.split
        moment = Moment.at(dataset, plan.training, split.test)
        users = np.arange(len(dataset.histories))
        place, event = dataset.index.events(
            users, np.full(len(users), split.test), np.full(len(users), np.inf)
        )
        column = np.full(len(dataset.items), -1)
        column[moment.candidates] = np.arange(len(moment.candidates))
        target = column[dataset.histories.item[event]]
        row = {item: number for number, item in enumerate(dataset.items.item_ids)}
        drawn = None
        if negatives is not None:
            ids = [negatives[dataset.histories.user_ids[user]] for user in place]
            drawn = column[np.array([[row[item] for item in one] for one in ids])]
        taken = sp.csr_matrix(moment.taken[place][:, moment.candidates])
        return cls(
            platform=platform, moment=moment, users=place, had=taken, target=target, drawn=drawn
        )

    def measure(self, row: str, seed: int, scorer: Scorer) -> Result:
        """nDCG@10 and hit rate over everything that a user has not had, and over the drawn candidates."""
        metrics: dict[str, list[npt.NDArray[np.float64]]] = {}
        for part in _parts(len(self.users)):
            scores = np.asarray(scorer(part), dtype=np.float32)
            rank, target = np.arange(len(part)), self.target[part]
            if self.drawn is not None:
                drawn = scores[rank[:, None], self.drawn[part]]
                found = candidate_ndcg(scores[rank, target], drawn)
                metrics.setdefault(CANDIDATES, []).append(found)
                metrics.setdefault("candidates hr@10", []).append((found > 0).astype(float))
            hidden = self.had[part].nonzero()
            scores[hidden] = -np.inf
            above = (scores >= scores[rank, target][:, None]).sum(axis=1) - 1
            gain = np.where(above < 10, 1 / np.log2(above + 2.0), 0.0)
            metrics.setdefault(FULL, []).append(gain)
            metrics.setdefault("hr@10", []).append((above < 10).astype(float))
        return Result(
            row=row,
            platform=self.platform,
            view="test",
            seed=seed,
            users=self.users,
            warm=np.ones(len(self.users), dtype=bool),
            metrics={name: np.concatenate(parts) for name, parts in metrics.items()},
        )


def plain_rows(test: Test, pooled: Mapping[str, object] | None = None) -> Iterator[Result]:
    """Popularity, item-kNN and EASE from the platform's own rows, and from everybody's where given.

    `pooled` has fitted scorers by row over a catalogue of all platforms' items: see `pooled_rows`.
    """
    history = test.moment.taken[:, test.moment.candidates].tocsr()
    rows: dict[str, Baseline] = {
        "popularity": Popularity(),
        "item-kNN": ItemKnn(shrink=10.0),
        "EASE": Ease(l2=100.0),
    }
    for name, baseline in rows.items():
        fitted = baseline.fit(history)
        served = history[test.users]
        yield test.measure(name, 0, lambda part, f=fitted, s=served: f.scores(s[part]))
    for name, weights in (pooled or {}).items():
        served = history[test.users]
        yield test.measure(
            name,
            0,
            lambda part, w=weights, s=served: np.asarray(s[part] @ w),  # type: ignore[operator]
        )


def model_rows(
    test: Test, dataset: Dataset, plan: Plan, rivals: Sequence[tuple[int, Rival]]
) -> Iterator[tuple[Result, str]]:
    """Rows `local`, `federated` alone, and one a (seed, rival); with a line about how it was chosen."""
    weighing = Weighing(dataset, plan.training, None)
    moment, users = test.moment, test.users

    def own(part: npt.NDArray[np.int64]) -> dict[str, Scores]:
        return moment.own_components(users[part], None)

    def scorer(mixture: Mixture, parts: Callable[..., dict[str, Scores]]) -> Scorer:
        def scores(part: npt.NDArray[np.int64]) -> Scores:
            components = moment.components(users[part], parts(part)).select(mixture.names)
            return mixture.scores(components)

        return scores

    local = test.measure("local", 0, scorer(weighing.local, own))
    yield local, "own components alone"
    for seed, rival in rivals:
        at_validation, at_test = rival.at_validation, rival.at_test
        mixtures, alone = weighing.against(at_validation), weighing.alone(at_validation)
        graph = moment.shared_graph(at_test)

        def shared(part: npt.NDArray[np.int64], model=at_test, graph=graph) -> dict[str, Scores]:  # type: ignore[no-untyped-def]
            return moment.shared_components(users[part], model, graph)

        def both(part: npt.NDArray[np.int64], shared=shared) -> dict[str, Scores]:  # type: ignore[no-untyped-def]
            return own(part) | shared(part)

        if rival.row == "federated":
            yield test.measure("federated", seed, scorer(alone, shared)), "shared components alone"
        row = "mix" if rival.row == "federated" else rival.row
        trial = mixtures.trial
        said = (
            f"fit {trial.fit}, nDCG@10 {trial.ndcg}: {'served' if trial.passed else 'not served'}"
        )
        if trial.passed:
            yield test.measure(row, seed, scorer(mixtures.federated, both)), said
        else:
            yield replace(local, row=row, seed=seed), said


def scored(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Metric → row → platform or AVERAGE → mean over users and seeds."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row, found in _by_row(results).items():
        for metric, platforms in found.items():
            means = {name: one.value for name, one in platforms.items()}
            table.setdefault(metric, {})[row] = means
    return table


def published(
    stem: Path,
    title: str,
    results: Sequence[Result],
    metrics: Sequence[str],
    against: str = "local",
) -> None:
    """Write STEM.md, a table a metric with 95% intervals, and STEM.svg, the rows' averages."""
    rows, lines = _by_row(results), [f"# {title}", ""]
    for metric in metrics:
        platforms = list(next(iter(rows.values()))[metric])
        lines += [f"## {metric}", "", "| row | " + " | ".join(platforms) + " |"]
        lines += ["|---|" + "---:|" * len(platforms)]
        for row, found in rows.items():
            cells = [f"{e.value:.4f} [{e.low:.4f} to {e.high:.4f}]" for e in found[metric].values()]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    generator = ExperimentRandomness(0, "quality").numpy()
    lines += [
        f"## Beside `{against}`, {metrics[0]}, average",
        "",
        "| row | difference |",
        "|---|---:|",
    ]
    for row in rows:
        if row == against:
            continue
        gains = estimates(results, row=row, view="test", generator=generator, against=against)
        gain = gains[metrics[0]][AVERAGE]
        lines.append(f"| {row} | {gain.value:+.4f} [{gain.low:+.4f} to {gain.high:+.4f}] |")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    entries = [(row, found[metrics[0]][AVERAGE]) for row, found in rows.items()]
    chart = interval_chart(stem.name, entries, metrics[0], around_zero=False)
    stem.with_suffix(".svg").write_text(standalone(chart), encoding="utf-8")


def _by_row(results: Sequence[Result]) -> dict[str, Estimates]:
    generator = ExperimentRandomness(0, "quality").numpy()
    names = dict.fromkeys(result.row for result in results)
    return {row: estimates(results, row=row, view="test", generator=generator) for row in names}


def _parts(users: int) -> list[npt.NDArray[np.int64]]:
    return [np.arange(start, min(start + CHUNK, users)) for start in range(0, users, CHUNK)]
