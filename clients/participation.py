"""A platform takes part in a run: data in, federation, private model, mixing weights, saved."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import torch

from clients.adapters import open_source
from clients.connection import Handler
from clients.dataset import Dataset, load_dataset
from clients.guard import Guard
from clients.membership import Received
from clients.personal import Mixtures, Weighing
from clients.private import PrivateModel, train_private
from clients.progress import Progress
from clients.round import PlatformRound
from clients.scoring import SharedModel
from clients.sealing import SealerFor
from clients.state import Kept, Personal, PlatformFolder, Trained
from clients.validation import Validation
from crossrec_model.config import ModelConfig, Plan
from crossrec_model.data.prepared import PreparedData, prepare
from crossrec_model.errors import ConfigError, FederationError
from crossrec_model.parameters import Layout
from crossrec_model.privacy.ledger import Budget
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.secagg.roster import COLLUDING_SHARE, OF_TWO

#: Takes the handler to the coordinator and returns when the run is over.
Serve = Callable[[Handler], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a platform's operator decides."""

    platform: str
    data: str
    folder: PlatformFolder
    device: str = "cpu"
    threads: int = 1
    max_bad: float = 0.01
    min_users: int = 50
    validation_weeks: float = 8.0
    test_weeks: float = 4.0
    #: A roster file to pin, None for the one that is pinned already.
    roster: Path | None = None
    accept_roster: bool = False
    #: The least share of colluding platforms that a plan must withstand.
    colluding_share: float = COLLUDING_SHARE
    #: Take part in another run though the last one was not finished.
    new_run: bool = False
    #: What each user's epsilon may come to in a run and in all runs, at which delta.
    epsilon: float = 8.0
    delta: float = 1e-5
    life_epsilon: float = 24.0
    #: Take part in runs without differential privacy too.
    no_privacy: bool = False
    #: Take part though only two platforms do: the noise alone then protects the users.
    allow_two: bool = False
    #: Accept a changed roster or plan without asking.
    yes: bool = False
    #: Fingerprint that an invitation must be signed by.
    signer: str | None = None
    #: Train a network of the platform's own too, beside its closed-form graphs.
    own_network: bool = False
    #: The day on which the data end, where that is known without looking at them.
    data_end: date | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 1024:
            raise ConfigError(f"threads = {self.threads} is outside [1, 1024]; give e.g. 1")
        if not 0 <= self.colluding_share <= 1:
            raise ConfigError(
                f"--colluding-share {self.colluding_share} is outside [0, 1]; give e.g. 0.33"
            )
        if self.allow_two and self.no_privacy:
            raise ConfigError(f"--allow-two with --no-privacy: {OF_TWO}; leave out one of them")
        # Out of bounds it is told at once.
        self.budget()
        if not 0 < self.test_weeks < self.validation_weeks < float("inf"):
            raise ConfigError(
                f"test weeks = {self.test_weeks:g} must be above 0 and below validation weeks = "
                f"{self.validation_weeks:g}; change --test-weeks or --validation-weeks"
            )

    def budget(self) -> Budget:
        """What a user's privacy may cost; raises ConfigError for a number outside its bounds."""
        return Budget(epsilon=self.epsilon, delta=self.delta, life_epsilon=self.life_epsilon)


def device_named(name: str) -> torch.device:
    """Return the device cpu, cuda or auto (cuda where there is one).

    Raises:
        ConfigError: for another name, or for cuda where there is none.
    """
    if name not in {"cpu", "cuda", "auto"}:
        raise ConfigError(f"device {name!r} is unknown; choose cpu, cuda or auto")
    there = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("device cuda is asked for but there is none; choose cpu or auto")
    return torch.device("cuda" if there else "cpu")


def prepare_data(settings: Settings, note: Callable[[str], None]) -> PreparedData:
    """Clean the platform's rows into its folder and print the summary.

    Raises:
        DataError: for rows that can't be used.
    """
    source = open_source(settings.data, settings.platform)
    prepared = prepare(
        source,
        into=settings.folder.data,
        now=datetime.now(UTC),
        max_bad=settings.max_bad,
        min_users=settings.min_users,
    )
    for line in prepared.summary.lines():
        note(line)
    if prepared.summary.tables and any(sum(t.dropped.values()) for t in prepared.summary.tables):
        note(f"dropped rows with their reasons: {settings.folder.data / 'quarantine'}")
    return prepared


