"""What the coordinator reads: requests, checkpoints, its database, settings, audit log, TLS files."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, judge, same
from targets_keys import NODE_KEY, NOW, _made_pass, key, notice, parsed, signed_plan, signed_roster
from targets_platform import SMALL, chained

from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import ConfigError, CrossrecError, WireError
from crossrec_model.federation_files import read_address, told_versions
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.node_pass import HEADER
from server.audit import AUDIT, AuditLog, verify
from server.checkpoint import Checkpoint, CheckpointStore, RoundRecord
from server.database import _parsed, shown
from server.doorkeeper import KEY_HEADER, Doorkeeper
from server.folder import SETTINGS, FederationFolder, Settings
from server.gate import Gate
from server.openings import FILE, Openings
from server.optimizer import initial_state
from server.store import Store
from server.tls import TlsFiles, make_certificates, renew_certificate

RUN: Final = bytes(range(16))
_MOST_STEPS: Final = 2000
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


def _settings(data: bytes) -> None:
    """The operator's own file, as it is read, written anew, and used."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        # The folder refuses it before.
        raise ConfigError("no UTF-8") from None
    found = Settings.from_toml(text)
    same(Settings.from_toml(found.to_toml()), found, SETTINGS)
    same(bool(found.address and found.bind), True, "address")


def _signed_settings(data: bytes) -> None:
    """As `_settings`, and with the noise worked out."""
    _settings(data)
    settings = Settings.from_toml(data.decode("utf-8"))
    if settings.plan.federation.rounds * settings.plan.privacy.steps > _MOST_STEPS:
        raise ConfigError("a search for the noise of so many steps takes longer than an input may")
    plan = settings.signed_for(signed_roster().roster)
    same(Plan.from_json(plan.to_json()), plan, "plan")


def _setting_seeds() -> list[bytes]:
    whole = Settings(name="demo", host="127.0.0.1").to_toml()
    short = '[coordinator]\nname = "a b"\nhost = "::1"\nport = 1\n[privacy]\nnoise = "none"\n'
    return [whole.encode(), short.encode()]


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


def _gate(_folder: Path) -> Check:
    """A request as JSON: type, path, headers as pairs of Latin-1 texts, the body's pieces."""
    ticks = iter(range(10**9))
    gates = [
        Gate(_inner, Doorkeeper(lambda: signed_roster().roster, clock=lambda: NOW + next(ticks) % 200),
             lambda: notice().to_json()),
        Gate(_inner),
    ]  # fmt: skip

    def check(data: bytes) -> None:
        request = parsed(data)
        scope = None if request is None else _scope(request)
        if request is None or scope is None:
            raise WireError("no request")
        pieces = request.get("body")
        bodies = (
            [str(piece).encode("utf-8", "replace") for piece in pieces]
            if isinstance(pieces, list)
            else [b""]
        )
        statuses = [asyncio.run(_asked(gate, scope, bodies)) for gate in gates]
        if statuses[0] != 200:
            raise WireError(f"answered {statuses[0]}")

    return check


def _scope(request: dict[str, Any]) -> dict[str, Any] | None:
    """What the web server makes of a request: bytes as headers, a text as path."""
    try:
        return {
            "type": "http" if request["type"] != "websocket" else "websocket",
            "path": str(request["path"]),
            "client": tuple(request["client"]) if request.get("client") else None,
            "headers": [
                (str(name).lower().encode("latin-1"), str(value).encode("latin-1"))
                for name, value in request["headers"]
            ],
        }
    except (KeyError, ValueError, TypeError):
        return None


async def _inner(scope: Any, receive: Any, send: Any) -> None:
    body = await receive()
    same(body.get("more_body", False), False, "whole body")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.get("body", b"")})


async def _asked(gate: Gate, scope: dict[str, Any], bodies: list[bytes]) -> int:
    sent: list[Any] = []
    left = [
        {"type": "http.request", "body": body, "more_body": number < len(bodies)}
        for number, body in enumerate(bodies, 1)
    ] or [{"type": "http.disconnect"}]

    async def receive() -> Any:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    if scope["type"] == "websocket":
        return 1008
    same([m["type"] for m in sent], ["http.response.start", "http.response.body"], "answer")
    return int(sent[0]["status"])


def _requests() -> list[bytes]:
    shown_key = base64.b64encode(NODE_KEY).decode()
    known = [[KEY_HEADER, shown_key], [HEADER, _made_pass().to_header()], ["content-length", "3"]]
    paths = ("/v1/fleet/push-object", "/health", "/federation")
    return [
        json.dumps({
            "type": "http", "path": path, "client": ["127.0.0.1", 5], "headers": known,
            "body": ["abc", "de"],
        }).encode()
        for path in paths
    ]  # fmt: skip


