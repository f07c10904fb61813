"""The platform's folder: what goes in comes out, damage is told, nobody else reads it."""

from __future__ import annotations

import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients import tensorfile
from clients.personal import Gain, Mixtures, Trial
from clients.round import Received
from clients.scoring import OWN, SHARED
from clients.state import MODEL, RECEIVED, Kept, Personal, PlatformFolder, StateError, Trained
from crossrec_model import durable
from crossrec_model.config import Plan
from crossrec_model.data.splits import TimeSplit
from crossrec_model.parameters import Layout
from crossrec_model.ranking import Mixture
from crossrec_model.statistics import Statistics


def _statistics(seed: int) -> Statistics:
    random = np.random.default_rng(seed)
    sketch, mean, square = (random.random(n).astype(np.float32) for n in (128, 14, 14))
    return Statistics(sketch=sketch, mean=mean, square=square)


def _kept(plan: Plan, *, validation: bool = True) -> Kept:
    vector = np.random.default_rng(0).normal(size=Layout(plan.model).size).astype(np.float32)
    received = Received(
        plan=plan,
        run=bytes(range(16)),
        round=3,
        vector=vector,
        validation=_statistics(1) if validation else None,
        finished=True,
    )
    return Kept(platform="A", split=TimeSplit(validation=1.5, test=2.5, end=3.5), received=received)


def _trained(plan: Plan) -> Trained:
    def mixture(names: tuple[str, ...]) -> Mixture:
        return Mixture(names=names, weights=tuple(0.1 * i for i in range(2 * len(names) + 3)))

    personal = Personal(
        tensors={"items": np.ones((3, 2), dtype=np.float32), "user.bias": np.zeros(2, np.float32)},
        statistics=_statistics(2),
        mixtures=Mixtures(
            local=mixture(OWN),
            federated=mixture((*OWN, *SHARED)),
            trial=Trial(
                users=40,
                fit=Gain(mean=0.2, error=0.01),
                ndcg=Gain(mean=0.1, error=0.02),
                least=2.0,
            ),
        ),
    )
    return Trained(kept=_kept(plan), personal=personal)


@pytest.fixture
def folder(tmp_path: Path) -> PlatformFolder:
    folder = PlatformFolder(tmp_path / "state" / "A")
    with folder.held():
        pass
    return folder


def _same_statistics(one: Statistics | None, two: Statistics | None) -> None:
    assert one is not None
    assert two is not None
    for name in ("sketch", "mean", "square"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("validation", [True, False])
def test_what_was_received_comes_back(folder, plan, validation) -> None:
    assert folder.load_received() is None
    kept = _kept(plan, validation=validation)
    folder.save_received(kept)
    back = folder.load_received()
    assert (back.platform, back.split) == ("A", kept.split)
    received, expected = back.received, kept.received
    assert (received.plan, received.run) == (plan, expected.run)
    assert (received.round, received.finished) == (3, True)
    np.testing.assert_array_equal(received.vector, expected.vector)
    if validation:
        _same_statistics(received.validation, expected.validation)
    else:
        assert received.validation is None


def test_a_trained_model_comes_back(folder, plan) -> None:
    assert folder.load_trained() is None
    trained = _trained(plan)
    folder.save_trained(trained)
    back = folder.load_trained()
    np.testing.assert_array_equal(back.received.vector, trained.received.vector)
    assert back.personal.mixtures == trained.personal.mixtures
    _same_statistics(back.personal.statistics, trained.personal.statistics)
    assert set(back.personal.tensors) == {"items", "user.bias"}
    np.testing.assert_array_equal(back.personal.tensors["items"], np.ones((3, 2)))


def test_only_the_owner_can_read(folder, plan) -> None:
    folder.save_received(_kept(plan))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for name in (RECEIVED, "lock"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600


def test_every_flipped_byte_is_noticed(folder, plan) -> None:
    folder.save_trained(_trained(plan))
    path = folder.path / MODEL
    whole = path.read_bytes()
    places = np.random.default_rng(1).integers(0, len(whole), 150).tolist()
    for place in [0, 7, 8, 20, 300, len(whole) - 1, *places]:
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 0x01,)) + whole[place + 1 :])
        with pytest.raises(StateError, match=r"is damaged .*take part again"):
            folder.load_trained()
    path.write_bytes(whole)
    assert folder.load_trained() is not None


def test_every_truncation_is_noticed(folder, plan) -> None:
    folder.save_received(_kept(plan))
    path = folder.path / RECEIVED
    whole = path.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError, match="is damaged"):
            folder.load_received()
    path.write_bytes(whole + b"\0")
    with pytest.raises(StateError, match="is damaged"):
        folder.load_received()


def test_a_file_of_another_kind_format_or_plan_is_refused(folder, plan) -> None:
    folder.save_received(_kept(plan))
    document, tensors = tensorfile.read(folder.path / RECEIVED)
    changes = {
        "format 1, not 3": ({**document, "format": 1}, tensors),
        "unexpected tensor 'more'": (document, {**tensors, "more": np.zeros(1, np.float32)}),
        "not of the plan's length": (document, {**tensors, "shared.vector": np.zeros(3)}),
        "not finite": (
            {**document, "split": {**document["split"], "end": 1e999}},
            tensors,
        ),
        "model.buckets = 3": (
            {**document, "plan": {**document["plan"], "model": {"buckets": 3}}},
            tensors,
        ),
        "'run'": ({k: v for k, v in document.items() if k != "run"}, tensors),
    }
    for reason, (text, parts) in changes.items():
        if reason == "not finite":
            with pytest.raises(ValueError, match="not JSON compliant"):
                tensorfile.write(folder.path / RECEIVED, text, parts)
            continue
        tensorfile.write(folder.path / RECEIVED, text, parts)
        with pytest.raises(StateError, match=reason):
            folder.load_received()
    # A model without its private part is not a model.
    folder.save_received(_kept(plan))
    (folder.path / RECEIVED).rename(folder.path / MODEL)
    with pytest.raises(StateError, match="is damaged"):
        folder.load_trained()


def test_a_failed_write_leaves_the_earlier_file(folder, plan, monkeypatch) -> None:
    folder.save_received(_kept(plan))
    before = (folder.path / RECEIVED).read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    later = replace(_kept(plan), received=replace(_kept(plan).received, round=4))
    with pytest.raises(StateError, match="No space left on device; make room"):
        folder.save_received(later)
    assert (folder.path / RECEIVED).read_bytes() == before
    assert not list(folder.path.glob("*.part"))
    monkeypatch.undo()
    folder.save_received(later)
    assert folder.load_received().received.round == 4


def test_two_processes_on_one_folder_are_refused(folder) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from clients.state import PlatformFolder\n"
        "with PlatformFolder(Path(sys.argv[1])).held(): print('held')\n"
    )
    with folder.held():
        with pytest.raises(StateError, match="in use by another process of this platform"):
            folder.held().__enter__()
        other = subprocess.run(
            [sys.executable, "-c", code, str(folder.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert other.returncode == 1
        assert "is in use by another process of this platform" in other.stderr
    with folder.held():
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match=r"can't be used: .*give another --state"):
        PlatformFolder(tmp_path / "file" / "A").held().__enter__()
