"""A platform's service on the Complete Journey: latency, take-over, kills, and whether reasons are true.

    python benchmarks/serving.py [--work FOLDER] [--seconds 60] [--only PART …]

A short federation of the three platforms is run once without noise (kept in --work), then platform A is
served by `python -m clients.platform serve`. Server and client are two processes on the same cores.
Requests are sent on a fixed schedule, whether earlier ones were answered or not, and a latency counts from
the moment that the schedule named. Writes results/serving.json, and results/serving_diversity.md along the
diversity knob.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import sparse  # noqa: E402

from clients.adapters import open_source  # noqa: E402
from clients.dataset import load_dataset  # noqa: E402
from clients.membership import Received  # noqa: E402
from clients.personal import Weighing  # noqa: E402
from clients.scoring import SharedModel  # noqa: E402
from clients.serving.calls import RecommendCall  # noqa: E402
from clients.serving.events import read_events  # noqa: E402
from clients.serving.model import LiveModel, live_model, load_model, version_on_disk  # noqa: E402
from clients.serving.proto import recommender_pb2 as pb  # noqa: E402
from clients.serving.proto import recommender_pb2_grpc as pb_grpc  # noqa: E402
from clients.serving.reasons import explain  # noqa: E402
from clients.serving.scores import score  # noqa: E402
from clients.serving.service import Service  # noqa: E402
from clients.state import Kept, Personal, PlatformFolder, Trained  # noqa: E402
from crossrec_model.config import open_plan  # noqa: E402
from crossrec_model.data.prepared import open_prepared, prepare  # noqa: E402
from crossrec_model.errors import DataError  # noqa: E402
from crossrec_model.evaluation.figures import (  # noqa: E402
    Figure,
    merge_figures,
    read_figures,
    write_figures,
)
from crossrec_model.evaluation.metrics import accuracy, hits  # noqa: E402
from crossrec_model.evaluation.variety import category_features, coverage  # noqa: E402
from crossrec_model.evaluation.variety import diversity as intra_list  # noqa: E402
from crossrec_model.parameters import Layout  # noqa: E402
from crossrec_model.statistics import active_users  # noqa: E402
from server.federation import with_rounds  # noqa: E402
from simulations.engines import LocalEngine, Platform  # noqa: E402

RESULTS = HERE / "results" / "serving.json"
TABLE = HERE / "results" / "serving_diversity.md"
COMMAND = "python benchmarks/serving.py"
DATA, PLATFORM, NAMES = "complete-journey", "A", ("A", "B", "C")
#: Few: how long a call takes does not depend on how well the shared network was trained.
ROUNDS = 6
PARTS = ("latency", "swap", "events", "reasons", "diversity")
_SERVES = re.compile(r"gRPC on (\S+?),")
_START_S = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="keeps the trained platform (default: nowhere)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        state = options.work or Path(folder)
        train(state)
        found: list[Figure] = []
        if "latency" in options.only:
            found += latency(state, options.rate, options.seconds)
        if "swap" in options.only:
            found += swap(state)
        if "events" in options.only:
            found += events(state)
        if "reasons" in options.only:
            found += reasons(state)
        if "diversity" in options.only:
            TABLE.write_text(diversity(state), encoding="utf-8")
    earlier = read_figures(RESULTS) if RESULTS.exists() else []
    write_figures(RESULTS, merge_figures(earlier, found))
    for figure in found:
        print(
            f"{figure.figure} {figure.value:g} (goal {figure.goal}) {'' if figure.met else 'MISSED'}"
        )
    return 0


def train(state: Path) -> None:
    """Run the federation in this process and keep platform A's model, unless it is there already."""
    folder = PlatformFolder(state / PLATFORM)
    if (folder.path / "model.safetensors").exists():
        return
    started, cpu = time.monotonic(), torch.device("cpu")
    plan = with_rounds(open_plan(), ROUNDS)
    platforms = {}
    for name in NAMES:
        data = state / name / "data"
        try:
            prepared = open_prepared(data)
        except DataError:
            prepared = prepare(open_source(DATA, name), into=data, now=datetime.now(UTC))
        platforms[name] = Platform(name=name, data=DATA, prepared=prepared)
    datasets = {n: load_dataset(p.prepared, plan.model, device=cpu) for n, p in platforms.items()}
    trained = LocalEngine(at_once=1, evaluate_every=0, secure=False)(plan, platforms, datasets)
    network, _ = Layout(plan.model).unpack(trained.final, cpu)
    shared = SharedModel(plan=plan, network=network, statistics=trained.validation)
    mixtures = Weighing(datasets[PLATFORM], plan.training, None).against(shared)
    received = Received(
        plan=plan,
        run=b"benchmark",
        round=plan.federation.rounds,
        vector=trained.final,
        validation=trained.validation,
        finished=True,
    )
    kept = Kept(platform=PLATFORM, split=datasets[PLATFORM].split, received=received)
    personal = Personal(tensors={}, statistics=None, mixtures=mixtures)
    with folder.held():
        folder.save_received(kept)
        folder.save_trained(Trained(kept=kept, personal=personal))
    print(
        f"trained in {time.monotonic() - started:.0f} s; served: {', '.join(mixtures.served.names)}"
    )


