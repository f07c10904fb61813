"""What we rely on in Flower, private parts included: these fail when a new version changes one."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting_platform import make_handler

from clients import flower as platform_side
from clients import records as platform_records
from crossrec_model.config import Plan
from crossrec_model.parameters import initial_vector
from crossrec_model.wire import messages as wire
from server import flower as coordinator_side
from server import records as coordinator_records
from server.checkpoint import CheckpointStore
from simulations.grid import InProcessGrid
from simulations.sums import identities_for, sums_under

ROOT = Path(__file__).parents[2]


def _parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_version_is_pinned_alike_everywhere() -> None:
    pinned = coordinator_records.FLOWER_VERSION
    assert platform_records.FLOWER_VERSION == pinned == importlib.metadata.version("flwr")
    assert f'"flwr=={pinned}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("adapter", ["server.flower", "clients.flower"])
def test_another_version_is_refused_with_the_remedy(adapter: str) -> None:
    script = (
        "import importlib.metadata as m, sys\n"
        "m.version = lambda name: '9.9.9'\n"
        "from crossrec_model.errors import ConfigError\n"
        "try:\n"
        f"    import {adapter}\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "    sys.exit('flwr' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "flwr 9.9.9 is installed, crossrec needs exactly 1.41.0" in done.stdout
    assert "pip install flwr==1.41.0" in done.stdout


def test_importing_an_adapter_warns_of_nothing_and_writes_nothing(tmp_path: Path) -> None:
    script = "import server.flower, clients.flower, simulations.grid"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_state_has_the_calls_that_the_link_makes() -> None:
    state = coordinator_side.Link()._state
    expected = {
        "create_run": 8,
        "get_run_info": None,
        "claim_task": 1,
        "get_task_by_token": 1,
        "activate_task": 1,
        "finish_task": 3,
        "delete_messages": 1,
    }
    for name, count in expected.items():
        names = _parameters(getattr(state, name))
        assert count is None or len(names) >= count, (name, names)
    assert _parameters(state.delete_messages) == ["message_ins_ids"]
    order = _parameters(state.create_run)[:8]
    assert order == [
        "fab_id",
        "fab_version",
        "fab_hash",
        "override_config",
        "federation_id",
        "federation_config",
        "flwr_aid",
        "primary_task_type",
    ]


def test_the_runtime_calls_take_request_state_and_task() -> None:
    handlers = coordinator_side.runtime_handlers
    for call in (handlers.push_messages, handlers.pull_messages):
        assert _parameters(call) == ["request", "state", "task"]


def test_the_store_is_built_as_the_link_takes_pieces_out_of_it() -> None:
    state = coordinator_side.Link()._state
    store = state.object_store
    assert type(state) is coordinator_side.InMemoryLinkState
    assert type(store) is coordinator_side.InMemoryObjectStore
    assert isinstance(state.message_ins_id_to_message_res_id, dict)
    # Re-entrant locks: a piece is taken under both, while Flower's own calls lock again.
    with state._lock_object_push_sessions, state._lock_object_push_sessions:
        assert "_lock_object_push_sessions" in inspect.getsource(state.preregister_object_tree)
    with store.lock_store, store.lock_store:
        assert _parameters(state.get_object) == ["run_id", "object_id"]
        assert _parameters(state.store_object)[2:] == ["object_id", "object_content"]
    record = coordinator_records.to_record((bytes(10),))
    with coordinator_side.no_object_id_recompute():
        tree = coordinator_side.get_object_tree(record)
        objects = coordinator_side.get_all_nested_objects(record)
    assert store.preregister(1, tree) == list(objects)
    for name in objects:
        entry = store.store[name]
        assert (entry.content, entry.is_available) == (b"", False)
        assert entry.ref_count == (name != tree.object_id)
        store.put(name, objects[name].deflate())
        assert entry.is_available
    # A piece that was taken is asked for again when another message has the same one.
    piece = next(iter(objects))
    store.store[piece].content, store.store[piece].is_available = b"", False
    assert store.preregister(1, tree) == [piece]
    store.delete(tree.object_id)
    assert len(store) == 0


def test_flower_keeps_the_pieces_that_we_cut() -> None:
    head, numbers = b"head", np.arange(3 << 20, dtype=np.uint32)
    record = coordinator_records.to_record((head, b"", memoryview(numbers)))
    with coordinator_side.no_object_id_recompute():
        objects = coordinator_side.get_all_nested_objects(record)
    contents = {name: thing.deflate() for name, thing in objects.items()}
    assert sum(map(len, contents.values())) < numbers.nbytes + 4096
    # Flower itself reads it as the concatenation, as in a company's own federation.
    inflated = coordinator_records.inflate_object_from_contents(record.object_id, contents)
    expected = head + numbers.tobytes()
    assert coordinator_records.from_record(inflated) == expected
    assert coordinator_records.from_record(record) == expected


def test_the_settings_start_no_other_interface() -> None:
    settings = coordinator_side._settings()
    assert settings.isolation == "process"
    assert settings.health_server_address is settings.fleet_api_address is None
    application = coordinator_side.create_app(settings, coordinator_side.SuperLinkLifespan)
    lifespan = application.state.superlink_lifespan
    lifespan.startup()
    assert lifespan.grpc_servers == []
    assert lifespan.superexec_process is None
    lifespan.shutdown()


def test_records_keep_bytes_and_refuse_everything_else() -> None:
    payload = bytes(range(256)) * 100
    record = coordinator_records.to_record(payload)
    assert coordinator_records.from_record(record) == payload
    record_dict = coordinator_side.RecordDict
    assert coordinator_records.from_record(record_dict({})) is None
    pickled = coordinator_records.ArrayRecord([np.zeros(3)])
    assert coordinator_records.from_record(record_dict({"crossrec": pickled})) is None


def test_a_record_of_sixteen_mebibytes_is_cut_into_pieces_of_two() -> None:
    record = coordinator_records.to_record(bytes((16 << 20) + 1))
    array = next(iter(record.array_records["crossrec"].values()))
    pieces = array.children
    assert pieces is not None
    # Equal pieces have one name, so zeros give two: the full ones and the shorter last.
    assert sorted(len(piece.deflate()) >> 20 for piece in pieces.values()) == [0, 2]


def test_both_apps_are_ordinary_flower_apps(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("[federation]\nrounds = 3\n", encoding="utf-8")
    dimension = len(initial_vector(Plan.from_toml(plan)))
    identities, signed = identities_for("ABC")
    (tmp_path / "roster.json").write_bytes(signed.to_json())
    sums = sums_under(identities, signed)
    grid = InProcessGrid(
        {n: make_handler(n, dimension, sealer_for=sums.sealers[n]) for n in identities}
    )
    context = coordinator_side.Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=coordinator_side.RecordDict(),
        run_config={
            "plan": str(plan),
            "state": str(tmp_path / "state"),
            "roster": str(tmp_path / "roster.json"),
        },
    )
    coordinator_side.app(grid=grid, context=context)
    grid.close()
    last = CheckpointStore(tmp_path / "state").latest()
    assert last is not None
    assert (last.round, len(last.parameters)) == (3, dimension)


def test_the_client_app_builds_its_platform_from_the_node_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, str]] = []

    class Module:
        @staticmethod
        def handler_from(settings: dict[str, str]) -> Any:
            asked.append(settings)
            return make_handler(settings["id"], 8)

    monkeypatch.setitem(sys.modules, "clients.platform", Module)
    monkeypatch.setattr(platform_side, "_handlers", {})
    context = platform_side.Context(
        run_id=1,
        node_id=7,
        node_config={"id": "Q", "data": "/d"},
        state=platform_side.RecordDict(),
        run_config={},
    )
    courier = coordinator_side.GridCourier(InProcessGrid({}))
    for _ in range(2):
        hello = coordinator_records.to_record(wire.encode(wire.Hello(session=bytes(16))))
        message = courier._message(coordinator_side.NodeId(7), hello)
        reply = platform_side.app(message=message, context=context)
        payload = coordinator_records.from_record(reply.content)
        assert payload is not None
        assert wire.decode_as(wire.HelloReply, payload).platform == "Q"
    assert asked == [{"id": "Q", "data": "/d"}]
    components = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert json.dumps("server.flower:app") in components
    assert json.dumps("clients.flower:app") in components
