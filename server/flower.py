"""The coordinator's only contact with Flower: a courier over its grid, and its link in our process.

Flower gives transport, node identity and run state; it carries our bytes and never looks inside.
Its link runs here rather than in programs of its own, because those leave control interfaces open
and ship code to the platforms. That takes private parts of Flower, so its version is pinned exactly
and `tests/transport/test_flower_contract.py` fails loudly when one of them changes.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from crossrec_model.config import Plan, check_rounds
from crossrec_model.errors import ConfigError, FederationError
from server.checkpoint import CheckpointStore, state_folder
from server.courier import Arrivals, Frame, Loss, Lost, NodeId, Payload, arrivals
from server.federation import RunOptions, coordinate, starting_point
from server.gate import Application, Gate
from server.rosters import read_roster

FLOWER_VERSION: Final = "1.41.0"
if (_installed := importlib.metadata.version("flwr")) != FLOWER_VERSION:
    raise ConfigError(
        f"flwr {_installed} is installed, crossrec needs exactly {FLOWER_VERSION}; "
        f"run: pip install flwr=={FLOWER_VERSION}"
    )
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

with warnings.catch_warnings():
    # Flower's typer imports a name from click that click 8.4 calls deprecated.
    warnings.filterwarnings("ignore", r"'click\.", DeprecationWarning)
    from flwr.app import Array, ArrayRecord, Context, Message, Metadata, RecordDict
    from flwr.app.message import make_message
    from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
    from flwr.proto import runtime_pb2
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.server.superlink.linkstate import LinkState
    from flwr.serverapp import Grid, ServerApp
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import (
        inflate_object_from_contents,
        pull_objects,
    )
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.grid import HttpGrid
    from flwr.superlink.main import create_app
    from flwr.superlink.servicer.runtime import runtime_handlers

#: One type for all our messages: what they are stands inside.
MESSAGE_TYPE: Final = "train"
_KEY, _ARRAY, _STYPE = "crossrec", "frame", "crossrec.bytes"
_TIME_TO_LIVE_S: Final = 7 * 86_400.0
_LOG = logging.getLogger("crossrec.coordinator")


def to_record(frame: Frame) -> RecordDict:
    """Wrap bytes so that Flower sends them in pieces (an array record's are cut at 5 MiB)."""
    payload = frame if isinstance(frame, bytes) else b"".join(frame)
    array = Array(dtype="uint8", shape=(len(payload),), stype=_STYPE, data=payload)
    return RecordDict({_KEY: ArrayRecord({_ARRAY: array})})


def from_record(content: RecordDict) -> bytes | None:
    """Return the bytes in a record, None if it is not one of ours. Nothing is deserialised."""
    record = content.get(_KEY)
    array = record.get(_ARRAY) if isinstance(record, ArrayRecord) else None
    return array.data if array is not None and array.stype == _STYPE else None


class GridCourier:
    """A `Courier` over any Flower grid: our own link, a simulation, or a company's federation."""

    #: A waiter polls at 2% of the time it has waited, between these bounds (seconds).
    POLL_S: Final = (0.01, 0.25)

    def __init__(
        self, grid: Grid, withdraw: Callable[[Iterable[str]], None] = lambda _ids: None
    ) -> None:
        self._grid, self._withdraw = grid, withdraw
        self._serial = 0

    def nodes(self) -> dict[NodeId, float]:
        """Return the nodes online; a mark is the time until which Flower counts a node as online.

        Flower waits for two heartbeat intervals; one is enough, as our platforms send three in it.
        """
        now = time.time()
        return {
            NodeId(node.node_id): node.online_until
            for node in self._grid.get_nodes()
            if node.online_until - now > node.heartbeat_interval
        }

    def exchange(self, payloads: Mapping[NodeId, Frame], *, timeout_s: float) -> Arrivals:
        """See `Courier.exchange`."""
        if not payloads:
            return
        sent = self._send(payloads)
        absent = [node for node in payloads if node not in sent]
        del payloads  # the link holds its own copy for as long as a node needs it
        try:
            yield from ((node, Lost(Loss.GONE)) for node in absent)
            yield from arrivals(sent, partial(self._await, sent), self.nodes, timeout_s=timeout_s)
        finally:
            # What nobody waits for any more must not be worked on later.
            self._withdraw(sent.values())

    def _send(self, payloads: Mapping[NodeId, Frame]) -> dict[NodeId, str]:
        """Push every frame; return the messages' ids, of those nodes only that took theirs."""
        # One record for one frame: a broadcast is cut and hashed once, not once a node.
        records = {id(frame): to_record(frame) for frame in payloads.values()}
        messages = [self._message(n, records[id(frame)]) for n, frame in payloads.items()]
        ids = self._grid.push_messages(messages)
        return {node: sent for node, sent in zip(payloads, ids, strict=True) if sent}

    def _message(self, node: NodeId, record: RecordDict) -> Message:
        # Flower names a message by its content, so equal ones need something that differs.
        self._serial += 1
        metadata = Metadata(
            run_id=self._grid.run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=node,
            reply_to_message_id="",
            group_id=str(self._serial),
            created_at=time.time(),
            ttl=_TIME_TO_LIVE_S,
            message_type=MESSAGE_TYPE,
        )
        return make_message(metadata=metadata, content=record)

    def _await(
        self, sent: Mapping[NodeId, str], node: NodeId, stop: threading.Event
    ) -> Payload | Lost:
        """Poll for one node's answer; a slow upload blocks only this call."""
        started = time.monotonic()
        try:
            while not stop.is_set():
                for reply in self._grid.pull_messages([sent[node]]):
                    return _opened(reply)
                low, high = self.POLL_S
                gap = min(high, max(low, 0.02 * (time.monotonic() - started)))
                stop.wait(gap * max(1.0, len(sent) / 10))
        except Exception:
            if not stop.is_set():  # else Flower may have dropped what this waiter was reading
                _LOG.exception("no answer from node %s", node)
        return Lost(Loss.FAILED)


def _opened(reply: Message) -> Payload | Lost:
    if reply.has_error():
        gone = reply.error.code in {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE}
        return Lost(Loss.GONE if gone else Loss.FAILED)
    payload = from_record(reply.content)
    return Lost(Loss.FAILED) if payload is None else payload


def _in_process(state: LinkState, task: Any) -> SimpleNamespace:
    """Return Flower's runtime interface as direct calls, under the names its HTTP client has."""
    calls = {
        "GetNodes": runtime_handlers.get_nodes,
        "PushMessages": runtime_handlers.push_messages,
        "PullMessages": runtime_handlers.pull_messages,
        "PushObject": runtime_handlers.push_object,
        "PullObject": runtime_handlers.pull_object,
        "ConfirmMessageReceived": runtime_handlers.confirm_message_received,
    }
    bound = {name: partial(call, state=state, task=task) for name, call in calls.items()}
    return SimpleNamespace(**bound)


class _InProcessGrid(HttpGrid):
    """Flower's grid without HTTP, and with short pauses while an answer's pieces arrive."""

    def __init__(self, runtime: SimpleNamespace, run: Any) -> None:
        super().__init__(token="in-process")  # noqa: S106 - never sent: there is no HTTP
        self._runtime = runtime
        self.set_run(run)

    @property
    def _runtime_client(self) -> Any:
        return self._runtime

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have begun to arrive, each waited for until it is whole."""
        run_id = self.run.run_id
        request = runtime_pb2.PullAppMessagesRequest(message_ids=message_ids)
        response = self._runtime.PullMessages(request)
        replies = []
        for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            contents = pull_objects(
                [branch.object_id for branch in iterate_object_tree(tree)],
                make_pull_object_fn_protobuf(self._runtime.PullObject, self.node, run_id),
                max_tries_per_object=None,
                max_time=None,
                initial_backoff=0.01,
                backoff_cap=0.25,
            )
            message_id = proto.metadata.message_id
            self._runtime.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self.node, run_id=run_id, message_object_id=message_id
                )
            )
            reply = inflate_object_from_contents(message_id, contents)
            if not isinstance(reply, Message):
                raise FederationError(f"a {type(reply).__name__} came where a reply was due")
            replies.append(reply)
        return replies


class Link:
    """Flower's link between coordinator and platforms, inside this process.

    Its state is in memory only: no platform's update ever lies on the coordinator's disk, and a
    round costs a third of what it costs over Flower's SQLite tables. After a restart platforms
    register anew by themselves; what must outlive a restart is in our checkpoints.
    """

    def __init__(self) -> None:
        application = create_app(_settings(), SuperLinkLifespan)
        self._state: LinkState = application.state.linkstate_factory.state()
        #: What the network may reach; an ASGI application.
        self.application: Application = Gate(application)

    @contextmanager
    def courier(self) -> Iterator[GridCourier]:
        """Open a run for the platforms' messages, and close it at the end."""
        run, task = self._start_run()
        stop = threading.Event()
        beats = threading.Thread(target=self._beat, args=(task.task_id, stop), daemon=True)
        beats.start()
        try:
            grid = _InProcessGrid(_in_process(self._state, task), run)
            yield GridCourier(grid, lambda ids: self._state.delete_messages(set(ids)))
        finally:
            stop.set()
            beats.join()
            self._state.finish_task(task.task_id, SubStatus.STOPPED, "")

    def _start_run(self) -> tuple[Any, Any]:
        """Create a run without a code bundle, and take its task for this process."""
        run_id = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        run = next(iter(self._state.get_run_info(run_ids=[run_id])), None)
        if run is None or run.primary_task_id is None:
            raise FederationError("Flower did not create a run; see the coordinator's log file")
        token = self._state.claim_task(run.primary_task_id)
        task = self._state.get_task_by_token(token) if token else None
        if task is None or not self._state.activate_task(task.task_id):
            raise FederationError("Flower did not start the run; see the coordinator's log file")
        return run, task

    def _beat(self, task_id: int, stop: threading.Event) -> None:
        """Flower ends a run whose task is not heard for a minute."""
        while not stop.wait(10.0):
            self._state.acknowledge_task_heartbeat(task_id)


def _settings() -> SuperLinkLifespanConfig:
    """Return settings that start nothing but the web application itself."""
    tls = ("certificates", "ssl_ca_certfile", "ssl_certfile", "ssl_keyfile")
    plugins = ("event_log_plugin", "fleet_event_log_plugin", "artifact_provider")
    addresses = ("health_server_address", "fleet_api_address")
    absent: dict[str, Any] = dict.fromkeys((*tls, *plugins, *addresses))
    return SuperLinkLifespanConfig(
        control_address="",
        host="",
        port=0,
        insecure=True,
        superexec_auth_secret=os.urandom(32),
        authn_plugin=NoOpControlAuthnPlugin(),
        enable_event_log=False,
        enable_supernode_auth=False,
        fleet_api_type="grpc-rere",
        simulation=False,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        runtime_dependency_install=False,
        **absent,
    )


#: For a company's own Flower federation; see `tool.flwr.app.components` in pyproject.toml.
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run on Flower's grid; its run configuration holds `roster`, maybe `state`, `plan`, `platforms`."""
    from crossrec_model.parameters import initial_vector

    settings = {name: str(value) for name, value in context.run_config.items()}
    plan = Plan.from_toml(Path(settings["plan"])) if "plan" in settings else Plan()
    roster = read_roster(Path(settings.get("roster", "roster.json")))
    least = max(plan.federation.min_platforms, roster.threshold(plan.aggregation.colluding_share))
    platforms = int(settings.get("platforms", least))
    with state_folder(Path(settings.get("state", "crossrec-state"))) as state:
        start = starting_point(CheckpointStore(state), plan, initial=initial_vector, resume=False)
        check_rounds(start.plan.federation)
        coordinate(GridCourier(grid), state, start, RunOptions(platforms=platforms), roster)
