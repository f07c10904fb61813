"""The network: the source article's worked example by hand, and its two ways to a logit."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
import torch

from crossrec_model.config import ModelConfig
from crossrec_model.data.users import USER_NUMBERS
from crossrec_model.encoding import ItemTensors, encode_items
from crossrec_model.network import Network

EXACT = {"rtol": 0, "atol": 5e-5}


def _logistic(x: float) -> float:
    return 1 / (1 + exp(-x))


@pytest.fixture
def article() -> Network:
    """Identity weights, zero biases, W_o of ones over [h, e_u, e_i]; no tower, no product."""
    config = ModelConfig(
        buckets=16,
        dimension=4,
        neighbours=1,
        relations=("bought_together",),
        activation="sigmoid",
        sketch_width=16,
        tower=(8, 2, 1),
    )
    network = Network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.items.weight[1:5] = torch.eye(4)
        for layer in network.layers():
            layer.weight[0] = torch.eye(4)
        network.user.weight[:, :4] = torch.eye(4)
        network.output.weight[0, :12] = 1.0
    return network


def test_the_articles_example_step_by_step(article: Network) -> None:
    # Users [1,0,0,0] and [0,1,0,0]; items i1 = [0,1,0,0] and i2 = [0,0,1,0]; N(i1) = {i2}.
    items = ItemTensors(
        buckets=torch.tensor([[2], [3]]),
        neighbours=torch.tensor([[[1]], [[-1]]]),
        vectors=torch.zeros(2, 0),
    )
    with torch.no_grad():
        found = encode_items(article, items, torch.tensor([0, 1]))
        pooled = torch.zeros(2, 2, 4)
        pooled[0, 0], pooled[1, 0] = torch.eye(4)[0], torch.eye(4)[1]
        context = torch.zeros(2, 4)
        u = article.embed_users(pooled, context, torch.zeros(2, len(USER_NUMBERS)))
        logits = article.all_logits(found.h, found.e, u)
    # e = σ(x): σ(1) = 0.7311, σ(0) = 0.5
    e_items = [[0.5, 0.7311, 0.5, 0.5], [0.5, 0.5, 0.7311, 0.5]]
    np.testing.assert_allclose(found.e.numpy(), e_items, **EXACT)
    e_users = [[0.7311, 0.5, 0.5, 0.5], [0.5, 0.7311, 0.5, 0.5]]
    np.testing.assert_allclose(u.numpy(), e_users, **EXACT)
    # h_1 = σ(e_2): σ(0.5) = 0.6225, σ(0.7311) = 0.6750; i2 has no neighbour: σ(0) = 0.5
    h = [[0.6225, 0.6225, 0.6750, 0.6225], [0.5, 0.5, 0.5, 0.5]]
    np.testing.assert_allclose(found.h.numpy(), h, **EXACT)
    # W_o·[h, e_u, e_i]: 2.5424 + 2.2311 + 2.2311 = 7.0045 and 2.0 + 2.2311 + 2.2311 = 6.4621
    np.testing.assert_allclose(logits.numpy(), [[7.0045, 6.4621]] * 2, rtol=0, atol=1e-4)
    rated = torch.sigmoid(logits).numpy()
    np.testing.assert_allclose(rated, [[0.9991, 0.9984]] * 2, **EXACT)
    assert _logistic(7.0045) == pytest.approx(0.9991, abs=5e-5)


def test_the_articles_neighbour_is_summed_over_relations(article: Network) -> None:
    with torch.no_grad():
        layer = article.layers()[0]
        means = torch.tensor([[[0.2, 0.4, 0.6, 0.8]]])
        layer.weight[0] *= 2
        layer.bias += 0.1
        expected = [_logistic(2 * x + 0.1) for x in (0.2, 0.4, 0.6, 0.8)]
        np.testing.assert_allclose(article.activation(layer(means))[0].numpy(), expected, rtol=1e-6)


CONFIGS = [
    ModelConfig(buckets=32, dimension=4, sketch_width=16, tower=(8, 5, 1)),
    ModelConfig(buckets=32, dimension=4, sketch_width=16, tower=(8, 1), activation="relu"),
    ModelConfig(
        buckets=32, dimension=4, sketch_width=16, tower=(8, 6, 3, 1), vector_size=3, graph_layers=2
    ),
]


def _random_network(config: ModelConfig) -> Network:
    network = Network(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        network.items.weight[0] = 0.0
    return network


@pytest.mark.parametrize("config", CONFIGS)
def test_every_pair_has_one_logit_whichever_way_it_is_computed(config: ModelConfig) -> None:
    network = _random_network(config)
    generator = torch.Generator().manual_seed(4)
    h, e = (torch.randn(7, 4, generator=generator) for _ in range(2))
    u = torch.randn(5, 4, generator=generator)
    with torch.no_grad():
        every = network.all_logits(h, e, u)
        pairs = network.pair_logits(h.expand(5, 7, 4), e.expand(5, 7, 4), u)
        fewer = network.all_logits(h[:1], e[:1], u)
        rows = network.logits_of(h[:5], e[:5], u)
    assert every.shape == (5, 7)
    np.testing.assert_allclose(every.numpy(), pairs.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fewer.numpy(), pairs[:, :1].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows.numpy(), pairs.diagonal().numpy(), rtol=1e-4, atol=1e-4)


def test_a_table_of_some_rows_is_written_back() -> None:
    network = _random_network(CONFIGS[0])
    before, whole = network.items.weight.detach().clone(), network.items.weight
    with network.items.only(torch.tensor([0, 3, 5])):
        assert network.items.weight.shape == (3, 4)
        found = network.look_up(torch.tensor([[3, 5, 0]]))
        torch.testing.assert_close(found[0], before[3] + before[5])
        with pytest.raises(RuntimeError):
            network.look_up(torch.tensor([[4]]))
        with torch.no_grad():
            network.items.weight[1] = 7.0
    assert network.items.weight is whole
    assert torch.equal(whole[3], torch.full((4,), 7.0))
    kept = [row for row in range(32) if row != 3]
    assert torch.equal(whole[kept], before[kept])


def test_padding_says_nothing_and_gets_no_gradient() -> None:
    network = _random_network(CONFIGS[0])
    padded = network.embed_items(network.look_up(torch.tensor([[3, 5, 0, 0]])), torch.zeros(1, 0))
    bare = network.embed_items(network.look_up(torch.tensor([[3, 5]])), torch.zeros(1, 0))
    assert torch.equal(padded, bare)
    padded.sum().backward()
    assert network.items.weight.grad is not None
    assert float(network.items.weight.grad[0].abs().sum()) == 0.0
    assert float(network.items.weight.grad[3].abs().sum()) > 0.0


@pytest.mark.parametrize("absent", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("config", CONFIGS)
def test_vectors_of_items_do_not_depend_on_who_else_is_asked(
    config: ModelConfig, absent: tuple[int, ...]
) -> None:
    """Shared neighbours are embedded once; a plain loop over the definition gives the same."""
    network = _random_network(config)
    random = np.random.default_rng(0)
    n, relations = 9, len(config.relations)
    items = ItemTensors(
        buckets=torch.from_numpy(random.integers(0, 32, (n, 3))),
        neighbours=torch.from_numpy(random.integers(-1, n, (n, relations, 2))),
        vectors=torch.from_numpy(random.normal(size=(n, config.vector_size)).astype(np.float32)),
    )
    items.neighbours[:, list(absent)] = -1

    def h(item: int, depth: int) -> torch.Tensor:
        if depth == 0:
            return network.embed_items(
                network.look_up(items.buckets[[item]]), items.vectors[[item]]
            )[0]
        layer, total = network.layers()[depth - 1], 0.0
        for number, relation in enumerate(config.relations):
            around = [item] if relation == "self" else items.neighbours[item, number].tolist()
            some = [h(k, depth - 1) for k in around if k >= 0]
            if some:
                total = total + layer.weight[number] @ torch.stack(some).mean(0)
        return network.activation(total + layer.bias)

    with torch.no_grad():
        everything = encode_items(network, items, torch.arange(n))
        some = encode_items(network, items, torch.tensor([4, 2]))
        for item in range(n):
            expected = h(item, config.graph_layers)
            torch.testing.assert_close(everything.h[item], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some.h, everything.h[[4, 2]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some.e, everything.e[[4, 2]])


def test_weights_are_drawn_from_the_generator_alone() -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        network = Network(CONFIGS[2])
        network.reset(torch.Generator().manual_seed(seed))
        return [p.detach() for p in network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert not torch.equal(drawn(1)[0], drawn(2)[0])
    assert float(drawn(1)[0][0].abs().sum()) == 0.0