@contextmanager
def served(state: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The service in a process of its own, and its gRPC address."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "clients.platform", "serve", "--id", PLATFORM),
            *("--state", str(state), "--grpc-port", "0", "--http-port", "0"),
            *("--rate", "1e6", "--burst", "1e6"),
        ],
        cwd=HERE.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )
    started = time.monotonic()
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if found := _SERVES.search(line):
                print(f"{line.strip()} ({time.monotonic() - started:.0f} s)")
                threading.Thread(target=child.stdout.read, daemon=True).start()
                yield child, found.group(1)
                return
            print(line.strip())
        raise SystemExit("the service did not start")
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


async def offered(
    address: str, users: list[str], rate: float, until: object
) -> tuple[list[float], int]:
    """Send Recommend on schedule until `until(seconds, versions)`; seconds of each, and failures."""
    latencies: list[float] = []
    failures, versions, pending = 0, set(), set()
    random = np.random.default_rng(5)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.RecommenderStub(channel)

        async def one(due: float, user: str) -> None:
            nonlocal failures
            try:
                reply = await stub.Recommend(pb.RecommendRequest(user_id=user, k=20), timeout=20)
                versions.add(reply.model)
                failures += len(reply.items) != 20
            except grpc.RpcError:
                failures += 1
            latencies.append(time.perf_counter() - due)

        for user in users[:50]:  # connections, caches of the machine
            await one(time.perf_counter(), user)
        latencies.clear()
        started = time.perf_counter()
        for number in itertools.count():
            due = started + number / rate
            if until(due - started, versions):  # type: ignore[operator]
                break
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.ensure_future(one(due, users[int(random.integers(len(users)))]))
            pending.add(task)
            task.add_done_callback(pending.discard)
        while pending:
            await asyncio.wait(set(pending))
    return latencies, failures


def latency(state: Path, rate: float, seconds: float) -> list[Figure]:
    users = users_of(state)
    with served(state) as (_child, address):
        done = offered(address, users, rate, lambda passed, _versions: passed >= seconds)
        found, failures = asyncio.run(done)
    at = {p: float(np.percentile(found, p)) * 1e3 for p in (50, 90, 99, 99.9)}
    # A call that failed is among them with the time until it was given up.
    print(f"{len(found)} calls, {failures} failed; ms: {at}")
    return [figure("serve.p99_ms_cj_200", at[99], "<=25")]


def swap(state: Path) -> list[Figure]:
    """The model's file is replaced twice under load, as a finished run replaces it."""
    folder, total = PlatformFolder(state / PLATFORM), 0
    path = folder.path / "model.safetensors"
    with served(state) as (_child, address):
        for turn in range(2):
            copy = path.with_name("model.safetensors.copy")
            shutil.copy(path, copy)
            copy.replace(path)
            wanted = version_on_disk(folder)
            started = time.monotonic()

            def until(passed: float, versions: set[str], wanted: str = wanted) -> bool:
                return wanted in versions or passed > 600

            found, failures = asyncio.run(offered(address, users_of(state), 100.0, until))
            total += failures
            p99 = float(np.percentile(found, 99)) * 1e3
            seconds = time.monotonic() - started
            print(f"take-over {turn + 1}: {len(found)} calls in {seconds:.0f} s, p99 {p99:.1f} ms")
            if seconds > 600:
                raise SystemExit("the new model was not taken over")
    return [figure("serve.swap_failures", total, "<=0")]


def events(state: Path, kills: int = 3, callers: int = 4) -> list[Figure]:
    """Kill the service under a stream of events; count acknowledged ones that are not on the disk."""
    path, acknowledged = state / PLATFORM / "events.sqlite", set()
    for number in ("", "-wal", "-shm"):
        path.with_name(path.name + number).unlink(missing_ok=True)
    users, item = users_of(state), items_of(state)[0]
    for turn in range(kills):
        with served(state) as (child, address), grpc.insecure_channel(address) as channel:
            stub, lock = pb_grpc.RecommenderStub(channel), threading.Lock()

            def send(caller: int, stub=stub, turn=turn, lock=lock) -> None:
                for number in itertools.count():
                    request = pb.RecordEventRequest(
                        user_id=users[number % len(users)],
                        item_id=item,
                        event="view",
                        event_id=f"{turn}-{caller}-{number}",
                    )
                    try:
                        reply = stub.RecordEvent(request, timeout=20)
                    except grpc.RpcError:
                        return
                    with lock:
                        acknowledged.add((request.event_id, reply.number))

            threads = [threading.Thread(target=send, args=(caller,)) for caller in range(callers)]
            for thread in threads:
                thread.start()
            time.sleep(3 + turn / 3)
            child.send_signal(signal.SIGKILL)
            child.wait(20)
            for thread in threads:
                thread.join(30)
    kept = {(event.event_id, event.number) for event in read_events(path)}
    lost = len(acknowledged - kept)
    print(f"{kills} kills: {len(acknowledged)} events acknowledged, {len(kept)} kept, {lost} lost")
    for number in ("", "-wal", "-shm"):
        path.with_name(path.name + number).unlink(missing_ok=True)
    return [figure("serve.events_lost", lost, "<=0")]


