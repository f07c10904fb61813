"""Server optimisers as pure functions on the flat shared vector.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithms 1 and 2. `update` is the
cohort's weighted mean of (local model - shared model), so a step adds it rather than subtracts it.
Arithmetic is float64; what is kept is float32, so a resumed run repeats an unbroken one bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossrec_model.config import FederationConfig
from crossrec_model.errors import FederationError
from crossrec_model.wire.codec import FloatVector

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """FedAvg keeps no state (McMahan et al. 2017; server learning rate as in Reddi et al.)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FedAvgM:
    """Server momentum (Hsu et al. 2019): `velocity` float32 [d]."""

    velocity: FloatVector


@dataclass(frozen=True, kw_only=True, eq=False)
class FedAdam:
    """First and second moments of the update, float32 [d] each."""

    mean: FloatVector
    square: FloatVector


OptimizerState = FedAvg | FedAvgM | FedAdam


def initial_state(config: FederationConfig, dimension: int) -> OptimizerState:
    """Return the state before the first round for a vector of `dimension` numbers."""
    zeros = np.zeros(dimension, dtype=np.float32)
    if config.optimizer == "fedavg":
        return FedAvg()
    if config.optimizer == "fedavgm":
        return FedAvgM(velocity=zeros)
    # v_{-1} = τ², the least that Algorithm 2 allows: a coordinate never updated can't explode.
    return FedAdam(mean=zeros, square=np.full(dimension, config.tau**2, dtype=np.float32))


def step(
    config: FederationConfig, state: OptimizerState, parameters: FloatVector, update: Wide
) -> tuple[FloatVector, OptimizerState]:
    """Return the next parameters float32 [d] and the next state.

    Raises:
        FederationError: if the result holds NaN or an infinity; the inputs stay as they are.
    """
    following: OptimizerState
    match state:
        case FedAvg():
            direction, following = update, state
        case FedAvgM():
            direction = config.momentum * state.velocity.astype(np.float64) + update
            following = FedAvgM(velocity=direction.astype(np.float32))
        case FedAdam():
            direction, following = _adam(config, state, update)
    try:
        return plain_mean(parameters, config.server_lr * direction), following
    except FederationError:
        raise FederationError(
            f"the model diverged under {config.optimizer} with server_lr = {config.server_lr}; "
            "resume from the last checkpoint with a smaller server_lr"
        ) from None


def plain_mean(parameters: FloatVector, update: Wide) -> FloatVector:
    """Return parameters moved by the cohort's mean update, float32 [d].

    Raises:
        FederationError: if the result holds NaN or an infinity.
    """
    moved = parameters.astype(np.float64) + update
    if not (np.abs(moved) <= np.finfo(np.float32).max).all():
        raise FederationError("the cohort's mean is not finite; resume from the last checkpoint")
    return moved.astype(np.float32)


def _adam(config: FederationConfig, state: FedAdam, update: Wide) -> tuple[Wide, FedAdam]:
    """Algorithm 2, option FedAdam; no bias correction, as in the paper."""
    mean = config.beta1 * state.mean.astype(np.float64) + (1 - config.beta1) * update
    square = config.beta2 * state.square.astype(np.float64) + (1 - config.beta2) * update**2
    kept = FedAdam(mean=mean.astype(np.float32), square=square.astype(np.float32))
    return mean / (np.sqrt(square) + config.tau), kept
