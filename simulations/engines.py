"""Three ways to run the same federation: threads of this process, Ray actors, real processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from clients.connection import Handler
from clients.dataset import Dataset, load_dataset
from clients.guard import OpenGuard
from clients.private import PrivateModel, restore_private
from clients.round import PlatformRound
from clients.sealing import SealerFor, secure_sealer
from clients.state import PlatformFolder
from crossrec_model.config import ModelConfig, Plan
from crossrec_model.data.prepared import PreparedData, open_prepared
from crossrec_model.errors import FederationError
from crossrec_model.parameters import Layout, Vector, initial_vector
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.roster import SignedRoster
from crossrec_model.statistics import Statistics
from server.checkpoint import Checkpoint, CheckpointStore, RoundRecord
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier
from server.progress import progress_for
from simulations.grid import InProcessGrid, LocalGrid
from simulations.plain import PlainSealer
from simulations.processes import run_processes
from simulations.ray_grid import RayGrid
from simulations.sums import (
    OpenedInMemory,
    Sums,
    identities_for,
    plain_sums,
    secure_sums,
    sums_under,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Platform:
    """One platform of an experiment: where its rows come from and where they were cleaned to."""

    name: str
    data: str
    prepared: PreparedData


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What a federated run leaves.

    `final` float32 [d]; `validation` are the statistics of the first round; `private` holds the
    private models of the platforms that trained one in their own process.
    """

    final: Vector
    validation: Statistics
    history: tuple[RoundRecord, ...]
    private: dict[str, PrivateModel] = field(default_factory=dict)


class Engine(Protocol):
    """Runs a plan over platforms."""

    def __call__(
        self, plan: Plan, platforms: Mapping[str, Platform], datasets: Mapping[str, Dataset]
    ) -> Trained:
        """Return what the run left."""


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """Threads of this process; `at_once` platforms train at the same time."""

    at_once: int
    evaluate_every: int
    secure: bool = True

    def __call__(
        self, plan: Plan, platforms: Mapping[str, Platform], datasets: Mapping[str, Dataset]
    ) -> Trained:
        """See `Engine`."""
        sums = secure_sums(platforms) if self.secure else plain_sums(platforms)
        with closing(self.grid(plan, datasets, sums)) as grid:
            return coordinated(plan, grid, len(datasets), self.evaluate_every, sums)

    def grid(self, plan: Plan, datasets: Mapping[str, Dataset], sums: Sums) -> InProcessGrid:
        """The platforms of these datasets, ready to answer."""
        handlers = {
            name: PlatformRound(
                name,
                functools.partial(_given, datasets[name]),
                sums.sealers[name],
                guard=OpenGuard(sums.honest(plan)),
            )
            for name in datasets
        }
        return InProcessGrid(handlers, at_once=self.at_once)


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Ray actors, on this machine or on a cluster; each reads its own prepared data."""

    address: str | None
    evaluate_every: int
    secure: bool = True

    def __call__(
        self, plan: Plan, platforms: Mapping[str, Platform], datasets: Mapping[str, Dataset]
    ) -> Trained:
        """See `Engine`."""
        keys: dict[str, bytes | None] = dict.fromkeys(platforms)
        sums, roster = plain_sums(platforms), b""
        if self.secure:
            identities, signed = identities_for(platforms)
            sums, roster = sums_under(identities, signed), signed.to_json()
            # Keys of an experiment: they are made here and go to the actors of this run alone.
            keys |= {name: identity.to_bytes() for name, identity in identities.items()}
        makers = {
            name: functools.partial(
                _in_actor,
                name,
                str(platform.prepared.folder.resolve()),
                keys[name],
                roster,
                sums.honest(plan),
            )
            for name, platform in platforms.items()
        }
        with closing(RayGrid(makers, address=self.address)) as grid:
            return coordinated(plan, grid, len(makers), self.evaluate_every, sums)


@dataclass(frozen=True, kw_only=True)
class ProcessEngine:
    """The real server and a real process a platform, over TLS on loopback."""

    work: Path
    evaluate_every: int

    def __call__(
        self, plan: Plan, platforms: Mapping[str, Platform], datasets: Mapping[str, Dataset]
    ) -> Trained:
        """See `Engine`."""
        name, privacy = f"seed-{plan.seed}", plan.privacy
        if privacy.on:
            name += f"-{privacy.noise}-{privacy.epsilon:g}"
        state = self.work / name
        sources = {name: platform.data for name, platform in platforms.items()}
        run_processes(plan, sources, state, evaluate_every=self.evaluate_every)
        end = CheckpointStore(state / "coordinator").latest()
        if end is None:
            raise FederationError(f"the coordinator left no checkpoint in {state}; run again")
        private, validation = {}, None
        for name, dataset in datasets.items():
            trained = PlatformFolder(state / name).load_trained()
            if trained is None or trained.kept.received.validation is None:
                raise FederationError(f"platform {name} left no whole model in {state}; run again")
            own, validation = trained.personal, trained.kept.received.validation
            if own.statistics is None:
                continue
            private[name] = restore_private(
                dataset, plan, own.tensors, own.statistics, day=dataset.split.validation
            )
        if validation is None:
            raise FederationError("an experiment needs at least one platform; name them")
        return Trained(
            final=end.parameters, validation=validation, history=end.history, private=private
        )


def _given(dataset: Dataset, _model: ModelConfig) -> Dataset:
    return dataset


def _in_actor(platform: str, folder: str, key: bytes | None, roster: bytes, honest: int) -> Handler:
    """Made inside the actor, so that a platform's data stay in its process."""
    torch.set_num_threads(1)
    prepared = open_prepared(Path(folder))
    sealer: SealerFor = PlainSealer
    if key is not None:
        members = SignedRoster.from_json(roster).roster
        sealer = secure_sealer(platform, IdentityKey.from_bytes(key), members, OpenedInMemory())
    return PlatformRound(
        platform,
        lambda model: load_dataset(prepared, model, device=torch.device("cpu")),
        sealer,
        guard=OpenGuard(honest),
    )


def coordinated(
    plan: Plan,
    grid: LocalGrid,
    platforms: int,
    evaluate_every: int,
    sums: Sums,
    note: Callable[[Checkpoint], object] = lambda checkpoint: None,
) -> Trained:
    """The real coordinator over a grid without network; nothing is saved, `note` sees every round."""
    first: list[Vector] = []

    def keep(checkpoint: Checkpoint) -> None:
        note(checkpoint)
        if checkpoint.round == plan.validation_rounds()[0]:
            first.append(checkpoint.parameters)

    options = RunOptions(platforms=platforms, evaluate_every=evaluate_every)
    with progress_for() as progress:
        start, courier = fresh_start(plan, initial_vector(plan)), GridCourier(grid)
        aggregation = sums.aggregation(courier, plan, progress.note)
        end = Federation(
            courier, start, options, aggregation=aggregation, save=keep, progress=progress
        ).run()
    validation = Layout(plan.model).unpack(first[0], torch.device("cpu"))[1]
    return Trained(final=end.parameters, validation=validation, history=end.history)
