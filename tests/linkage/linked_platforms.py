"""A platform's folder with a finished run and users linked with a partner, for tests of profiles."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from platform_rows import write_platform

from clients.adapters import open_source
from clients.dataset import load_dataset
from clients.linking.folder import LinkageFolder
from clients.membership import Received
from clients.personal import Gain, Mixtures, Trial
from clients.state import Kept, Personal, PlatformFolder, Trained
from crossrec_model.config import FederationConfig, ModelConfig, Plan, TrainingConfig
from crossrec_model.data.prepared import prepare
from crossrec_model.linkage.links import Links
from crossrec_model.linkage.messages import Purpose
from crossrec_model.pairs import places, summed_pairs
from crossrec_model.parameters import Layout, initial_vector
from crossrec_model.ranking import Mixture

PAIRS, SKETCH = 16, 64
LINKED = 20


def plan_with(pairs: int) -> Plan:
    return Plan(
        model=ModelConfig(
            buckets=128,
            dimension=4,
            neighbours=2,
            tower=(8, 4, 1),
            sketch_width=SKETCH,
            pair_items=pairs,
        ),
        training=TrainingConfig(users_per_step=20, history=8, positives=4, negatives=16),
        federation=FederationConfig(rounds=4, min_platforms=2),
        seed=5,
    )


def link_id(number: int) -> str:
    return f"{number:032x}"


def linked_platform(home: Path, name: str, seed: int, partner: str, pairs: int = PAIRS) -> None:
    """A platform with a finished run, and users linked with its partner."""
    plan, folder = plan_with(pairs), PlatformFolder(home / name)
    rows = write_platform(home / "rows" / name, seed)
    prepared = prepare(open_source(str(rows), name), into=folder.data, now=datetime.now(UTC))
    dataset = load_dataset(prepared, plan.model, device=torch.device("cpu"))
    layout, vector = Layout(plan.model), initial_vector(plan)
    if pairs:
        # Of all platforms alike: popular are the cells of the first items.
        cells = np.unique(dataset.items.sketch[:, 0])[:pairs]
        sketch = np.zeros(SKETCH, dtype=np.float32)
        sketch[cells] = np.linspace(2, 1, len(cells)) / len(cells)
        vector[layout.measured][:SKETCH] = sketch
        place = places(dataset.items, cells, SKETCH)
        summed = summed_pairs(dataset.histories, place, 1e9, pairs, 256.0)
        vector[layout.pairs] = summed / np.abs(summed).max()
    received = Received(
        plan=plan, run=b"r" * 16, round=4, vector=vector, validation=None, finished=True
    )
    local = Mixture(names=("own popularity",), weights=(1.0, 1.0, 0.0, 0.0, 0.0))
    none = Gain(mean=0.0, error=0.0)
    mixtures = Mixtures(
        local=local, federated=local, trial=Trial(users=0, fit=none, ndcg=none, least=2.0)
    )
    folder.save_trained(
        Trained(
            kept=Kept(platform=name, split=dataset.split, received=received),
            personal=Personal(tensors={}, statistics=None, mixtures=mixtures),
        )
    )
    pairs_of = {f"u{k}": link_id(k) for k in range(LINKED)} | {"elsewhere": link_id(99)}
    linkage = LinkageFolder(folder.path)
    with linkage.held():
        linkage.write_links(
            Links(partner=partner, purpose=Purpose.USERS, session=b"s" * 16, pairs=pairs_of)
        )
