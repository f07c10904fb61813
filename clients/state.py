"""A platform's folder on disk: prepared data, the run's latest vector, the trained model, a lock.

    data/                  prepared tables, see `crossrec_model.data.prepared`
    received.safetensors   what the present run has given so far, written once a round
    model.safetensors      what is served: the last finished run and the private part of it
    lock                   held by the process that takes part

Only the folder's owner can read it. Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from clients import tensorfile
from clients.membership import Received
from clients.personal import Gain, Mixtures, Trial
from clients.tensorfile import Tensors
from crossrec_model.config import Plan
from crossrec_model.data.splits import TimeSplit
from crossrec_model.errors import CrossrecError
from crossrec_model.parameters import Layout
from crossrec_model.ranking import Mixture
from crossrec_model.statistics import Statistics

FORMAT: Final = 3
MODEL: Final = "model.safetensors"
RECEIVED: Final = "received.safetensors"
DATA: Final = "data"
_STATISTICS: Final = ("sketch", "mean", "square", "pairs")

_Left = dict[str, npt.NDArray[np.float32]]
T = TypeVar("T")


class StateError(CrossrecError):
    """A state folder that can't be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """What a run has given a platform, with the time split it answered by."""

    platform: str
    split: TimeSplit
    received: Received


@dataclass(frozen=True, kw_only=True, eq=False)
class Personal:
    """What a platform trained on its own rows: it never leaves the platform.

    `tensors` are those of the private network by name, with its statistics, where there is one.
    """

    tensors: Tensors
    statistics: Statistics | None
    mixtures: Mixtures


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A finished run and what is private to the platform, fitted to each other."""

    kept: Kept
    personal: Personal

    @property
    def received(self) -> Received:
        """What the finished run gave."""
        return self.kept.received


@dataclass(frozen=True)
class PlatformFolder:
    """The folder of one platform."""

    path: Path

    @property
    def data(self) -> Path:
        """Where the prepared tables lie."""
        return self.path / DATA

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and hold it for this process alone.

        Raises:
            StateError: if it can't be written, or another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateError(
                f"state folder {self.path} can't be used: {error.strerror}; give another --state"
            ) from None
        try:
            _lock(lock, self.path)
            yield
        finally:
            os.close(lock)

    def save_received(self, kept: Kept) -> None:
        """Keep what the run has given so far; raises StateError if it can't be written."""
        self._write(RECEIVED, _document(kept), _received_tensors(kept.received))

    def load_received(self) -> Kept | None:
        """Read what the last run has given; None if there is nothing.

        Raises:
            StateError: if the file is damaged, or of another format.
        """
        return self._read(RECEIVED, _read_kept)

    def save_trained(self, trained: Trained) -> None:
        """Replace the model that is served; raises StateError if it can't be written."""
        document = _document(trained.kept) | {"mixtures": _mixtures(trained.personal.mixtures)}
        tensors = dict(_received_tensors(trained.received))
        if trained.personal.statistics is not None:
            tensors |= _statistics_tensors("private.statistics", trained.personal.statistics)
        tensors |= {f"private.network.{n}": t for n, t in trained.personal.tensors.items()}
        self._write(MODEL, document, tensors)

    def load_trained(self) -> Trained | None:
        """Read the model that is served; None if no run was finished here.

        Raises:
            StateError: if the file is damaged, or of another format.
        """
        return self._read(MODEL, _read_trained)

    def _write(self, name: str, document: dict[str, Any], tensors: Tensors) -> None:
        try:
            tensorfile.write(self.path / name, document, tensors)
        except OSError as error:
            raise StateError(
                f"{self.path / name} can't be written: {error.strerror}; "
                "make room or give another --state"
            ) from None

    def _read(self, name: str, parse: Callable[[dict[str, Any], _Left], T]) -> T | None:
        path = self.path / name
        try:
            if not path.is_file():
                return None
            document, tensors = tensorfile.read(path)
            return _whole(parse, document, tensors)
        except OSError as error:
            raise StateError(
                f"{path} can't be read: {error.strerror or error}; check who owns it"
            ) from None
        except (
            ValueError,
            ArithmeticError,
            LookupError,
            TypeError,
            AttributeError,
            CrossrecError,
        ) as error:
            raise StateError(
                f"{path} is damaged ({error or type(error).__name__}); "
                "move it away and take part again"
            ) from None