class Participation:
    """One platform in one process; everything received is on disk before it is answered.

    Raises:
        ConfigError: for a device that is not there, or a state folder of another platform.
        StateError: if what is on disk is damaged.
    """

    def __init__(
        self,
        settings: Settings,
        prepared: PreparedData,
        progress: Progress,
        sealer_for: SealerFor,
        guard: Guard,
    ) -> None:
        torch.set_num_threads(settings.threads)
        self._settings, self._prepared, self._progress = settings, prepared, progress
        self._device = device_named(settings.device)
        self._folder = settings.folder
        self._kept = self._folder.load_received()
        if self._kept is not None and self._kept.platform != settings.platform:
            raise ConfigError(
                f"state folder {self._folder.path} belongs to platform {self._kept.platform}, "
                f"not {settings.platform}; give another --state"
            )
        self._read: tuple[ModelConfig, Dataset] | None = None
        self._sealer_for, self._guard = sealer_for, guard

    def handler(self) -> PlatformRound:
        """The platform's answers to a coordinator."""
        return PlatformRound(
            self._settings.platform,
            self.dataset,
            self._sealer_for,
            keep=self._keep,
            warn=self._progress.note,
            guard=self._guard,
            new_run=self._settings.new_run,
            note=lambda number, rounds, text: self._progress.done("round", number, rounds, text),
            earlier=self._kept.received if self._kept else None,
        )

    def run(self, serve: Serve) -> None:
        """Take part through `serve`, then train what is private; or only finish what was begun.

        Raises:
            CrossrecError: if the run can't go on; what was received stays on disk.
        """
        if self._pending():
            self._progress.note("the last run is finished; its private model is trained now")
        else:
            serve(self.handler())
        if self._kept is None or not self._kept.received.finished:
            raise FederationError("the run ended before the final model came; take part again")
        personal = self._personal(self._kept.received)
        self._folder.save_trained(Trained(kept=self._kept, personal=personal))

    def _pending(self) -> bool:
        """Whether the last run was finished here, but not the private training after it."""
        if self._kept is None or not self._kept.received.finished:
            return False
        trained = self._folder.load_trained()
        return trained is None or trained.received.run != self._kept.received.run

    def dataset(self, model: ModelConfig) -> Dataset:
        """The prepared data as a plan's network reads them, read once a plan."""
        if self._read is not None and self._read[0] == model:
            return self._read[1]
        settings = self._settings
        dataset = load_dataset(
            self._prepared,
            model,
            device=self._device,
            validation_weeks=settings.validation_weeks,
            test_weeks=settings.test_weeks,
            min_users=settings.min_users,
            end=None if settings.data_end is None else _days(settings.data_end),
        )
        self._read = model, dataset
        self._progress.note(dataset.split.describe())
        return dataset

    def _keep(self, received: Received) -> None:
        split = self.dataset(received.plan.model).split
        self._kept = Kept(platform=self._settings.platform, split=split, received=received)
        self._folder.save_received(self._kept)

    def _personal(self, received: Received) -> Personal:
        """Train the private model and fit both mixtures on the validation weeks."""
        started, plan = time.monotonic(), received.plan
        dataset = self.dataset(plan.model)
        # Data prepared anew may have nobody to fit the weights on: told before, not after training.
        Validation.of(dataset, plan.training)
        private = self._own_network(plan, dataset) if self._settings.own_network else None
        shared = shared_for_validation(received, self._device, self._progress.note)
        weighing = Weighing(dataset, plan.training, private)
        mixtures = weighing.against(shared)
        for line in _summary(mixtures, users=len(weighing.users)):
            self._progress.note(line)
        self._progress.note(f"private training took {time.monotonic() - started:.1f} s")
        return _as_personal(private, mixtures)

    def _own_network(self, plan: Plan, dataset: Dataset) -> PrivateModel:
        epochs = plan.training_rounds * plan.training.epochs
        return train_private(
            dataset,
            plan,
            ExperimentRandomness(plan.seed, "private", self._settings.platform),
            epochs=epochs,
            note=lambda epoch, loss: self._progress.done(
                "private model, epoch", epoch, epochs, f"loss {loss:.4f}"
            ),
        )


def _days(day: date) -> float:
    """Days since 1970 of the end of a day in UTC."""
    return float((day - date(1970, 1, 1)).days + 1)


def shared_for_validation(
    received: Received, device: torch.device, note: Callable[[str], None]
) -> SharedModel:
    """The shared network with the statistics that knew nothing of the validation weeks."""
    plan = received.plan
    network, statistics = Layout(plan.model).unpack(received.vector, device)
    if received.validation is None:
        note(
            "this platform saw no round but the end: its mixing weights rest on statistics that "
            "include the validation weeks; take part in a whole run for better ones"
        )
        return SharedModel(plan=plan, network=network, statistics=statistics)
    return SharedModel(plan=plan, network=network, statistics=received.validation)


def _as_personal(private: PrivateModel | None, mixtures: Mixtures) -> Personal:
    if private is None:
        return Personal(tensors={}, statistics=None, mixtures=mixtures)
    named = private.network.named_parameters()
    return Personal(
        tensors={name: p.detach().cpu().numpy().astype(np.float32) for name, p in named},
        statistics=private.statistics,
        mixtures=mixtures,
    )


def _summary(mixtures: Mixtures, *, users: int) -> list[str]:
    """What the mixture for items that are new to a user is made of, and what its trial said."""
    trial, mixture = mixtures.trial, mixtures.served
    parts = zip(mixture.names, mixture.weights, strict=False)
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in parts)
    outcome = "it is served" if trial.passed else "not clearly better: the platform's own is served"
    return [
        f"the shared model adds {trial.ndcg} nDCG@10 and {trial.fit} nats of fit for {trial.users} "
        f"validation users: {outcome}",
        f"mixing weights from {users} validation users, for new items: {weights}",
    ]


def folder_of(state: Path, platform: str) -> PlatformFolder:
    """The folder of a platform within a state folder."""
    return PlatformFolder(state / platform)
