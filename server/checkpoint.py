"""The coordinator's durable state: one checkpoint after every round, the last few kept.

A checkpoint is two files: `round-NNNNNN.safetensors` (the tensors) and `round-NNNNNN.json` (all
else, with the checksum of the first). The JSON file is written last: where it is, all is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from crossrec_model.config import Plan
from crossrec_model.durable import flush, write_durably
from crossrec_model.errors import CrossrecError, FederationError
from crossrec_model.wire.codec import FloatVector
from crossrec_model.wire.messages import PLATFORM_ID
from server.optimizer import FedAdam, FedAvg, FedAvgM, OptimizerState

FORMAT: Final = 1
KEPT: Final = 3
_RUN_BYTES: Final = 16
#: What parsing a damaged document raises.
_DAMAGE: Final = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError),
)
_STATES: Final[dict[str, type[Any]]] = {kind.__name__: kind for kind in (FedAvg, FedAvgM, FedAdam)}


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What one round did: who contributed, how long it took in seconds, and the cohort's means."""

    round: int
    platforms: tuple[str, ...]
    seconds: float
    training: dict[str, float]
    evaluation: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything that a run needs to go on. `round` rounds are done; `parameters` float32 [d]."""

    run: bytes
    plan: Plan
    round: int
    parameters: FloatVector
    optimizer: OptimizerState
    history: tuple[RoundRecord, ...]


class CheckpointStore:
    """Checkpoints in the folder `checkpoints` of a state folder."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "checkpoints"

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint durably, drop the oldest beyond the last three, return its JSON file.

        Raises:
            FederationError: if the disk refuses; the checkpoints before it stay whole.
        """
        stem = f"round-{checkpoint.round:06d}"
        vectors = {
            f"optimizer.{f.name}": getattr(checkpoint.optimizer, f.name)
            for f in fields(checkpoint.optimizer)
        }
        tensors = save_tensors({"parameters": checkpoint.parameters, **vectors})
        document = {
            "format": FORMAT,
            "run": checkpoint.run.hex(),
            "round": checkpoint.round,
            "plan": json.loads(checkpoint.plan.to_json()),
            "optimizer": type(checkpoint.optimizer).__name__,
            "tensors": f"{stem}.safetensors",
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "history": [asdict(record) for record in checkpoint.history],
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_durably(self._folder / f"{stem}.safetensors", tensors)
            target = self._folder / f"{stem}.json"
            write_durably(target, json.dumps(document, indent=1).encode())
            self._prune()
        except OSError as error:
            raise FederationError(
                f"can't write a checkpoint to {self._folder}: {error.strerror}; "
                "free the disk and start again with --resume"
            ) from None
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, None where there is none.

        Raises:
            FederationError: if the newest one is damaged; nothing older is taken silently.
        """
        found = self._documents()
        return self._load(found[-1]) if found else None

    def put_aside(self, run: bytes) -> Path:
        """Move all checkpoints out of the way, to a folder that is named after their run.

        Raises:
            FederationError: if the disk refuses, or that folder exists.
        """
        target = self._folder.with_name(f"checkpoints-{run.hex()[:8]}")
        try:
            if target.exists():
                raise FileExistsError(17, "it exists already", str(target))
            self._folder.rename(target)
            flush(target.parent)
        except OSError as error:
            raise FederationError(
                f"the earlier run can't be put aside to {target}: {error.strerror}; move it by hand"
            ) from None
        return target

    def _load(self, path: Path) -> Checkpoint:
        try:
            document = json.loads(path.read_bytes())
            raw = (self._folder / Path(document["tensors"]).name).read_bytes()
            _verify(document, raw)
            tensors = load_tensors(raw)
            prefix = "optimizer."
            vectors = {k.removeprefix(prefix): _vector(tensors, k) for k in tensors if prefix in k}
            return Checkpoint(
                run=_run(document["run"]),
                plan=Plan.from_document(document["plan"]),
                round=_count(document["round"]),
                parameters=_vector(tensors, "parameters"),
                optimizer=_STATES[document["optimizer"]](**vectors),
                history=tuple(map(_record, document["history"])),
            )
        except (OSError, SafetensorError, CrossrecError, *_DAMAGE) as error:
            raise FederationError(
                f"checkpoint {path} is damaged ({error}); "
                "remove it to resume from the one before it"
            ) from None

    def _documents(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.json"))

    def _prune(self) -> None:
        for path in self._documents()[:-KEPT]:
            # The JSON file goes first: without it, the tensors are not a checkpoint.
            path.unlink()
            path.with_suffix(".safetensors").unlink(missing_ok=True)


def _run(text: str) -> bytes:
    run = bytes.fromhex(text)
    if len(run) != _RUN_BYTES:
        raise ValueError(f"its run has {len(run)} bytes, not {_RUN_BYTES}")
    return run


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise ValueError("a round's number is none")
    return value


def _vector(tensors: Mapping[str, npt.NDArray[Any]], name: str) -> FloatVector:
    """A tensor float32 [d] of finite numbers, with as many of them as the model has."""
    vector = tensors[name]
    if (
        vector.dtype != np.float32
        or vector.ndim != 1
        or vector.shape != tensors["parameters"].shape
    ):
        raise ValueError(f"tensor {name!r:.40} is {vector.dtype} {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"tensor {name!r:.40} holds NaN or an infinity")
    return vector


def _record(value: Mapping[str, Any]) -> RoundRecord:
    means = {
        name: {str(metric): float(mean) for metric, mean in value[name].items()}
        for name in ("training", "evaluation")
    }
    platforms = value["platforms"]
    if not isinstance(platforms, list) or not all(
        isinstance(name, str) and re.fullmatch(PLATFORM_ID, name) for name in platforms
    ):
        raise ValueError("a round's platforms are no list of ids")
    return RoundRecord(
        round=_count(value["round"]),
        platforms=tuple(platforms),
        seconds=float(value["seconds"]),
        **means,
    )


def _verify(document: dict[str, Any], tensors: bytes) -> None:
    """Raise ValueError unless the document is of our format and its checksum is the tensors'."""
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']}, not {FORMAT}")
    if hashlib.sha256(tensors).hexdigest() != document["sha256"]:
        raise ValueError("the tensors' checksum differs")


@contextmanager
def state_folder(path: Path) -> Iterator[Path]:
    """Make a state folder and hold it for this process alone.

    Raises:
        FederationError: if it can't be written, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise FederationError(
            f"state folder {path} can't be used: {error.strerror}; give another --state"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FederationError(
            f"state folder {path} is in use by another coordinator; stop it or give another --state"
        ) from None
    try:
        yield path
    finally:
        os.close(lock)
