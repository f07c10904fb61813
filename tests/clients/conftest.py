"""Three tiny platforms of random rows that share their items, prepared once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from platform_rows import write_platform

from clients.adapters import open_source
from clients.dataset import Dataset, load_dataset
from crossrec_model.config import FederationConfig, ModelConfig, Plan, TrainingConfig
from crossrec_model.data.prepared import PreparedData, prepare


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors only lose by threads, and sums keep one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plan() -> Plan:
    return Plan(
        model=ModelConfig(buckets=128, dimension=4, neighbours=2, sketch_width=64, tower=(8, 4, 1)),
        training=TrainingConfig(users_per_step=20, history=8, positives=4, negatives=16),
        federation=FederationConfig(rounds=4, min_platforms=2),
        seed=5,
    )


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("rows")
    return {name: write_platform(home / name, seed) for seed, name in enumerate("ABC")}


@pytest.fixture(scope="session")
def prepared(
    rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, PreparedData]:
    home = tmp_path_factory.mktemp("prepared")
    return {
        name: prepare(open_source(str(path), name), into=home / name, now=datetime.now(UTC))
        for name, path in rows.items()
    }


@pytest.fixture(scope="session")
def datasets(prepared: dict[str, PreparedData], plan: Plan) -> dict[str, Dataset]:
    return {
        name: load_dataset(data, plan.model, device=torch.device("cpu"))
        for name, data in prepared.items()
    }
