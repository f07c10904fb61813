"""Two tiny platforms of random rows that share their items, prepared once for all tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.adapters import open_source
from clients.dataset import Dataset, load_dataset
from crossrec_model.config import FederationConfig, ModelConfig, Plan, TrainingConfig
from crossrec_model.data.prepared import PreparedData, prepare

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = 30
DESCRIPTION = """
[interactions]
files = "events.csv"
[interactions.columns]
user_id = "user"
item_id = "item"
event = "event"
time = "time"
quantity = "quantity"
price = "price"

[catalogue]
files = "items.csv"
[catalogue.columns]
item_id = "item"
shared_id = "item"
title = "title"
category = "category"
"""


def write_platform(folder: Path, seed: int, *, users: int = 60, days: int = 200) -> Path:
    """Write the rows of a platform; each user likes one of three kinds of items."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = ["user,item,event,time,quantity,price"]
    for user in range(users):
        for _ in range(12):
            liked = random.random() < 0.8
            item = 3 * random.integers(ITEMS // 3) + user % 3 if liked else random.integers(ITEMS)
            moment = START + timedelta(days=float(random.uniform(0, days)))
            time = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
            rows.append(f"u{user},i{item},purchase,{time},1,{random.integers(1, 9)}.5")
    (folder / "events.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = ["item,title,category"]
    lines += [f"i{i},Title {i} 红茶,kind{i % 3}" for i in range(ITEMS)]
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "crossrec.toml").write_text(DESCRIPTION, encoding="utf-8")
    return folder


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
    return {name: write_platform(home / name, seed) for seed, name in enumerate("AB")}


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
