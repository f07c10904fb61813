"""Named shared parameters ↔ one flat vector: the unit of exchange.

The vector is [trained parameters, statistics]. Private parameters have no place in it: they belong to
another object (`clients.private`) and can't be packed by mistake.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from crossrec_model.config import ModelConfig, Plan
from crossrec_model.data.items import SKETCH_ROWS
from crossrec_model.data.users import USER_NUMBERS
from crossrec_model.errors import WireError
from crossrec_model.network import Network
from crossrec_model.pairs import pair_count
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import Statistics

Vector = npt.NDArray[np.float32]

#: Moments of user numbers travel divided by this, so that they lie in [-1, 1] as all else does.
MOMENT_SCALE: Final = 1024.0


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in the vector of a model."""

    model: ModelConfig

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Trained tensors by name, in the order of the vector."""
        with torch.device("meta"):
            network = Network(self.model)
        return {name: tuple(p.shape) for name, p in network.named_parameters()}

    @cached_property
    def trained(self) -> int:
        """Length of the trained part, the first of the vector; the server's optimiser moves it."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def places(self) -> dict[str, slice]:
        """Where each trained tensor lies in the vector."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()]).tolist()
        return {
            name: slice(start, end)
            for name, start, end in zip(self.shapes, [0, *ends], ends, strict=False)
        }

    @property
    def size(self) -> int:
        """Length of the whole vector."""
        return self._measured_end + pair_count(self.model.pair_items)

    @property
    def measured(self) -> slice:
        """Where popularity and moments lie in the vector; pairs follow behind them."""
        return slice(self.trained, self._measured_end)

    @property
    def _measured_end(self) -> int:
        return self.trained + SKETCH_ROWS * self.model.sketch_width + 2 * len(USER_NUMBERS)

    @property
    def pairs(self) -> slice:
        """Where the pairs lie in the vector: its end."""
        return slice(self._measured_end, self.size)

    def pack(self, network: Network, statistics: Statistics) -> Vector:
        """Return the vector float32 [size] of a network and its statistics."""
        parts = [p.detach().cpu().numpy().ravel() for _, p in network.named_parameters()]
        return np.concatenate([*parts, self.tail(statistics)]).astype(np.float32)

    def tail(self, statistics: Statistics) -> Vector:
        """Return the statistics as the last part of the vector, float32 [size - trained]."""
        pairs = statistics.pairs
        if len(pairs) == 0:
            pairs = np.zeros(pair_count(self.model.pair_items), dtype=np.float32)
        measured = self.popularity(statistics)
        return np.concatenate([measured, pairs]).astype(np.float32)

    def popularity(self, statistics: Statistics) -> Vector:
        """Return popularity and moments as the `measured` part of the vector, float32."""
        moments = self.moments(statistics.mean, statistics.square)
        return np.concatenate([statistics.sketch, moments]).astype(np.float32)

    def moments(self, mean: Vector, square: Vector) -> Vector:
        """Return moments of user numbers, float32 [S] each, as the vector has them, within ±1."""
        scaled = np.concatenate([mean, square]) / np.float32(MOMENT_SCALE)
        return np.clip(scaled, -1, 1).astype(np.float32)

    def unpack(self, vector: Vector, device: torch.device) -> tuple[Network, Statistics]:
        """Return a new network and the statistics held in a vector float32 [size].

        Raises:
            WireError: if the vector has another length.
        """
        if vector.shape != (self.size,):
            raise WireError(
                f"the model has {len(vector)} numbers, the plan's network {self.size}; "
                "use the plan that the model was trained with"
            )
        network, position = Network(self.model).to(device), 0
        with torch.no_grad():
            for parameter in network.parameters():
                part = vector[position : position + parameter.numel()]
                parameter.copy_(torch.from_numpy(part.copy()).view_as(parameter))
                position += parameter.numel()
        return network, self.statistics(vector)

    def statistics(self, vector: Vector) -> Statistics:
        """Return the statistics held in a vector float32 [size]."""
        cells, tail = SKETCH_ROWS * self.model.sketch_width, vector[self.measured]
        mean, square = np.split(tail[cells:] * np.float32(MOMENT_SCALE), 2)
        return Statistics(
            sketch=tail[:cells].copy(), mean=mean, square=square, pairs=vector[self.pairs].copy()
        )


def initial_network(model: ModelConfig, stream: ExperimentRandomness) -> Network:
    """A network with weights drawn from a named stream."""
    network = Network(model)
    network.reset(stream.child("initial weights").torch())
    return network


def no_statistics(model: ModelConfig) -> Statistics:
    """Statistics before anything is known."""
    zeros = np.zeros(len(USER_NUMBERS), dtype=np.float32)
    return Statistics(
        sketch=np.zeros(SKETCH_ROWS * model.sketch_width, dtype=np.float32),
        mean=zeros,
        square=zeros,
    )


def initial_vector(plan: Plan) -> Vector:
    """The shared vector float32 [size] before the first round; the same for the same plan."""
    network = initial_network(plan.model, ExperimentRandomness(plan.seed))
    return Layout(plan.model).pack(network, no_statistics(plan.model))
