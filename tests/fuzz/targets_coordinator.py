"""What the coordinator reads: requests, checkpoints, its database, settings, audit log, TLS files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, judge, same
from targets_keys import parsed
from targets_platform import SMALL, chained

from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import WireError
from crossrec_model.secagg.messages import Kind
from server.audit import AUDIT, AuditLog, verify
from server.checkpoint import Checkpoint, CheckpointStore, RoundRecord
from server.handover import FILE as HANDED_OUT
from server.handover import Handover
from server.openings import FILE, Openings
from server.optimizer import initial_state
from server.tls import TlsFiles, make_certificates, renew_certificate

RUN: Final = bytes(range(16))
_RECORD: Final = RoundRecord(
    round=2,
    platforms=("A", "B", "C"),
    seconds=1.5,
    training={"loss": 0.25},
    evaluation={"ndcg@10": 0.1},
)


def _checkpoint(optimizer: Any = "fedadam") -> Checkpoint:
    plan = Plan(model=SMALL.model, federation=FederationConfig(optimizer=optimizer, rounds=9))
    parameters = np.linspace(-1, 1, 6, dtype=np.float32)
    return Checkpoint(
        run=RUN,
        plan=plan,
        round=2,
        parameters=parameters,
        optimizer=initial_state(plan.federation, len(parameters)),
        history=(_RECORD,),
    )


@cache
def _saved(optimizer: str) -> tuple[bytes, bytes]:
    """The two files of a checkpoint: document and tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        document = CheckpointStore(Path(scratch)).save(_checkpoint(optimizer))
        return document.read_bytes(), document.with_suffix(".safetensors").read_bytes()


def _loaded(scratch: Path, document: bytes, tensors: bytes) -> None:
    folder = scratch / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "round-000002.json").write_bytes(document)
    (folder / "round-000002.safetensors").write_bytes(tensors)
    store = CheckpointStore(scratch)
    found = store.latest()
    if found is None:
        raise WireError("no checkpoint")
    same(found.parameters.ndim == 1 and bool(np.isfinite(found.parameters).all()), True, "model")
    same(len(found.run), 16, "run")
    for record in found.history:
        # As the operator sees it.
        same(bool(f"{record.round:d} {record.seconds:.2f} {', '.join(record.platforms)}"), True, "")
        means = (*record.training.values(), *record.evaluation.values())
        same(all(isinstance(value, float) for value in means), True, "means")
    shutil.rmtree(folder)
    store.save(found)
    again = store.latest()
    same(_shown(again), _shown(found), "checkpoint")


def _shown(checkpoint: Checkpoint | None) -> str:
    with np.printoptions(threshold=100_000, precision=9):
        return repr(checkpoint)


def _documents(scratch: Path) -> Check:
    """A checkpoint's document, beside the tensors whose checksum it names or is given."""

    def check(data: bytes) -> None:
        name = "fedavg" if b"FedAvg" in data else "fedadam"
        tensors = _saved(name)[1]
        judge(lambda raw: _loaded(scratch, raw, tensors), data)
        document = parsed(data)
        if document is not None:
            document |= {
                "sha256": sha256(tensors).hexdigest(),
                "tensors": "round-000002.safetensors",
            }
        _loaded(scratch, data if document is None else json.dumps(document).encode(), tensors)

    return check


def _tensors(scratch: Path) -> Check:
    """A checkpoint's tensors, beside a document with their checksum."""
    document = json.loads(_saved("fedadam")[0])

    def check(data: bytes) -> None:
        document["sha256"] = sha256(data).hexdigest()
        _loaded(scratch, json.dumps(document).encode(), data)

    return check


def _tensor_seeds() -> list[bytes]:
    long = {"parameters": np.linspace(0, 1, 40, dtype=np.float32)}
    moments = {f"optimizer.{n}": np.ones(40, dtype=np.float32) for n in ("mean", "square")}
    return [_saved("fedadam")[1], safetensors.numpy.save({**long, **moments})]