def _whole(
    parse: Callable[[dict[str, Any], _Left], T], document: dict[str, Any], tensors: _Left
) -> T:
    """Parse a file of our format of which nothing may be left over."""
    if document.get("format") != FORMAT:
        raise ValueError(f"format {document.get('format')}, not {FORMAT}")
    found = parse(document, tensors)
    if tensors:
        raise ValueError(f"unexpected tensor {min(tensors)!r}")
    return found


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateError(
            f"state folder {path} is in use by another process of this platform; "
            "stop it or give another --state"
        ) from None


def _document(kept: Kept) -> dict[str, Any]:
    received, split = kept.received, kept.split
    return {
        "format": FORMAT,
        "platform": kept.platform,
        "split": {"validation": split.validation, "test": split.test, "end": split.end},
        "plan": json.loads(received.plan.to_json()),
        "run": received.run.hex(),
        "round": received.round,
        "finished": received.finished,
    }


def _mixtures(mixtures: Mixtures) -> dict[str, Any]:
    return {
        name: {"names": list(mixture.names), "weights": list(mixture.weights)}
        for name, mixture in (("local", mixtures.local), ("federated", mixtures.federated))
    } | {"trial": asdict(mixtures.trial)}


def _received_tensors(received: Received) -> Tensors:
    tensors = {"shared.vector": received.vector}
    if received.validation is not None:
        tensors |= _statistics_tensors("shared.validation", received.validation)
    return tensors


def _statistics_tensors(prefix: str, statistics: Statistics) -> Tensors:
    return {f"{prefix}.{name}": getattr(statistics, name) for name in _STATISTICS}


def _read_kept(document: dict[str, Any], left: _Left) -> Kept:
    """Take what belongs to a run; any error means damage."""
    split = TimeSplit(**document["split"])
    if not all(math.isfinite(day) for day in (split.validation, split.test, split.end)):
        raise ValueError("its time split is not finite")
    plan = Plan.from_document(document["plan"])
    vector = left.pop("shared.vector")
    if vector.shape != (Layout(plan.model).size,):
        raise ValueError("its vector is not of the plan's length")
    known = "shared.validation.sketch" in left
    received = Received(
        plan=plan,
        run=bytes.fromhex(document["run"]),
        round=int(document["round"]),
        vector=vector,
        validation=_take_statistics("shared.validation", left) if known else None,
        finished=bool(document["finished"]),
    )
    return Kept(platform=str(document["platform"]), split=split, received=received)


def _read_trained(document: dict[str, Any], left: _Left) -> Trained:
    prefix, kept = "private.network.", _read_kept(document, left)
    known = "private.statistics.sketch" in left
    statistics = _take_statistics("private.statistics", left) if known else None
    names = [name for name in left if name.startswith(prefix)]
    weights = document["mixtures"]
    mixtures = {
        name: Mixture(
            names=tuple(map(_text, weights[name]["names"])),
            weights=tuple(map(float, weights[name]["weights"])),
        )
        for name in ("local", "federated")
    }
    found = weights["trial"]
    gains = {
        name: Gain(**{k: float(v) for k, v in found[name].items()}) for name in ("fit", "ndcg")
    }
    if not all(math.isfinite(x) for gain in gains.values() for x in (gain.mean, gain.error)):
        raise ValueError("its trial is not finite")
    trial = Trial(users=int(found["users"]), least=float(found["least"]), **gains)
    if not 0 <= trial.least < math.inf:
        raise ValueError("its trial asks for no finite number of errors")
    personal = Personal(
        tensors={name.removeprefix(prefix): left.pop(name) for name in names},
        statistics=statistics,
        mixtures=Mixtures(**mixtures, trial=trial),
    )
    return Trained(kept=kept, personal=personal)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is no text")
    return value


def _take_statistics(prefix: str, left: _Left) -> Statistics:
    return Statistics(**{n: left.pop(f"{prefix}.{n}") for n in _STATISTICS})
