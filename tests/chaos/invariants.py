"""What must hold at the end of a run, whatever was done to it."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import truth
from federation_stage import FederationStage

from clients.state import PlatformFolder
from crossrec_model.privacy.ledger import LEDGER, read_history
from crossrec_model.privacy.pricing import epsilon
from server.checkpoint import Checkpoint
from server.optimizer import FedAvgM

#: A line of a private platform that drew noise for a round, and what it says when it did not.
FRESH = re.compile(r"^round (\d+)/\d+: (?:measured noised statistics|trained on noised|clipped)")
DELTA = 1e-5


def check(stage: FederationStage) -> None:
    """Everything below that goes for the kind of platforms."""
    check_ends(stage)
    last = stage.final()
    check_rounds(stage, last)
    check_leftovers(stage)
    if stage.cast.private:
        check_private(stage, last)
    else:
        check_exact(stage, last)
        check_journals(stage, last)


def check_ends(stage: FederationStage) -> None:
    """Every process ended well, by our signal, or with one line that says why."""
    for role in stage.roles:
        for number, run in enumerate(role.runs):
            code = run.child.poll()
            where = f"{role.name}, process {number + 1}, ended with {code}:\n{run.output}"
            assert "Traceback" not in run.output, where
            assert "Exception" not in run.output, where
            if code in (0, -run.killed) or (run.killed and code == 128 + run.killed):
                continue
            if run.killed == signal.SIGKILL and code == 2:
                continue  # it had ended with its line when the signal came
            assert code == 2, where
            assert len(run.errors) == 1, where


def check_rounds(stage: FederationStage, last: Checkpoint) -> None:
    """Each round stands once, in order, over as many platforms as a sum needs."""
    assert last.round == stage.cast.rounds
    assert [record.round for record in last.history] == list(range(1, last.round + 1))
    least = max(3, (len(stage.cast.names) + (len(stage.cast.names) - 1) // 3) // 2 + 1)
    for record in last.history:
        assert len(record.platforms) >= least, record
        assert set(record.platforms) <= set(stage.cast.names), record


def check_exact(stage: FederationStage, last: Checkpoint) -> None:
    """The model, the optimiser's state and every metric are those of these contributors, bit by bit."""
    names = [record.platforms for record in last.history]
    model, velocity, losses = truth.after(last.plan, names)
    np.testing.assert_array_equal(last.parameters, model)
    assert isinstance(last.optimizer, FedAvgM)
    np.testing.assert_array_equal(last.optimizer.velocity, velocity)
    for number, (record, loss) in enumerate(zip(last.history, losses, strict=True), 1):
        assert record.training == {"loss": loss}
        if record.evaluation:
            there, _, _ = truth.after(last.plan, names[:number])
            found = record.evaluation["ndcg@10"]
            possible = truth.scores(there, record.platforms, 3)
            assert min(abs(found - one) for one in possible) < 1e-12, record


def check_journals(stage: FederationStage, last: Checkpoint) -> None:
    """No platform ever saw another model in a round than the others, or than the true one."""
    names = [record.platforms for record in last.history]
    expected = [_digest(truth.after(last.plan, names[:n])[0]) for n in range(last.round + 1)]
    for name in stage.cast.names:
        entries = _entries(stage.journals / f"{name}.jsonl")
        assert entries[-1]["phase"] == "finish"
        for entry in entries:
            done = entry["round"] - 1 if entry["phase"] == "train" else entry["round"]
            assert entry["run"] == last.run.hex()
            assert entry["model"] == expected[done], (name, entry)


def check_leftovers(stage: FederationStage) -> None:
    """No half-written file stands where a checkpoint would be looked for, and few are kept."""
    folder = stage.state / "checkpoints"
    assert not list(folder.glob("*.part"))
    assert len(list(folder.glob("round-*.json"))) <= 3


def check_private(stage: FederationStage, last: Checkpoint) -> None:
    """What was released was charged, nothing charged was lost, and everybody has the same model."""
    assert np.isfinite(last.parameters).all()
    for name in stage.cast.names:
        folder = PlatformFolder(stage.homes / name)
        trained = folder.load_trained()
        assert trained is not None
        np.testing.assert_array_equal(trained.received.vector, last.parameters)
        check_ledger(stage, name, last)


def check_ledger(stage: FederationStage, name: str, last: Checkpoint) -> None:
    """Charged at least once a round that it was in, and once for each noise that it drew."""
    history = read_history(stage.homes / name / LEDGER)
    records = history.records
    assert all(record.run == last.run for record in records)
    charged = Counter(record.round for record in records)
    for record in last.history:
        if name in record.platforms:
            assert charged[record.round] >= 1, (name, record.round, charged)
    role = stage.platforms[name]
    drawn = Counter(
        int(found.group(1))
        for run in role.runs
        for line in run.lines
        if (found := FRESH.match(line))
    )
    for number, times in drawn.items():
        assert charged[number] >= times, (name, number, drawn, charged)
    # A process that was ended may have charged without a line about it; nobody else may.
    assert sum(charged.values()) - sum(drawn.values()) <= len(role.runs), (name, drawn, charged)
    spent = [epsilon([r.event for r in records[:n]], DELTA) for n in range(1, len(records) + 1)]
    assert spent == sorted(spent)


class LedgerWatch:
    """Takes copies of the ledgers while a run is on: what stood there once stands there for ever."""

    def __init__(self, stage: FederationStage) -> None:
        self._stage = stage
        self._seen: dict[str, bytes] = {}

    def look(self) -> None:
        """Compare with the look before."""
        for name in self._stage.cast.names:
            path = self._stage.homes / name / LEDGER
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            before = self._seen.get(name, b"")
            assert whole.startswith(before), f"the ledger of {name} lost or changed a line"
            self._seen[name] = whole


def _entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _digest(model: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(model, dtype="<f4").tobytes()).hexdigest()
