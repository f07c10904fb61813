"""Checkpoints come back bit by bit, and damage is never taken for a state."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import FederationError
from server.checkpoint import Checkpoint, CheckpointStore, RoundRecord, state_folder
from server.optimizer import initial_state, step

PLAN = Plan(federation=FederationConfig(optimizer="fedadam", rounds=9), seed=4)


def _checkpoint(number: int) -> Checkpoint:
    start = np.random.default_rng(number).normal(size=5).astype(np.float32)
    parameters, state = step(PLAN.federation, initial_state(PLAN.federation, 5), start, np.ones(5))
    record = RoundRecord(
        round=number,
        platforms=("A", "B"),
        seconds=1.5,
        training={"loss": 0.25},
        evaluation={"ndcg@10": 0.1},
    )
    return Checkpoint(
        run=bytes(range(16)),
        plan=PLAN,
        round=number,
        parameters=parameters,
        optimizer=state,
        history=(record,),
    )


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    saved = _checkpoint(3)
    CheckpointStore(tmp_path).save(saved)
    loaded = CheckpointStore(tmp_path).latest()
    assert loaded is not None
    assert loaded.parameters.tobytes() == saved.parameters.tobytes()
    assert type(loaded.optimizer) is type(saved.optimizer)
    for f in dataclasses.fields(saved.optimizer):
        ours, theirs = getattr(saved.optimizer, f.name), getattr(loaded.optimizer, f.name)
        assert ours.tobytes() == theirs.tobytes()
    same = ("run", "plan", "round", "history")
    assert [getattr(loaded, name) for name in same] == [getattr(saved, name) for name in same]


def test_the_last_three_are_kept_and_nothing_half_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    for number in range(12):
        store.save(_checkpoint(number))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    kept = [f"round-{n:06d}.{kind}" for n in (9, 10, 11) for kind in ("json", "safetensors")]
    assert names == kept
    last = store.latest()
    assert last is not None
    assert last.round == 11


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "json"])
def test_damage_is_named_with_its_remedy(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(_checkpoint(1))
    document = store.save(_checkpoint(2))
    tensors = document.with_suffix(".safetensors")
    raw = tensors.read_bytes()
    if damage == "flip":
        tensors.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "truncate":
        tensors.write_bytes(raw[:-1])
    elif damage == "remove":
        tensors.unlink()
    else:
        document.write_text("{", encoding="utf-8")
    with pytest.raises(
        FederationError, match=r"is damaged .*remove it to resume from the one before"
    ):
        store.latest()
    document.unlink()
    last = store.latest()
    assert last is not None
    assert last.round == 1


def test_tensors_without_a_document_are_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(_checkpoint(1))
    store.save(_checkpoint(2)).unlink()
    last = store.latest()
    assert last is not None
    assert last.round == 1


def test_a_full_or_read_only_disk_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way", encoding="utf-8")
    with pytest.raises(FederationError, match=r"can't write a checkpoint to .*free the disk"):
        CheckpointStore(tmp_path).save(_checkpoint(1))


def test_a_state_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with state_folder(tmp_path / "state") as held:
        with pytest.raises(FederationError, match="in use by another coordinator"):
            with state_folder(held):
                pass
    with state_folder(held):
        pass
    occupied = tmp_path / "file"
    occupied.write_text("", encoding="utf-8")
    with pytest.raises(FederationError, match=r"can't be used: .*give another --state"):
        with state_folder(occupied):
            pass
    for private in (held, held / "lock"):
        assert os.stat(private).st_mode & 0o077 == 0
