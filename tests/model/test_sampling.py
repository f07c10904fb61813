"""Training blocks: targets lie in the window and are new; nothing of the future leaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import Row, histories, items

from crossrec_model.config import TrainingConfig
from crossrec_model.data.sampling import INFERENCE_FACTOR, POOL_GAIN, BlockSampler, UserBlock
from crossrec_model.data.users import HistoryIndex

ITEMS = 40
CONFIG = TrainingConfig(history=6, positives=3, negatives=4, window_days=20.0, recency_days=30.0)
POPULARITY = np.log(np.full(ITEMS, 1 / ITEMS))
END = 200.0


def _rows(seed: int = 0, users: int = 12, event: str = "purchase") -> list[Row]:
    random = np.random.default_rng(seed)
    return [
        Row(f"u{user:02d}", f"i{random.integers(ITEMS)}", float(day), event=event)
        for user in range(users)
        for day in np.sort(random.uniform(0, END, 30))
    ]


def _sampler(rows: list[Row], end: float = END, config: TrainingConfig = CONFIG) -> BlockSampler:
    return BlockSampler(HistoryIndex(histories(rows, items(ITEMS))), config, items=ITEMS, end=end)


def _moments(users: int, seed: int) -> np.ndarray:
    """The moments that the sampler draws from the same generator first."""
    back = np.random.default_rng(seed).exponential(CONFIG.recency_days, users)
    return END - CONFIG.window_days - back


def _same(one: UserBlock, two: UserBlock) -> None:
    for name, tensor in vars(one).items():
        assert torch.equal(tensor, getattr(two, name)), name


def test_targets_are_new_purchases_within_the_window() -> None:
    rows = _rows()
    sampler = _sampler(rows)
    users, drawn = np.arange(12), 0
    for seed in range(20):
        days = _moments(12, seed)
        # The earliest moments are moved up; only the others are told by the exponential alone.
        exact = days > 0.2 * END
        block = sampler.draw(users, POPULARITY, np.random.default_rng(seed))
        for user in np.flatnonzero(exact).tolist():
            mine = [r for r in rows if r.user == f"u{user:02d}"]
            before = {r.item for r in mine if r.day < days[user]}
            window = {r.item for r in mine if days[user] <= r.day < days[user] + CONFIG.window_days}
            mask = block.mask[user] > 0
            targets = {f"i{i}" for i in block.positives[user][mask].tolist()}
            assert targets <= window - before
            assert len(targets) == min(len(window - before), CONFIG.positives)
            read = {
                f"i{i}"
                for i, w in zip(
                    block.history[user].tolist(), block.weights[user, :, 0].tolist(), strict=True
                )
                if w > 0
            }
            assert read <= before
            assert len(read) == min(len(before), CONFIG.history)
            drawn += len(targets)
    assert drawn > 100


def test_those_who_speak_are_those_with_a_positive() -> None:
    sampler, users = _sampler(_rows()), np.random.default_rng(5).permutation(12)
    for seed in range(10):
        places, block = sampler.draw_speaking(users, POPULARITY, np.random.default_rng(seed))
        whole = sampler.draw(users, POPULARITY, np.random.default_rng(seed))
        speaking = np.flatnonzero(whole.mask.sum(1).numpy() > 0)
        np.testing.assert_array_equal(places, speaking)
        for name in ("numbers", "context"):
            assert torch.equal(getattr(block, name), getattr(whole, name)[speaking]), name
        # Where nothing is left out by chance, targets are the same too.
        for row, place in enumerate(speaking.tolist()):
            if whole.mask[place].sum() < CONFIG.positives:
                mine = set(block.positives[row][block.mask[row] > 0].tolist())
                assert mine == set(whole.positives[place][whole.mask[place] > 0].tolist())


def test_of_nobody_nobody_speaks() -> None:
    nobody = np.zeros(0, dtype=np.int64)
    places, block = _sampler(_rows()).draw_speaking(nobody, POPULARITY, np.random.default_rng(0))
    assert len(places) == len(block.mask) == 0


def test_a_block_does_not_know_what_happens_after_the_end() -> None:
    rows = _rows()
    late = [r for r in rows if r.day >= 150]
    assert late
    changed = [r if r.day < 150 else replace(r, item="i0", price=99.0) for r in rows]
    users = np.arange(12)
    _same(
        _sampler(rows, end=150.0).draw(users, POPULARITY, np.random.default_rng(1)),
        _sampler(changed, end=150.0).draw(users, POPULARITY, np.random.default_rng(1)),
    )
    _same(
        _sampler(rows).at(users, 150.0, POPULARITY), _sampler(changed).at(users, 150.0, POPULARITY)
    )


def test_inputs_do_not_know_the_window_that_is_foreseen() -> None:
    rows = _rows()
    days = _moments(12, 3)
    users = np.flatnonzero(days > 0.2 * END)
    block = _sampler(rows).draw(np.arange(12), POPULARITY, np.random.default_rng(3))

    def moved(row: Row) -> Row:
        future = row.day >= days[int(row.user[1:])]
        return replace(row, item=f"i{(int(row.item[1:]) + 1) % ITEMS}") if future else row

    other = _sampler([moved(r) for r in rows]).draw(
        np.arange(12), POPULARITY, np.random.default_rng(3)
    )
    assert not torch.equal(block.positives, other.positives)
    np.testing.assert_array_equal(block.numbers[users], other.numbers[users])
    np.testing.assert_array_equal(block.context[users], other.context[users])

    def past(of: UserBlock, user: int) -> set[int]:
        return set(of.history[user][of.weights[user, :, 0] > 0].tolist())

    full = [user for user in users.tolist() if len(past(block, user)) < CONFIG.history]
    for user in full:
        assert past(block, user) == past(other, user)


def test_pools_weigh_the_same_whatever_the_length_of_the_history() -> None:
    rows = [Row("a", "i0", 10.0), *(Row("b", f"i{i}", 10.0 + i) for i in range(20))]
    block = _sampler(rows).at(np.array([0, 1]), 100.0, POPULARITY)
    np.testing.assert_allclose(block.weights.sum(1).numpy(), POOL_GAIN, rtol=1e-5)
    # Recency falls by e in 30 days (plus the floor); each item here was taken once.
    b = block.weights[1]
    order = block.history[1].argsort()
    assert torch.allclose(b[:, 0], b[0, 0].expand(len(b)))
    recent = b[order, 1]
    assert (recent[1:] > recent[:-1]).all()
    ratio = (np.exp(-(100 - 29) / 30) + 1e-3) / (np.exp(-(100 - 28) / 30) + 1e-3)
    assert float(recent[19] / recent[18]) == pytest.approx(ratio, rel=1e-4)


def test_serving_reads_the_most_recent_items_first() -> None:
    count = INFERENCE_FACTOR * CONFIG.history
    rows = [Row("a", f"i{i}", 1.0 + i) for i in range(count + 5)]
    block = _sampler(rows).at(np.array([0]), 100.0, POPULARITY)
    assert set(block.history[0].tolist()) == set(range(5, count + 5))
    assert block.positives.shape == (1, 0)


def test_an_empty_history_gives_an_empty_pool() -> None:
    rows = [Row("a", "i0", 50.0), Row("b", "i1", 10.0)]
    block = _sampler(rows).at(np.array([0, 1]), 20.0, POPULARITY)
    assert float(block.weights[0].abs().sum()) == 0.0
    assert torch.isfinite(block.numbers).all()
    assert float(block.weights[1].sum()) == pytest.approx(2 * POOL_GAIN)


def test_platforms_without_purchases_foresee_what_they_record() -> None:
    users, generator = np.arange(12), np.random.default_rng
    views = _sampler(_rows(event="view")).draw(users, POPULARITY, generator(0))
    assert float(views.mask.sum()) > 0
    mixed = _rows(event="view")
    mixed.append(Row("u00", "i1", 0.5))
    bought = _sampler(mixed).draw(users, POPULARITY, generator(0))
    assert float(bought.mask.sum()) == 0.0


def test_moments_stay_within_a_short_period() -> None:
    rows = [Row("a", f"i{i}", 100.0 + i / 10) for i in range(10)]
    for seed in range(20):
        block = _sampler(rows, end=101.0).draw(
            np.array([0]), POPULARITY, np.random.default_rng(seed)
        )
        assert torch.isfinite(block.numbers).all()
