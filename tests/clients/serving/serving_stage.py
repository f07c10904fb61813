"""Makes a trained platform of random rows without a federation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from platform_rows import DESCRIPTION, ITEMS, write_platform

from clients.adapters import open_source
from clients.dataset import load_dataset
from clients.membership import Received
from clients.noisy_training import pair_sum
from clients.participation import _as_personal
from clients.personal import Gain, Mixtures, Trial, Weighing
from clients.private import train_private
from clients.scoring import SharedModel
from clients.state import Kept, PlatformFolder, Trained
from crossrec_model.config import FederationConfig, ModelConfig, Plan, TrainingConfig
from crossrec_model.data.prepared import prepare
from crossrec_model.parameters import Layout, initial_network
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import measure

PLAN = Plan(
    model=ModelConfig(
        buckets=128, dimension=4, neighbours=2, sketch_width=64, tower=(8, 4, 1), pair_items=20
    ),
    training=TrainingConfig(users_per_step=20, history=8, positives=4, negatives=16),
    federation=FederationConfig(rounds=6, min_platforms=2),
    seed=5,
)
PASSED = Trial(users=9, fit=Gain(mean=1.0, error=0.1), ndcg=Gain(mean=0.1, error=0.01), least=2.0)
#: Items beyond those of `platform_rows` that nobody took, in two shops and at other prices.
RARE = 6
_DESCRIPTION = DESCRIPTION + 'shop_id = "shop"\nprice = "price"\n'


def write_shop(folder: Path, seed: int = 0) -> Path:
    """Random rows with shops, prices, and items that hardly anybody took."""
    write_platform(folder, seed)
    lines = ["item,title,category,shop,price"]
    lines += [
        f"i{i},Title {i} 红茶,kind{i % 3},shop{i % 2},{1 + i % 7}.5" for i in range(ITEMS + RARE)
    ]
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "crossrec.toml").write_text(_DESCRIPTION, encoding="utf-8")
    return folder


def make_trained(state: Path, platform: str, *, seed: int = 3, run: bytes = b"run") -> None:
    """Prepare a platform's rows and fit its mixture; an earlier model of it is replaced."""
    folder, device = PlatformFolder(state / platform), torch.device("cpu")
    rows = state / f"rows-{platform}"
    if not rows.exists():
        write_shop(rows)
    with folder.held():
        prepared = prepare(
            open_source(str(rows), platform), into=folder.data, now=datetime.now(UTC)
        )
        dataset = load_dataset(prepared, PLAN.model, device=device)
        stream = ExperimentRandomness(seed, "serving")
        network = initial_network(PLAN.model, stream)
        day = dataset.split.validation
        statistics = measure(dataset.index, dataset.items, day, PLAN.model.sketch_width)
        pairs = pair_sum(dataset, PLAN, statistics, day).values.astype(np.float32)
        statistics = replace(statistics, pairs=pairs)
        shared = SharedModel(plan=PLAN, network=network, statistics=statistics)
        private = train_private(dataset, PLAN, stream, epochs=2)
        mixtures = Weighing(dataset, PLAN.training, private).against(shared)
        served = Mixtures(local=mixtures.local, federated=mixtures.federated, trial=PASSED)
        received = Received(
            plan=PLAN,
            run=run,
            round=PLAN.federation.rounds,
            vector=Layout(PLAN.model).pack(network, statistics),
            validation=statistics,
            finished=True,
        )
        kept = Kept(platform=platform, split=dataset.split, received=received)
        folder.save_received(kept)
        folder.save_trained(Trained(kept=kept, personal=_as_personal(private, served)))
