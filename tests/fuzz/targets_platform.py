"""What a platform reads: its own folder's files, the invitation, the address, plans and budgets."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, judge, same
from targets_keys import (
    ADDRESS,
    authority,
    both,
    invitation,
    key,
    notice,
    parsed,
    sealed_all,
    sealed_plan,
    sealed_roster,
    signed_plan,
    signed_roster,
    written,
)

from clients import tensorfile
from clients.connection import Endpoint
from clients.joining import accept_invitation, load_pinned
from clients.membership import Received
from clients.opened import OPENED, Opened, Opening, _document
from clients.personal import Gain, Mixtures, Trial
from clients.scoring import FEDERATED, LOCAL
from clients.spending import read_spending
from clients.state import MODEL, RECEIVED, Kept, Personal, PlatformFolder, Trained
from clients.terms import explainer
from crossrec_model.config import ModelConfig, Plan
from crossrec_model.data.splits import TimeSplit
from crossrec_model.parameters import Layout
from crossrec_model.privacy.events import (
    Budget,
    DistributedGaussian,
    Event,
    GaussianRelease,
    Record,
    SampledGaussian,
)
from crossrec_model.privacy.ledger import LEDGER, Ledger
from crossrec_model.ranking import Mixture
from crossrec_model.statistics import Statistics

BUDGET: Final = Budget(epsilon=8.0, delta=1e-5, life_epsilon=24.0)
#: A network of some hundred numbers.
SMALL: Final = Plan(
    model=ModelConfig(buckets=32, dimension=4, neighbours=1, sketch_width=16, tower=(8, 1))
)
_TIMES: Final = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]


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
        local=mixture(LOCAL),
        federated=mixture(FEDERATED),
        trial=Trial(users=40, fit=gain, ndcg=gain),
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


def _openings() -> list[Opening]:
    return [
        Opening(run=bytes(range(at, at + 16)), kind=1 + at % 2, round=4, survivors=("A", "B", "C"))
        for at in range(3)
    ]


def _sealed_opened(document: dict[str, Any]) -> dict[str, Any]:
    content = {k: v for k, v in document.items() if k != "sha256"}
    return content | {"sha256": sha256(written(content) or b"").hexdigest()}


def _opened(scratch: Path) -> Check:
    path = scratch / OPENED

    def read(data: bytes) -> None:
        path.write_bytes(data)
        opened = Opened(scratch)
        same(_document(opened._load()), data, OPENED)
        opened.check_and_record(bytes(16), 3, 9, ("A", "B", "C"))

    return both(read, _sealed_opened)


def _events() -> list[Event]:
    return [
        SampledGaussian(multiplier=1.5, rate=0.01, steps=20),
        GaussianRelease(multiplier=4.0),
        DistributedGaussian(multiplier=4.0, honest=2),
    ]


def _ledger_seeds() -> list[bytes]:
    made = []
    for events in (_events()[:2], _events()):
        lines, after = [], None
        for number, event in enumerate(events, 1):
            after = Record.following(
                after,
                time=_TIMES[number - 1],
                run=bytes(range(16)),
                round=number,
                what="training",
                event=event,
                budget=BUDGET,
            )
            lines.append(after.line)
        made.append(b"\n".join(lines) + b"\n")
    return made


def chained(data: bytes) -> bytes:
    """Lines of JSON with the digests that their contents and order give."""
    previous, lines = "0" * 64, []
    for number, line in enumerate(data.split(b"\n"), 1):
        document = parsed(line)
        if document is None:
            lines.append(line)
            continue
        content = {k: v for k, v in document.items() if k != "sha256"}
        content |= {"sequence": number, "previous": previous}
        previous = sha256(written(content) or b"").hexdigest()
        lines.append(written(content | {"sha256": previous}) or line)
    return b"\n".join(lines)


def _ledger(scratch: Path) -> Check:
    path = scratch / LEDGER
    path.touch(mode=0o600)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        spending = read_spending(path, "A", platforms=2)
        same(bool(spending.lines() and spending.to_json()), True, "text")
        with Ledger.open(path) as ledger:
            records = ledger.records
            after = b"".join(record.line + b"\n" for record in records)
        same(after, path.read_bytes(), "ledger")

    def check(data: bytes) -> None:
        judge(read, data)
        read(chained(data))

    return check


def _address(data: bytes) -> None:
    found = Endpoint(address=data.decode("utf-8", "surrogateescape"), insecure=True)
    same(Endpoint(address=found.address, insecure=True), found, "address")
    # As the resolver and HTTP get them.
    same(len(found.host.encode("idna")) > 0 and 0 < int(found.port) < 65536, True, "address")
    same(any(c.isspace() or c == "\0" for c in found.host), False, "address with white space")


def _pinned(scratch: Path) -> Check:
    """The files that an invitation left: an address, a plan and a roster, one of them changed."""
    (scratch / "ca.pem").write_text(authority(), encoding="ascii")
    whole = {
        "address": ADDRESS.encode(),
        "plan.json": signed_plan().to_json(),
        "roster.json": signed_roster().to_json(),
    }

    def check(data: bytes) -> None:
        names = list(whole)
        chosen = names[data[0] % 3] if data else names[0]
        for name, content in whole.items():
            (scratch / name).write_bytes(data[1:] if name == chosen else content)
        pinned = load_pinned(scratch)
        if pinned is not None:
            Endpoint(address=pinned.address, insecure=True)

    return check


def _pinned_seeds() -> list[bytes]:
    contents = (ADDRESS.encode(), signed_plan().to_json(), signed_roster().to_json())
    return [bytes((at,)) + content for at, content in enumerate(contents)]


def _joining(scratch: Path) -> Check:
    """An invitation that its operator accepts, in a fresh folder."""
    state, path = scratch / "A", scratch / "A.invitation"
    explain = explainer(BUDGET, _events()[:1])

    def ask(lines: list[str], _question: str) -> bool:
        same(all(line.isprintable() for line in lines), True, "printable terms")
        return True

    def read(data: bytes) -> None:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(mode=0o700)
        (state / "identity.key").touch(mode=0o600)
        (state / "identity.key").write_bytes(key("A").to_pem())
        path.write_bytes(data)
        accept_invitation(state, "A", path, ask=ask, explain=explain, allow_two=True)
        pinned = load_pinned(state)
        same(pinned is not None, True, "pinned")

    def check(data: bytes) -> None:
        document = parsed(data)
        raw = None if document is None else written(sealed_all(document))
        read(data if raw is None else raw)

    return check


def plan_json(data: bytes) -> None:
    """A plan as the coordinator sends it."""
    plan = Plan.from_json(data)
    same(Plan.from_json(plan.to_json()), plan, "plan")
    same(plan.to_json(), Plan.from_json(plan.to_json()).to_json(), "plan")
    # What a platform works out before it answers.
    same(Layout(plan.model).size > 0, True, "size")
    same(math.isfinite(plan.aggregation.step), True, "step")


def _plan_toml(scratch: Path) -> Check:
    path = scratch / "plan.toml"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        plan = Plan.from_toml(path)
        same(Plan.from_json(plan.to_json()), plan, "plan")

    return check


def _plan_texts() -> list[bytes]:
    return [
        b"seed = 3\n[model]\nbuckets = 1024\ndimension = 8\ntower = [16, 4, 1]\n"
        b'activation = "relu"\nrelations = ["self", "brand"]\n[training]\nlearning_rate = 0.01\n',
        b'[federation]\nrounds = 9\nserver_lr = 1\noptimizer = "fedadam"\ntau = 1e-3\n'
        b'[privacy]\nnoise = "local"\nmultiplier = 1.0\nstatistics_multiplier = 1.0\n',
        b"[aggregation]\nlevels = 4096\nbound = 0.5\n",
    ]


def _with_plan(read: Check) -> Check:
    """Read the plan in a signed plan that is signed anew around a changed one."""
    federation = {"federation": "demo", "format": 1, "version": 3}

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        raw = written(sealed_plan(federation | {"plan": text}))
        read(raw or data)

    return check


def _terms(_folder: Path) -> Check:
    """A plan, explained to an operator as the change of another one."""
    from crossrec_model.secagg.invitation import SignedPlan

    explain, roster = explainer(BUDGET, _events()[:1]), signed_roster().roster

    def read(data: bytes) -> None:
        lines = explain(SignedPlan.from_json(data), roster, Plan())
        same(all(line.isprintable() for line in lines), True, "printable terms")

    return _with_plan(read)


def _plans() -> Sequence[bytes]:
    return [SMALL.to_json(), Plan().to_json(), json.dumps({"seed": 1}).encode()]


def _private_plans() -> Sequence[bytes]:
    from dataclasses import replace

    from crossrec_model.config import AggregationConfig, PrivacyConfig

    noise = {"multiplier": 2.0, "statistics_multiplier": 3.0}
    local = replace(Plan(), privacy=PrivacyConfig(noise="local", **noise))  # type: ignore[arg-type]
    sums = replace(
        Plan(),
        aggregation=AggregationConfig(max_weight=1.0),
        privacy=PrivacyConfig(noise="distributed", rate=1.0, steps=1, **noise),  # type: ignore[arg-type]
    )
    return [local.to_json(), sums.to_json()]


TARGETS: Final = (
    Target(
        name="plan.json",
        seeds=_plans,
        check=lambda _: plan_json,
        changes=OF_JSON,
        bombs=lambda: [
            b'{"model":{"tower":[128,' + b"1," * 400_000 + b"1]}}",
            b'{"model":{"relations":[' + b'"self",' * 100_000 + b'"self"]}}',
        ],
    ),
    Target(
        name="plan.toml", seeds=_plan_texts, check=_plan_toml, changes=OF_TEXT, cost=Cost.MEDIUM
    ),
    Target(
        name="platform.terms",
        seeds=_private_plans,
        check=_terms,
        changes=OF_JSON,
        cost=Cost.DEAR,
        memory_mib=512,
    ),
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
    Target(
        name="platform.opened",
        seeds=lambda: [_document([]), _document(_openings())],
        check=_opened,
        changes=OF_JSON,
    ),
    Target(
        name="platform.ledger",
        seeds=_ledger_seeds,
        check=_ledger,
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="platform.address",
        seeds=lambda: [
            b"example.org:9092",
            b"127.0.0.1:1",
            b"[::1]:65535",
            b"https://a.b:80/",
            "bücher.example:9092".encode(),
        ],
        check=lambda _: _address,
        changes=OF_BYTES + OF_TEXT,
    ),
    Target(
        name="platform.pinned",
        seeds=_pinned_seeds,
        check=_pinned,
        changes=OF_BYTES + OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="platform.invitation",
        seeds=lambda: [invitation().to_json()],
        check=_joining,
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
)
__all__ = ["TARGETS", "chained", "notice", "sealed_roster"]
