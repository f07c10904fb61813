"""The training plan: frozen, validated when made, parsed once at the edge.

The coordinator sends the plan to every platform as canonical JSON; both sides build the same network
from it. A value outside its bounds raises `ConfigError` naming the value, the bound and the remedy.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from crossrec_model.errors import ConfigError, shown
from crossrec_model.sections import section, table

Objective = Literal["softmax", "bce", "mse"]
LocalOptimizer = Literal["adam", "sgd"]
ServerOptimizer = Literal["fedavg", "fedavgm", "fedadam"]
Noise = Literal["none", "local", "distributed"]
Work = Literal["popularity", "pairs", "training"]
Activation = Literal["tanh", "sigmoid", "relu", "identity"]
RELATIONS: Final = ("self", "category", "brand", "shop", "bought_together")
#: Statistics, training, statistics; with pairs each statistics round is two.
LEAST_ROUNDS: Final = 3
LEAST_ROUNDS_WITH_PAIRS: Final = 5
_WIDEST: Final = 65536
#: A plan comes from outside, and a network has some kilobytes a layer before it holds any number.
_MOST_LAYERS: Final = 16


def _within(name: str, value: float, low: float, high: float) -> None:
    # `not (low <= value <= high)` also catches NaN.
    if not low <= value <= high:
        raise ConfigError(
            f"{name} = {shown(value)} is outside [{low}, {high}]; choose a value inside it"
        )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} = {shown(value)} is unknown; choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the shared network (`network.py`)."""

    buckets: int = 2**16
    dimension: int = 64
    neighbours: int = 2
    relations: tuple[str, ...] = ("self", "category", "brand")
    #: Character n-grams kept of a title.
    title_grams: int = 6
    #: Cells a row of the shared popularity sketch.
    sketch_width: int = 2**17
    #: Most popular shared items whose takings together are summed over platforms; 0: none, and no rounds
    #: for it. They add pair_items * (pair_items + 1) / 2 numbers to the shared vector.
    pair_items: int = 0
    #: One user's pairs count up to this Euclidean norm, which is that of as many distinct items.
    pair_norm: float = 256.0
    graph_layers: int = 1
    tower: tuple[int, ...] = (128, 64, 32, 1)
    activation: Activation = "tanh"
    vector_size: int = 0

    def __post_init__(self) -> None:
        _within("model.buckets", self.buckets, 16, 2**24)
        _within("model.dimension", self.dimension, 2, 1024)
        _within("model.neighbours", self.neighbours, 0, 64)
        _within("model.graph_layers", self.graph_layers, 0, 3)
        _within("model.title_grams", self.title_grams, 0, 256)
        _within("model.sketch_width", self.sketch_width, 16, 2**24)
        _within("model.pair_items", self.pair_items, 0, 16_384)
        _within("model.pair_norm", self.pair_norm, 1.0, 1e6)
        _within("model.vector_size", self.vector_size, 0, 65536)
        _one_of("model.activation", self.activation, get_args(Activation))
        for relation in self.relations:
            _one_of("model.relations", relation, RELATIONS)
        if not self.relations or len(set(self.relations)) < len(self.relations):
            raise ConfigError(
                f"model.relations = {shown(list(self.relations))} must name at least one relation and "
                f"each only once; choose some of {', '.join(RELATIONS)}"
            )
        if len(self.tower) > _MOST_LAYERS:
            raise ConfigError(
                f"model.tower has {len(self.tower)} widths; at most {_MOST_LAYERS} are allowed"
            )
        for width in self.tower:
            _within("model.tower", width, 1, _WIDEST)
        if len(self.tower) < 2 or self.tower[0] != 2 * self.dimension or self.tower[-1] != 1:
            raise ConfigError(
                f"model.tower = {shown(list(self.tower))} must start at 2 x dimension = "
                f"{2 * self.dimension} and end at 1; change the tower or the dimension"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One platform's local training in one round. The unit is a user, never a row."""

    objective: Objective = "bce"
    optimizer: LocalOptimizer = "adam"
    learning_rate: float = 0.003
    epochs: int = 1
    users_per_step: int = 128
    #: A platform with few users takes smaller steps, so that an epoch has so many.
    least_steps: int = 1
    history: int = 64
    positives: int = 20
    negatives: int = 256
    #: Of a step's negatives, each user is compared with so many; 0: with all.
    negatives_a_user: int = 0
    window_days: float = 14.0
    recency_days: float = 90.0

    def __post_init__(self) -> None:
        _one_of("training.objective", self.objective, get_args(Objective))
        _one_of("training.optimizer", self.optimizer, get_args(LocalOptimizer))
        _within("training.learning_rate", self.learning_rate, 1e-7, 10.0)
        _within("training.epochs", self.epochs, 1, 1000)
        _within("training.users_per_step", self.users_per_step, 1, 1_000_000)
        _within("training.history", self.history, 1, 10_000)
        _within("training.positives", self.positives, 1, 10_000)
        _within("training.least_steps", self.least_steps, 1, 1000)
        _within("training.negatives", self.negatives, 1, 100_000)
        _within("training.negatives_a_user", self.negatives_a_user, 0, self.negatives)
        _within("training.window_days", self.window_days, 0.01, 3650.0)
        _within("training.recency_days", self.recency_days, 0.01, 36500.0)


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """Rounds, cohort and the server's optimiser (Reddi et al. 2021, Algorithm 2)."""

    rounds: int = 12
    min_platforms: int = 3
    round_timeout_s: float = 600.0
    optimizer: ServerOptimizer = "fedavg"
    server_lr: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _within("federation.rounds", self.rounds, 1, 100_000)
        _within("federation.min_platforms", self.min_platforms, 1, 100)
        _within("federation.round_timeout_s", self.round_timeout_s, 0.1, 86_400.0)
        _one_of("federation.optimizer", self.optimizer, get_args(ServerOptimizer))
        _within("federation.server_lr", self.server_lr, 1e-7, 100.0)
        _within("federation.momentum", self.momentum, 0.0, 0.9999)
        _within("federation.beta1", self.beta1, 0.0, 0.9999)
        _within("federation.beta2", self.beta2, 0.0, 0.9999)
        _within("federation.tau", self.tau, 1e-12, 1.0)


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """How contributions become integers, and what the secure sum withstands (docs/secagg.md).

    An update is scaled down to the Euclidean norm `clip_norm` and to `bound` in each coordinate; a
    weight counts up to `max_weight`. Each bound is divided into `levels` steps. Fewer than
    `colluding_share` of the roster's platforms may collude with the coordinator. One key agreement
    serves `slots` sums.
    """

    levels: int = 1 << 24
    bound: float = 1.0
    clip_norm: float = 100.0
    max_weight: float = 65536.0
    colluding_share: float = 1 / 3
    slots: int = 64

    def __post_init__(self) -> None:
        _within("aggregation.levels", self.levels, 2, (1 << 31) // 3)
        _within("aggregation.bound", self.bound, 1e-6, 1e6)
        _within("aggregation.clip_norm", self.clip_norm, 1e-6, 1e9)
        _within("aggregation.max_weight", self.max_weight, 1.0, 1e9)
        _within("aggregation.colluding_share", self.colluding_share, 0.0, 1.0)
        _within("aggregation.slots", self.slots, 1, 1024)

    @property
    def step(self) -> float:
        """Distance of two grid points of an update's coordinate, at the largest weight."""
        return self.bound / self.levels


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What protects a platform's single users (docs/privacy.md). All of it is public.

    `noise` is `none`, `local` (each platform's own noise is enough for its users) or `distributed`
    (only the sum carries enough). `epsilon` and `delta` are what the run was calibrated for; each
    platform prices the run itself. A user's gradient is clipped to the L2 norm `clip`. The noise has a
    deviation of `multiplier` times that; `statistics_multiplier` is that of the statistics rounds. In
    each of a round's `steps`, a user takes part with probability `rate`. `population` is the number of
    users that sums are divided by: a public guess, the same for all, never a platform's real one.
    """

    noise: Noise = "none"
    epsilon: float = 8.0
    delta: float = 1e-5
    clip: float = 1.0
    multiplier: float = 0.0
    statistics_multiplier: float = 0.0
    rate: float = 0.1
    steps: int = 10
    population: int = 2000
    learning_rate: float = 0.3
    #: Items drawn from the catalogue for each user and step.
    negatives: int = 20
    #: How far back from the validation weeks a training moment may lie, in days.
    reach_days: float = 270.0
    #: Whether the hash table is trained; otherwise it stays as the seed made it.
    train_table: bool = True

    def __post_init__(self) -> None:
        _one_of("privacy.noise", self.noise, get_args(Noise))
        _within("privacy.epsilon", self.epsilon, 1e-3, 1e4)
        _within("privacy.delta", self.delta, 1e-15, 0.1)
        _within("privacy.clip", self.clip, 1e-6, 1e6)
        least = 0.0 if self.noise == "none" else 1e-3
        _within("privacy.multiplier", self.multiplier, least, 1e6)
        _within("privacy.statistics_multiplier", self.statistics_multiplier, least, 1e6)
        _within("privacy.rate", self.rate, 1e-6, 1.0)
        _within("privacy.steps", self.steps, 1, 100_000)
        _within("privacy.population", self.population, 1, 1_000_000_000)
        _within("privacy.learning_rate", self.learning_rate, 1e-7, 1e4)
        _within("privacy.negatives", self.negatives, 1, 10_000)
        _within("privacy.reach_days", self.reach_days, 1.0, 36500.0)
        if self.noise == "distributed" and (self.rate, self.steps) != (1.0, 1):
            raise ConfigError(
                f"privacy.rate = {self.rate} and privacy.steps = {self.steps} don't go with "
                "distributed noise, whose round is one step of all users; set both to 1"
            )

    @property
    def on(self) -> bool:
        """Whether what leaves a platform is differentially private."""
        return self.noise != "none"


def is_statistics_round(number: int, rounds: int, *, pairs: bool = False) -> bool:
    """Whether a round (from 1) carries statistics instead of training: the first and the last do.

    The first tells all platforms what is popular before they train; the last refreshes it for
    serving. Where `pairs` are summed, each is followed by a round for them. Their mean is taken as it
    is, without the server's optimiser.
    """
    return number in ((1, 2, rounds - 1, rounds) if pairs else (1, rounds))


def check_rounds(federation: FederationConfig, *, pairs: bool = False) -> None:
    """Refuse a run too short to train; raises `ConfigError`."""
    least = LEAST_ROUNDS_WITH_PAIRS if pairs else LEAST_ROUNDS
    if federation.rounds < least:
        raise ConfigError(
            f"the plan has {federation.rounds} rounds, at least {least} are needed "
            "(statistics, training, statistics); start the coordinator with more --rounds"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the coordinator and all platforms must agree on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    #: Seed of the experiment streams (initial weights, sampling), not of keys or noise.
    seed: int = 0

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, 2**63 - 1)
        limits = self.aggregation
        if self.privacy.noise == "distributed" and not (
            limits.max_weight == 1.0
            and limits.levels <= 1 << 24
            and math.frexp(limits.levels)[0] == 0.5
            and math.frexp(limits.bound)[0] == 0.5
        ):
            raise ConfigError(
                f"aggregation.levels = {limits.levels}, bound = {limits.bound}, max_weight = "
                f"{limits.max_weight} don't go with distributed noise, which must pass the grid "
                "unrounded; set powers of two, of levels up to 2^24, and max_weight = 1"
            )

    @property
    def pairs(self) -> bool:
        """Whether takings together are summed, in rounds of their own."""
        return self.model.pair_items > 0

    def work_of(self, number: int) -> Work:
        """What round `number` (from 1) carries."""
        rounds = self.federation.rounds
        if not is_statistics_round(number, rounds, pairs=self.pairs):
            return "training"
        return "pairs" if self.pairs and number in (2, rounds) else "popularity"

    @property
    def training_rounds(self) -> int:
        """How many rounds train."""
        return self.federation.rounds - (4 if self.pairs else 2)

    def validation_rounds(self) -> range:
        """The rounds after which the vector's statistics know nothing of the validation weeks."""
        first, last = (2, 2) if self.pairs else (1, 1)
        return range(first, self.federation.rounds - last + 1)

    def check_rounds(self) -> None:
        """Refuse a run too short to train; raises `ConfigError`."""
        check_rounds(self.federation, pairs=self.pairs)

    @property
    def pair_unit(self) -> float:
        """What a platform's summed pairs are divided by before they travel: a public number of users."""
        return float(self.privacy.population if self.privacy.on else self.aggregation.max_weight)

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces; equal plans give equal bytes."""
        return json.dumps(
            dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Parse a plan; raises `ConfigError` on anything unknown, missing a type or out of bounds."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the plan is not valid JSON ({error}); send it again") from None
        return cls.from_document(document)

    @classmethod
    def from_toml(cls, path: Path) -> Plan:
        """Read a plan file with the tables `[model]`, `[training]` and so on."""
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"plan file {path} does not exist; give an existing file") from None
        except (OSError, ValueError, RecursionError) as error:
            # ValueError: no UTF-8, no TOML, or a number of more digits than Python reads.
            raise ConfigError(f"plan file {path} can't be read: {error}") from None
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: object) -> Plan:
        """Build a plan from plain dictionaries; absent keys take their defaults."""
        plan = table("plan", document)
        sections = {
            "model": ModelConfig,
            "training": TrainingConfig,
            "federation": FederationConfig,
            "aggregation": AggregationConfig,
            "privacy": PrivacyConfig,
        }
        unknown = sorted(set(plan) - {*sections, "seed"})
        if unknown:
            raise ConfigError(
                f"plan key {shown(unknown[0])} is unknown; known: {', '.join(sections)}, seed"
            )
        values: dict[str, Any] = {
            name: section(name, kind, plan.get(name, {})) for name, kind in sections.items()
        }
        seed = plan.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"seed = {shown(seed)} is not a whole number")
        return cls(seed=seed, **values)


def open_plan() -> Plan:
    """The default where no noise is wanted.

    It sums pairs too, which pay most there. With noise for a few thousand users a platform they tell
    little and cost two more releases: a private plan has them only where it says so.
    """
    return Plan(
        model=ModelConfig(pair_items=2048),
        federation=FederationConfig(rounds=FederationConfig().rounds + 2),
    )
