"""The optimisers against independent ones: torch's SGD and Adam, and the paper's scalars."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crossrec_model.config import FederationConfig
from crossrec_model.errors import FederationError
from server.optimizer import FedAdam, FedAvgM, initial_state, step

STEPS, SIZE = 6, 11


def _updates() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(STEPS, SIZE))


def _ours(config: FederationConfig) -> np.ndarray:
    parameters = np.linspace(-1, 1, SIZE).astype(np.float32)
    state = initial_state(config, SIZE)
    for update in _updates():
        parameters, state = step(config, state, parameters, update)
    return parameters


def _torch(optimizer: type[torch.optim.Optimizer], **settings: float) -> np.ndarray:
    parameters = torch.linspace(-1, 1, SIZE, dtype=torch.float64, requires_grad=True)
    stepper = optimizer([parameters], **settings)
    for update in _updates():
        parameters.grad = -torch.from_numpy(update)
        stepper.step()
    return parameters.detach().numpy()


def test_fedavg_is_gradient_descent_on_the_negative_update() -> None:
    ours = _ours(FederationConfig(optimizer="fedavg", server_lr=0.7))
    np.testing.assert_allclose(ours, _torch(torch.optim.SGD, lr=0.7), rtol=1e-5, atol=1e-6)


def test_fedavgm_is_torch_momentum() -> None:
    ours = _ours(FederationConfig(optimizer="fedavgm", server_lr=0.3, momentum=0.8))
    theirs = _torch(torch.optim.SGD, lr=0.3, momentum=0.8)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_fedadam_is_torch_adam_without_its_bias_correction() -> None:
    config = FederationConfig(optimizer="fedadam", server_lr=0.1, beta1=0.8, beta2=0.95, tau=0.01)
    parameters = torch.linspace(-1, 1, SIZE, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([parameters], lr=1.0, betas=(config.beta1, config.beta2))
    for index, update in enumerate(_updates(), start=1):
        # Adam divides m by 1-β1^t and √v by √(1-β2^t); both are undone through lr and eps.
        root = math.sqrt(1 - config.beta2**index)
        adam.param_groups[0]["lr"] = config.server_lr * (1 - config.beta1**index) / root
        adam.param_groups[0]["eps"] = config.tau / root
        parameters.grad = -torch.from_numpy(update)
        if index == 1:
            adam.state[parameters] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameters),
                "exp_avg_sq": torch.full_like(parameters, config.tau**2),
            }
        adam.step()
    np.testing.assert_allclose(_ours(config), parameters.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_fedadam_by_hand() -> None:
    config = FederationConfig(optimizer="fedadam", server_lr=1.0, beta1=0.5, beta2=0.75, tau=0.1)
    start = np.zeros(1, dtype=np.float32)
    moved, state = step(config, initial_state(config, 1), start, np.array([2.0]))
    # m = 0.5·2, v = 0.75·0.01 + 0.25·4, x = m / (√v + τ)
    assert moved[0] == pytest.approx(1.0 / (math.sqrt(1.0075) + 0.1), rel=1e-6)
    assert isinstance(state, FedAdam)
    assert state.mean[0] == 1.0
    assert state.square[0] == pytest.approx(1.0075)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_inputs_stay_as_they_are_and_a_zero_update_moves_nothing(name: str) -> None:
    config = FederationConfig(optimizer=name)
    start, update = np.ones(4, dtype=np.float32), np.zeros(4)
    before = initial_state(config, 4)
    moved, _ = step(config, before, start, update)
    assert (start == 1).all()
    assert (moved == start).all()
    if isinstance(before, FedAvgM):
        step(config, before, start, np.ones(4))
        assert (before.velocity == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_a_model_that_is_not_finite_is_refused(bad: float) -> None:
    config = FederationConfig(optimizer="fedavg", server_lr=2.0)
    with pytest.raises(FederationError, match=r"diverged under fedavg with server_lr = 2\.0"):
        step(config, initial_state(config, 1), np.zeros(1, np.float32), np.array([bad]))