def _tensor_bombs() -> list[bytes]:
    made = []
    for shape, end in (([1 << 60, 4], 1 << 62), ([1 << 62, 0], 0), ([0], 0), ([1 << 31], 1 << 33)):
        header = {"parameters": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
        text = json.dumps(header).encode()
        made.append(len(text).to_bytes(8, "little") + text)
    return [*made, (1 << 60).to_bytes(8, "little") + b"{}", (99 << 20).to_bytes(8, "little")]


def _openings(scratch: Path) -> Check:
    path = scratch / FILE

    def check(data: bytes) -> None:
        path.write_bytes(data)
        openings = Openings(RUN, path)
        for kind in Kind:
            for number in (1, 2, 3):
                found = openings.of(kind, number)
                same(found is None or all(isinstance(p, str) for p in found), True, "platforms")
        openings.begin(Kind.TRAIN, 9, ("A", "B", "C"))
        same(Openings(RUN, path).of(Kind.TRAIN, 9), ("A", "B", "C"), "opening")

    return check


def _opening_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        openings = Openings(RUN, Path(scratch) / FILE)
        openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))
        openings.begin(Kind.EVALUATE, 2, ("A", "C"))
        return [(Path(scratch) / FILE).read_bytes()]


def _handover(scratch: Path) -> Check:
    path = scratch / HANDED_OUT

    def check(data: bytes) -> None:
        path.write_bytes(data)
        handover = Handover(RUN, scratch)
        same(all(isinstance(p, str) for p in handover.confirmed), True, "platforms")
        handover.add("A")
        same(Handover(RUN, scratch).confirmed, handover.confirmed, "platforms")

    return check


def _handover_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        handover = Handover(RUN, Path(scratch))
        handover.add("B")
        handover.add("C")
        return [(Path(scratch) / HANDED_OUT).read_bytes()]


@cache
def _audited() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / AUDIT
        with AuditLog.open(path, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC)) as log:
            log.record("admitted", subject="A")
            log.record("refused", reason="no-pass", platform="", address="127.0.0.1")
            log.record("round", number=3)
        return path.read_bytes()


def _audit(scratch: Path) -> Check:
    path = scratch / AUDIT
    path.touch(mode=0o600)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            verified = verify(path)
        finally:
            with AuditLog.open(path, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC)) as log:
                log.record("expelled", subject="B")
                head = log.head
        same(verify(path).head, head, "last line")
        same(head.sequence > verified.head.sequence, True, "number")

    def check(data: bytes) -> None:
        judge(read, data)
        read(chained(data))

    return check


@cache
def _certificates() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as scratch:
        files = make_certificates(Path(scratch), ["example.org"], keep_authority=True)
        paths = (files.ca, files.certificate, files.key, files.authority)
        return tuple(path.read_bytes() for path in paths)


def _tls(scratch: Path) -> Check:
    """One of the four files in a TLS folder is changed; the first byte says which."""
    files = TlsFiles.in_folder(scratch)
    paths = (files.ca, files.certificate, files.key, files.authority)
    whole = _certificates()

    def check(data: bytes) -> None:
        chosen = data[0] % 4 if data else 0
        for number, path in enumerate(paths):
            path.write_bytes(data[1:] if number == chosen else whole[number])
        judge(lambda _: files.check(), data)
        judge(lambda _: _warned(files), data)
        renew_certificate(scratch, ["example.org"])
        files.check()

    return check


def _warned(files: TlsFiles) -> None:
    same(isinstance(files.expiry_warning(datetime.now(UTC)), str), True, "warning")


def _tls_seeds() -> list[bytes]:
    return [bytes((number,)) + content for number, content in enumerate(_certificates())]


def _plain(check: Check) -> Callable[[Path], Check]:
    return lambda _folder: check


TARGETS: Final = (
    Target(
        name="coordinator.checkpoint",
        seeds=lambda: [_saved("fedadam")[0], _saved("fedavg")[0]],
        check=_documents,
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="coordinator.tensors",
        seeds=_tensor_seeds,
        check=_tensors,
        changes=OF_BYTES + OF_TEXT,
        cost=Cost.MEDIUM,
        bombs=_tensor_bombs,
    ),
    Target(
        name="coordinator.openings",
        seeds=_opening_seeds,
        check=_openings,
        changes=OF_JSON,
    ),
    Target(name="coordinator.handover", seeds=_handover_seeds, check=_handover, changes=OF_JSON),
    Target(
        name="coordinator.audit",
        seeds=lambda: [_audited()],
        check=_audit,
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="coordinator.tls",
        seeds=_tls_seeds,
        check=_tls,
        changes=OF_BYTES + OF_TEXT,
        cost=Cost.DEAR,
    ),
)
