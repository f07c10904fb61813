"""What a platform has kept of a run: tensors with a description and a checksum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from targets import OF_BYTES, OF_JSON, Check, Cost, Target, judge, same
from targets_platform import SMALL

from clients import tensorfile
from clients.membership import Received
from clients.personal import Gain, Mixtures, Trial
from clients.scoring import OWN, SHARED
from clients.state import MODEL, RECEIVED, Kept, Personal, PlatformFolder, Trained
from crossrec_model.data.splits import TimeSplit
from crossrec_model.parameters import Layout
from crossrec_model.ranking import Mixture
from crossrec_model.statistics import Statistics


def _statistics(seed: int) -> Statistics:
    random = np.random.default_rng(seed)
    sketch, mean, square = (random.random(n).astype(np.float32) for n in (32, 14, 14))
    return Statistics(sketch=sketch, mean=mean, square=square)


def kept() -> Kept:
    """What a run has given a platform."""
    vector = np.linspace(-1, 1, Layout(SMALL.model).size, dtype=np.float32)
    received = Received(
        plan=SMALL,
        run=bytes(range(16)),
        round=3,
        vector=vector,
        validation=_statistics(1),
        finished=True,
    )
    return Kept(platform="A", split=TimeSplit(validation=1.5, test=2.5, end=3.5), received=received)


def trained() -> Trained:
    """A finished run and what is private."""

    def mixture(names: tuple[str, ...]) -> Mixture:
        return Mixture(names=names, weights=tuple(0.1 * i for i in range(2 * len(names) + 3)))

    gain = Gain(mean=0.2, error=0.01)
    mixtures = Mixtures(
        local=mixture(OWN),
        federated=mixture((*OWN, *SHARED)),
        trial=Trial(users=40, fit=gain, ndcg=gain, least=2.0),
    )
    personal = Personal(
        tensors={"items": np.ones((3, 2), dtype=np.float32)},
        statistics=_statistics(2),
        mixtures=mixtures,
    )
    return Trained(kept=kept(), personal=personal)


def _resealed(raw: bytes) -> bytes | None:
    """A tensor file with the checksum that its contents have; None if it is no such file."""
    try:
        tensors = safetensors.numpy.load(raw)
        start = 8 + int.from_bytes(raw[:8], "little")
        metadata = json.loads(raw[8:start]).get("__metadata__", {})
        text = metadata["crossrec"]
        digest = tensorfile._digest(text, tensors)
        return safetensors.numpy.save(tensors, metadata={"crossrec": text, "sha256": digest})
    except Exception:
        # Whatever a damaged file does to this shortcut: it is then read as it is.
        return None


def _state(name: str) -> Callable[[Path], Check]:
    def prepare(scratch: Path) -> Check:
        folder = PlatformFolder(scratch)
        first, save = _STATES[name]

        def read(data: bytes) -> None:
            (scratch / name).write_bytes(data)
            found = folder.load_received() if name == RECEIVED else folder.load_trained()
            if found is not None:
                save(folder, found)
                again = folder.load_received() if name == RECEIVED else folder.load_trained()
                same(_texts(again), _texts(found), name)

        def check(data: bytes) -> None:
            judge(read, data)
            raw = _described(first, data) if data.startswith(b"{") else _resealed(data)
            read(data if raw is None else raw)

        return check

    return prepare


def _described(first: bytes, data: bytes) -> bytes | None:
    """The first file with another description, and the checksum that goes with it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    tensors = safetensors.numpy.load(first)
    digest = tensorfile._digest(text, tensors)
    return safetensors.numpy.save(tensors, metadata={"crossrec": text, "sha256": digest})


def _texts(found: object) -> str:
    """What was read, as text: arrays don't compare."""
    with np.printoptions(threshold=100_000, precision=9):
        return repr(found)


def _written(name: str, write: Callable[[PlatformFolder], None]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        write(PlatformFolder(Path(scratch)))
        return (Path(scratch) / name).read_bytes()


def _state_seeds(name: str) -> list[bytes]:
    first = _STATES[name][0]
    start = 8 + int.from_bytes(first[:8], "little")
    return [first, json.loads(first[8:start])["__metadata__"]["crossrec"].encode()]


def _tensor_bombs() -> list[bytes]:
    """Headers that announce 2^60 bytes, or a tensor of 2^62 numbers."""
    huge = {"shared.vector": {"dtype": "F32", "shape": [1 << 60, 4], "data_offsets": [0, 1 << 62]}}
    text = json.dumps(huge).encode()
    none = {"shared.vector": {"dtype": "F32", "shape": [1 << 62, 0], "data_offsets": [0, 0]}}
    empty = json.dumps(none).encode()
    return [
        (1 << 60).to_bytes(8, "little") + b"{}",
        (99 << 20).to_bytes(8, "little") + b"{}",
        len(text).to_bytes(8, "little") + text,
        len(empty).to_bytes(8, "little") + empty,
    ]


_STATES: Final[dict[str, tuple[bytes, Callable[[PlatformFolder, Any], None]]]] = {
    RECEIVED: (
        _written(RECEIVED, lambda folder: folder.save_received(kept())),
        lambda folder, found: folder.save_received(found),
    ),
    MODEL: (
        _written(MODEL, lambda folder: folder.save_trained(trained())),
        lambda folder, found: folder.save_trained(found),
    ),
}


TARGETS: Final = (
    *(
        Target(
            name=f"platform.{name.partition('.')[0]}",
            seeds=lambda name=name: _state_seeds(name),
            check=_state(name),
            changes=OF_BYTES + OF_JSON,
            cost=Cost.MEDIUM,
            bombs=_tensor_bombs,
        )
        for name in _STATES
    ),
)