def reasons(state: Path, users: int = 200, items: int = 3, named: int = 5) -> list[Figure]:
    """Sums of parts beside scores; and scores without what is named beside those without other items."""
    model = load_model(PlatformFolder(state / PLATFORM), PLATFORM)
    random, worst, gains = np.random.default_rng(11), 0.0, []
    rows = random.choice(len(model.histories), users, replace=False)
    for row in rows.tolist():
        past = model.past(model.histories.user_ids[row], [])
        evidence = score(model, past)
        # Items that are new to her: an item's own repeats would be gone with it.
        new = np.where(evidence.count > 0, -np.inf, evidence.scores)
        for place, column in enumerate(np.argsort(-new, kind="stable")[:items].tolist()):
            found = explain(model, evidence, column, named)
            worst = max(worst, abs(found.explained - float(evidence.scores[column])))
            gone = [model.items.index[carrier.item_id] for carrier in found.carriers]
            others = np.setdiff1d(past.items, gone)
            if place == 0 and len(gone) == named and len(others) >= named:
                drawn = random.choice(others, named, replace=False).tolist()
                gains.append(_fall(model, past, column, gone) - _fall(model, past, column, drawn))
    mean, error = float(np.mean(gains)), float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    print(f"parts miss their score by {worst:.2e} at most, over {users} users x {items} items")
    print(
        f"removing {named} named items lowers a score by {mean:.3f} ± {error:.3f} more ({len(gains)})"
    )
    return [
        figure("use.reason_completeness_error", worst, "<=0.0001"),
        figure("use.deletion_gain_low", mean - 1.96 * error, ">0"),
    ]


def diversity(state: Path, k: int = 20, most: int = 400) -> str:
    """Lists of the test weeks' users along the knob, as of the day before them; a Markdown table."""
    folder = PlatformFolder(state / PLATFORM)
    trained = folder.load_trained()
    assert trained is not None
    model_config, cpu = trained.received.plan.model, torch.device("cpu")
    dataset = load_dataset(open_prepared(folder.data), model_config, device=cpu)
    day, end = dataset.split.test, dataset.split.end
    model = live_model(dataset, trained, platform=PLATFORM, version="test weeks", day=day)
    users = active_users(dataset.index, day)
    taken = dataset.taken(users, model.candidates, day, end)
    users, taken = users[taken.any(axis=1)][:most], taken[taken.any(axis=1)][:most]
    features = category_features(model.categories[item] for item in model.candidates)
    tail = np.argsort(-model.popularities["own popularity"])[len(model.candidates) // 5 :]
    lines = [
        f"# Lists of {k} along the diversity knob",
        "",
        f"Complete Journey, platform {PLATFORM}, {len(users)} users of the test weeks, "
        f"{len(model.candidates)} candidates. Long tail: all but the fifth that is taken most.",
        "",
        f"| method | knob | nDCG@{k} | intra-list diversity | coverage | long-tail share |",
        "|---|---|---|---|---|---|",
    ]
    for method in ("dpp", "mmr"):
        for knob in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0):
            service, lists = Service(model, [], np.random.default_rng(0)), []
            for user in users.tolist():
                name = dataset.histories.user_ids[user]
                call = RecommendCall(user_id=name, k=k, diversity=knob, method=method)
                rows = [model.items.index[item.item_id] for item in service.recommend(call).items]
                lists.append(model.column[rows])
            ranked, wanted = np.array(lists), sparse.csr_matrix(taken)
            gain = accuracy(hits(ranked, wanted), taken.sum(axis=1), k)[f"ndcg@{k}"].mean()
            spread = np.nanmean(intra_list(ranked, features))
            share, wide = np.isin(ranked, tail).mean(), coverage(ranked, len(model.candidates))
            lines.append(
                f"| {method} | {knob:g} | {gain:.4f} | {spread:.3f} | {wide:.3f} | {share:.3f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _fall(model: LiveModel, past: object, column: int, gone: list[int]) -> float:
    whole = score(model, past).scores[column]  # type: ignore[arg-type]
    return float(whole - score(model, past.without(gone)).scores[column])  # type: ignore[attr-defined]


def users_of(state: Path) -> list[str]:
    users = open_prepared(state / PLATFORM / "data").interactions().select("user_id").unique()
    return sorted(users.collect()["user_id"].to_list())


def items_of(state: Path) -> list[str]:
    return open_prepared(state / PLATFORM / "data").catalogue()["item_id"].to_list()


def figure(name: str, value: float, goal: str) -> Figure:
    return Figure(figure=name, value=float(value), goal=goal, command=COMMAND)


if __name__ == "__main__":
    sys.exit(main())
