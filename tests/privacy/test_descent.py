"""Noisy steps: the gradient is right, the noise is everywhere and as large as is paid for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from small_users import Case, Shape, case
from torch import Tensor

from crossrec_model.network import Network
from crossrec_model.privacy.descent import NoisyDescent
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.privacy.per_user import TABLE, ClippedSum, TableSum
from crossrec_model.randomness import SystemRandomness

CLIP, MULTIPLIER, EXPECTED, RATE = 0.5, 1.5, 20.0, 0.4
DEVIATION = RATE * MULTIPLIER * CLIP / EXPECTED
#: A right implementation fails once in 10^9 runs of an assertion.
CHANCE = 1e-9


@pytest.fixture
def made() -> Case:
    return case(Shape(buckets=3000, dimension=8, vector_size=3))


def descent(network: Network, **changed: float) -> NoisyDescent:
    settings = {
        "clip": CLIP,
        "multiplier": MULTIPLIER,
        "expected": EXPECTED,
        "learning_rate": RATE,
    } | changed
    return NoisyDescent(network, NoiseSource(SystemRandomness()), **settings)


def weights(network: Network) -> dict[str, Tensor]:
    return {name: p.detach().clone().double() for name, p in network.named_parameters()}


def nothing(
    network: Network, rows: Tensor | None = None, values: Tensor | None = None
) -> ClippedSum:
    """A sum of zeros, but for what is given of the table."""
    width = network.items.weight.shape[1]
    rows = torch.zeros(0, dtype=torch.int64) if rows is None else rows
    return ClippedSum(
        clip=CLIP,
        dense={n: torch.zeros_like(p) for n, p in network.named_parameters() if n != TABLE},
        table=TableSum(
            rows=rows, values=torch.zeros(len(rows), width) if values is None else values
        ),
        refused=0,
        losses=torch.zeros(0),
    )


def check_deviation(numbers: Tensor, deviation: float) -> None:
    """Mean 0, this deviation and a normal shape, at `CHANCE`."""
    z = (numbers.double() / deviation).numpy().ravel()
    low, high = stats.chi2.interval(1 - CHANCE, len(z))
    assert low < float(np.square(z).sum()) < high
    assert abs(float(z.sum())) < stats.norm.isf(CHANCE / 2) * np.sqrt(len(z))
    assert stats.kstest(z, "norm").pvalue > CHANCE


def test_without_noise_a_step_is_gradient_descent_on_the_sum_over_a_constant(made) -> None:
    parts = [
        made.kept([0, 1]).clipped(CLIP),
        made.kept([2]).clipped(CLIP),
        made.kept([]).clipped(CLIP),
    ]
    before = weights(made.network)
    steps = descent(made.network, multiplier=0.0)
    steps.step(parts)
    steps.settle()
    for name, found in weights(made.network).items():
        expected = before[name].clone()
        for part in parts:
            if name == TABLE:
                expected.index_add_(
                    0, part.table.rows, part.table.values.double(), alpha=-RATE / EXPECTED
                )
            else:
                expected -= RATE / EXPECTED * part.dense[name].double()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(before[TABLE], weights(made.network)[TABLE])


def test_gradients_reach_the_weights_before_they_are_read_again(made) -> None:
    rows = torch.tensor([4, 9, 4])
    before = made.network.items.weight.detach().clone()
    steps = descent(made.network, multiplier=0.0)
    steps.owed(rows)
    steps.step([nothing(made.network, rows, torch.full((3, 8), 0.1))])
    steps.owed(torch.tensor([[4, 0], [7, 7]]))
    moved = (made.network.items.weight.detach() - before)[4]
    torch.testing.assert_close(moved, torch.full((8,), -2 * 0.1 * RATE / EXPECTED))


def test_every_parameter_and_every_row_gets_the_noise_that_is_paid_for(made) -> None:
    before = weights(made.network)
    steps = descent(made.network)
    steps.step([])  # nobody was drawn: noise alone
    steps.settle()
    after = weights(made.network)
    for name in before:
        moved = after[name] - before[name]
        check_deviation(moved[1:] if name == TABLE else moved, DEVIATION)
    assert float((after[TABLE] - before[TABLE])[1:].abs().min(dim=1).values.min()) > 0


@pytest.mark.parametrize("steps_taken", [4, 9])
def test_noise_of_several_steps_adds_up_whether_rows_are_read_or_not(made, steps_taken) -> None:
    before = weights(made.network)[TABLE]
    often, once, first = torch.arange(1, 1001), torch.arange(1001, 1600), torch.arange(1600, 2000)
    steps = descent(made.network)
    for number in range(steps_taken):
        read = [often] + [once] * (number == steps_taken // 2) + [first] * (number == 0)
        steps.owed(torch.cat(read))
        steps.step([nothing(made.network, torch.cat(read))])
    steps.settle()
    moved = weights(made.network)[TABLE] - before
    assert float(moved[0].abs().max()) == 0.0
    rest = torch.arange(2000, len(moved))
    for rows in (often, once, first, rest):
        check_deviation(moved[rows], DEVIATION * np.sqrt(steps_taken))
    # Lazy and eager noise have one distribution.
    assert stats.ks_2samp(moved[often].ravel(), moved[rest].ravel()).pvalue > CHANCE
    for name, value in weights(made.network).items():
        if name == "user.weight":
            start = dict(
                case(Shape(buckets=3000, dimension=8, vector_size=3)).network.named_parameters()
            )
            check_deviation(value - start[name].detach().double(), DEVIATION * np.sqrt(steps_taken))


def test_a_row_has_all_its_noise_when_it_is_read(made) -> None:
    before = weights(made.network)[TABLE]
    steps = descent(made.network)
    for _ in range(3):
        steps.step([])
    read = torch.arange(1, 2001)
    steps.owed(read)
    moved = weights(made.network)[TABLE] - before
    check_deviation(moved[read], DEVIATION * np.sqrt(3))
    assert float(moved[2001:].abs().max()) == 0.0
    steps.owed(read)  # not owed twice
    assert torch.equal(weights(made.network)[TABLE] - before, moved)


def test_the_last_bits_of_a_weight_do_not_tell_how_often_its_row_was_read(made) -> None:
    """Sums of float32 numbers end in zeros: rows read in each step would stand out by their bits."""
    with torch.no_grad():
        made.network.items.weight.zero_()  # as a coordinator may choose
    steps, read = descent(made.network), torch.arange(1, 1501)
    for _ in range(10):
        steps.owed(read)
        steps.step([nothing(made.network, read)])
    steps.settle()
    bits = made.network.items.weight.detach().numpy().view(np.uint32)
    for low in (1, 3, 7):
        even = (bits[1:] & low) == 0
        tried = stats.binomtest(int(even[:1500].sum()), even[:1500].size, 1 / (low + 1))
        assert tried.pvalue > CHANCE
        other = stats.binomtest(int(even[1500:].sum()), even[1500:].size, 1 / (low + 1))
        assert other.pvalue > CHANCE


def test_large_weights_do_not_swallow_or_double_other_users_gradients(made) -> None:
    """One user lifts a weight over 2^k: the 0.4 u of 199 others count as 0 there, as 0.5 u below."""
    users, pull = 200, 0.1 * CLIP
    grid = 2.0**-23
    rate = 0.4 * grid / pull * EXPECTED
    values = torch.zeros(users, 8)
    values[:, 0] = pull
    values[0, 0] = -CLIP

    def moved(start: int) -> float:
        with torch.no_grad():
            made.network.items.weight[5] = 1.0 - grid / 2
        steps = descent(made.network, multiplier=0.0, learning_rate=rate)
        rows = torch.full((users - start,), 5)
        steps.owed(rows)
        steps.step([nothing(made.network, rows, values[start:])])
        steps.settle()
        return float(made.network.items.weight.detach()[5, 0])

    one_user = rate / EXPECTED * CLIP
    assert abs(moved(0) - moved(1)) <= one_user + grid


def test_the_padding_row_stays_zero_and_nothing_is_owed_after_settling(made) -> None:
    steps = descent(made.network)
    for _ in range(3):
        steps.owed(torch.tensor([[0, 5], [0, 0]]))
        steps.step([nothing(made.network, torch.tensor([5]))])
    assert steps._owed.any()
    steps.settle()
    assert not steps._owed.any()
    after = weights(made.network)
    assert float(after[TABLE][0].abs().max()) == 0.0
    steps.settle()
    assert torch.equal(weights(made.network)[TABLE], after[TABLE])


def test_a_sum_that_the_noise_does_not_cover_is_refused_before_anything_changes(made) -> None:
    before = weights(made.network)
    steps = descent(made.network)
    for bad in (made.clipped(2 * CLIP), made.clipped(CLIP, table=False)):
        with pytest.raises(ValueError, match=r"noise covers|without the table"):
            steps.step([made.clipped(CLIP), bad])
    steps.settle()
    assert all(torch.equal(v, before[n]) for n, v in weights(made.network).items())


def test_a_table_that_is_not_trained_stays_as_it_is(made) -> None:
    before = weights(made.network)
    steps = descent(made.network, table=False)
    for part in (made.clipped(CLIP, table=False), made.clipped(CLIP)):
        steps.owed(torch.arange(10))
        steps.step([part])
    steps.settle()
    after = weights(made.network)
    assert torch.equal(after[TABLE], before[TABLE])
    assert not torch.equal(after["user.weight"], before["user.weight"])


def test_no_two_runs_have_the_same_noise(made) -> None:
    found = []
    for _ in range(2):
        fresh = case(Shape(buckets=3000, dimension=8, vector_size=3))
        steps = descent(fresh.network)
        for _ in range(2):
            steps.step([fresh.clipped(CLIP)])
        steps.settle()
        found.append(weights(fresh.network))
    for name, one in found[0].items():
        same = (one == found[1][name])[1:] if name == TABLE else one == found[1][name]
        assert float(same.double().mean()) < 0.01 or same.numel() < 100


def test_the_step_does_not_read_how_many_users_there_were(made) -> None:
    """The divisor is a constant: two parts move the weights twice as far as one."""
    part = made.clipped(CLIP)
    moved = []
    for parts in ([part], [part, part]):
        fresh = case(Shape(buckets=3000, dimension=8, vector_size=3))
        before = weights(fresh.network)
        steps = descent(fresh.network, multiplier=0.0)
        steps.step(parts)
        steps.settle()
        moved.append(weights(fresh.network)["user.weight"] - before["user.weight"])
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-4, atol=2e-7)