@cache
def _database() -> tuple[bytes, bytes]:
    """The coordinator's database: as a file, and its rows as JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "coordinator.db"
        with Store.open(
            f"sqlite:///{path}", clock=lambda: datetime(2026, 1, 1, tzinfo=UTC)
        ) as store:
            store.begin_run(RUN, Plan().to_json(), 1)
            store.save_round(RUN, _RECORD)
            store.saw({"A": "0.1.0", "B": "0.1.0"})
            store.openings(RUN).begin(Kind.TRAIN, 2, ("A", "B", "C"))
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            names = [name for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'")]  # fmt: skip
            rows = {
                name: [list(row) for row in connection.execute(f"SELECT * FROM {name}")]
                for name in names
            }
        connection.close()
        return path.read_bytes(), json.dumps(rows).encode()


def _store(scratch: Path) -> Check:
    """The database's file as bytes, or its rows as JSON."""
    path = scratch / "coordinator.db"

    def check(data: bytes) -> None:
        for one in scratch.iterdir():
            one.unlink()
        rows = parsed(data) if data.startswith(b"{") else None
        path.write_bytes(data if rows is None else _database()[0])
        if rows is not None:
            _put(path, rows)
        with Store.open(f"sqlite:///{path}", patience_s=0) as store:
            same(all(line.isprintable() for line in store.status()), True, "printable status")
            for run in store.runs():
                store.rounds(run.run)
            openings = store.openings(RUN)
            openings.of(Kind.TRAIN, 2)
            store.begin_run(bytes(16), Plan().to_json(), 2)
            store.save_round(bytes(16), _RECORD)
            store.end_run(bytes(16), "stopped")
            store.take_over(bytes(16), [_RECORD])
            openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))

    return check


def _put(path: Path, rows: dict[str, Any]) -> None:
    """Put rows into the tables as far as SQLite takes them."""
    connection = sqlite3.connect(path)
    with connection:
        for table in json.loads(_database()[1]):
            found = rows.get(table)
            connection.execute(f"DELETE FROM {table}")
            for row in found if isinstance(found, list) else []:
                if isinstance(row, list) and row:
                    places = ", ".join("?" * len(row))
                    try:
                        connection.execute(f"INSERT INTO {table} VALUES ({places})", row)
                    except (sqlite3.Error, OverflowError, UnicodeError):
                        continue
    connection.close()


def _url(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    same(isinstance(shown(_parsed(text)), str), True, "URL")


def _urls() -> list[bytes]:
    return [
        b"sqlite:////srv/crossrec/coordinator.db",
        b"postgresql+psycopg://user:p%40ss@db.example.org:5432/crossrec?sslmode=require",
    ]


def _files(scratch: Path) -> Check:
    """A file in the coordinator's or a platform's folder; the first byte says which."""
    names = ("roster.json", "plan.json", SETTINGS, "address")
    folder = FederationFolder(scratch)
    whole = {
        "roster.json": signed_roster().to_json(),
        "plan.json": signed_plan().to_json(),
        SETTINGS: Settings(name="demo", host="127.0.0.1").to_toml().encode(),
        "address": b"example.org:9092",
    }

    def check(data: bytes) -> None:
        chosen = names[data[0] % len(names)] if data else names[0]
        for name, content in whole.items():
            (scratch / name).write_bytes(data[1:] if name == chosen else content)
        told_versions(data[1:])
        address = read_address(scratch)
        same(address is not None, True, "address")
        folder.settings()
        folder.notice()

    return check


def _file_seeds() -> list[bytes]:
    contents = (
        signed_roster().to_json(), signed_plan().to_json(),
        Settings(name="demo", host="::1").to_toml().encode(), b"example.org:9092",
    )  # fmt: skip
    return [bytes((number,)) + content for number, content in enumerate(contents)]


def _figures(scratch: Path) -> Check:
    from crossrec_model.evaluation.figures import check_figures, read_figures, write_figures

    path = scratch / "figures.json"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        found = read_figures(path)
        check_figures(found)
        same(all(math.isfinite(figure.value) for figure in found), True, "values")
        write_figures(path, found)
        same(read_figures(path), found, "figures")

    return check


def _figure_seeds() -> list[bytes]:
    from dataclasses import asdict

    from crossrec_model.evaluation.figures import Figure

    made = [
        Figure(figure="a.b", value=1.5, goal=">=1", command="python x.py", seeds=3),
        Figure(figure="c", value=2, goal="<= 1e6", command="python y.py"),
    ]
    return [json.dumps([asdict(figure) for figure in made]).encode()]


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
    Target(
        name="coordinator.settings",
        seeds=_setting_seeds,
        check=_plain(_settings),
        changes=OF_TEXT,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="coordinator.private_plan",
        seeds=_setting_seeds,
        check=_plain(_signed_settings),
        changes=OF_TEXT,
        cost=Cost.DEAR,
        memory_mib=512,
    ),
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
    Target(
        name="coordinator.gate", seeds=_requests, check=_gate, changes=OF_JSON, cost=Cost.MEDIUM
    ),
    Target(
        name="coordinator.database",
        seeds=lambda: list(_database()),
        check=_store,
        changes=OF_BYTES + OF_JSON,
        cost=Cost.DEAR,
    ),
    Target(
        name="coordinator.database_url",
        seeds=_urls,
        check=_plain(_url),
        changes=OF_BYTES + OF_TEXT,
    ),
    Target(
        name="coordinator.folder",
        seeds=_file_seeds,
        check=_files,
        changes=OF_BYTES + OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(name="evaluation.figures", seeds=_figure_seeds, check=_figures, changes=OF_JSON),
)
__all__ = ["TARGETS", "CrossrecError", "key", "partial"]
