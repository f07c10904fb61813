"""Encoding items and users together is encoding them apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import MODEL, Row, catalogue, histories

from crossrec_model.config import TrainingConfig
from crossrec_model.data.items import ItemTable, item_table
from crossrec_model.data.sampling import BlockSampler, UserBlock
from crossrec_model.data.users import USER_NUMBERS, HistoryIndex
from crossrec_model.encoding import ItemTensors, encode, encode_items, encode_users
from crossrec_model.network import Network
from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness


@pytest.fixture(scope="module")
def table() -> ItemTable:
    rows = [
        {"item_id": f"i{n}", "shared_id": f"g{n}", "category": [f"c{n % 3}"], "brand": f"b{n % 4}"}
        for n in range(20)
    ]
    return item_table(catalogue(rows), MODEL)


@pytest.fixture(scope="module")
def block(table: ItemTable) -> UserBlock:
    random = np.random.default_rng(0)
    rows = [
        Row(
            f"u{user}",
            f"i{random.integers(20)}",
            float(day),
            more={"context_device": f"d{day % 3}"},
        )
        for user in range(5)
        for day in range(9)
    ]
    index = HistoryIndex(histories(rows, table))
    sampler = BlockSampler(index, TrainingConfig(history=4), items=20, end=50.0)
    return sampler.at(np.arange(5), 50.0, np.zeros(20))


@pytest.fixture(scope="module")
def network() -> Network:
    network = initial_network(MODEL, ExperimentRandomness(1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(2)
            )
        network.items.weight[0] = 0.0
    return network


NUMBERS = torch.randn(5, len(USER_NUMBERS), generator=torch.Generator().manual_seed(5))


def test_together_or_apart(table, block, network) -> None:
    tensors = ItemTensors.of(table, torch.device("cpu"))
    rows = torch.tensor([3, 7, 3, 0, 19])
    with torch.no_grad():
        items, users = encode(network, tensors, rows, block, NUMBERS)
        alone = encode_items(network, tensors, rows)
        torch.testing.assert_close(items.e, alone.e)
        torch.testing.assert_close(items.h, alone.h)
        torch.testing.assert_close(users, encode_users(network, tensors, block, NUMBERS))
    assert torch.equal(items.h[0], items.h[2])


def test_a_user_is_her_pools_her_context_and_her_numbers(table, block, network) -> None:
    """σ(W_u·[two pools of e over her items, context rows, numbers] + b_u), one user at a time."""
    tensors = ItemTensors.of(table, torch.device("cpu"))
    with torch.no_grad():
        users = encode_users(network, tensors, block, NUMBERS)
        e = encode_items(network, tensors, torch.arange(20)).e
        for row in range(5):
            pools = torch.zeros(2, MODEL.dimension)
            for place, item in enumerate(block.history[row].tolist()):
                for pool in range(2):
                    pools[pool] += block.weights[row, place, pool] * e[item]
            where = network.items.weight[block.context[row]].sum(0)
            x = torch.cat([pools.flatten(), where, NUMBERS[row]])
            expected = torch.tanh(network.user.weight @ x + network.user.bias)
            torch.testing.assert_close(users[row], expected, rtol=1e-4, atol=1e-5)


def test_more_context_than_content_and_no_items(table, block, network) -> None:
    """Items of one token beside users with three context codes, and no row asked for."""
    bare = item_table(catalogue([{"item_id": f"i{n}", "brand": f"b{n}"} for n in range(20)]), MODEL)
    tensors = ItemTensors.of(bare, torch.device("cpu"))
    assert tensors.buckets.shape[1] < block.context.shape[1]
    with torch.no_grad():
        items, users = encode(network, tensors, torch.tensor([4]), block, NUMBERS)
        torch.testing.assert_close(items.h, encode_items(network, tensors, torch.tensor([4])).h)
    assert users.shape == (5, MODEL.dimension)
    assert torch.isfinite(users).all()
