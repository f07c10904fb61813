"""The coordinator's only contact with Flower: a courier over its grid, and its link in our process.

Flower gives transport, node identity and run state; it carries our bytes and never looks inside.
Its link runs here rather than in programs of its own, because those leave control interfaces open
and ship code to the platforms. That takes private parts of Flower, so its version is pinned exactly
and `tests/transport/test_flower_contract.py` fails loudly when one of them changes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from crossrec_model.config import Plan
from crossrec_model.errors import FederationError
from crossrec_model.secagg.node_pass import TOLERANCE_S
from crossrec_model.wire.pieces import Frame, Payload
from server.checkpoint import CheckpointStore, state_folder
from server.courier import Arrivals, Loss, Lost, NodeId, arrivals
from server.doorkeeper import Doorkeeper
from server.federation import RunOptions, coordinate, starting_point
from server.gate import Application, Gate
from server.linking import PostOffice
from server.records import from_record, paths_to, to_message, to_payload, to_record
from server.rosters import read_roster

with warnings.catch_warnings():
    # Flower's typer imports a name from click that click 8.4 calls deprecated.
    warnings.filterwarnings("ignore", r"'click\.", DeprecationWarning)
    from flwr.app import Context, Message, Metadata, RecordDict
    from flwr.app.message import make_message, remove_content_from_message
    from flwr.app.message.arraychunk import ArrayChunk
    from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode, SubStatus
    from flwr.common.serde import message_to_proto
    from flwr.proto import runtime_pb2
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.serverapp import Grid, ServerApp
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
    from flwr.supercore.inflatable.inflatable_object import (
        InflatableObject,
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.grid import HttpGrid
    from flwr.superlink.main import create_app
    from flwr.superlink.routers.fleet import node_auth
    from flwr.superlink.servicer.runtime import runtime_handlers

# Flower allows a platform's clock to be 300 s behind but only 5 s ahead; our own door allows both 300 s.
setattr(node_auth, "SYSTEM_TIME_TOLERANCE", TOLERANCE_S)  # noqa: B010
#: One type for all our messages: what they are stands inside.
MESSAGE_TYPE: Final = "train"
#: Flower's two intervals, and a little for time that is rounded.
_INTERVALS: Final = 2.1
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_TIME_TO_LIVE_S: Final = 7 * 86_400.0
#: First and longest pause, in seconds, before a piece that has not come is looked for again.
PIECE_POLL_S: Final = (0.002, 0.25)
_LOG = logging.getLogger("crossrec.coordinator")


class GridCourier:
    """A `Courier` over any Flower grid: our own link, a simulation, or a company's federation."""

    #: A waiter polls at 2% of the time it has waited, between these bounds (seconds).
    POLL_S: Final = (0.01, 0.25)

    def __init__(
        self,
        grid: Grid,
        withdraw: Callable[[Iterable[str]], None] = lambda _ids: None,
        owner: Callable[[NodeId], str | None] = lambda _node: None,
    ) -> None:
        self._grid, self._withdraw, self.owner = grid, withdraw, owner
        self._serial = 0

    def nodes(self) -> dict[NodeId, float]:
        """Return the nodes online; a mark is the time until which Flower counts a node as online.

        Flower waits for two heartbeat intervals; one is enough, as our platforms send three in it.
        A node that counts for longer was heard before the clock was set back: its next heartbeat,
        seconds away, tells whether it is there.
        """
        now = time.time()
        return {
            NodeId(node.node_id): node.online_until
            for node in self._grid.get_nodes()
            if _is_heard(node.online_until - now, node.heartbeat_interval)
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
        with no_object_id_recompute():
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


def _is_heard(left_s: float, interval_s: float) -> bool:
    """Whether a node that counts as online for so long was heard within an interval, as of now."""
    # Without an interval there are no heartbeats: a grid in this process.
    return left_s > interval_s and (not interval_s or left_s < _INTERVALS * interval_s)


def _opened(reply: Message) -> Payload | Lost:
    if reply.has_error():
        gone = reply.error.code in {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE}
        return Lost(Loss.GONE if gone else Loss.FAILED)
    payload = from_record(reply.content)
    return Lost(Loss.FAILED) if payload is None else payload


class _InProcessGrid(HttpGrid):
    """Flower's grid without HTTP, and without its copies of what is sent and what arrives."""

    def __init__(self, state: InMemoryLinkState, run: Any, task: Any) -> None:
        super().__init__(token="in-process")  # noqa: S106 - never sent: there is no HTTP
        self._state, self._task, self._run_id = state, task, run.run_id
        self._arriving: dict[str, str] = {}
        self.set_run(run)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes online."""
        return self._state.get_node_info(node_ids=list(self._state.get_nodes(self._run_id)))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, one piece after the other; return their ids."""
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
        request = runtime_pb2.PushAppMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(m)) for m in messages],
            message_object_trees=[get_object_tree(message) for message in messages],
        )
        response = runtime_handlers.push_messages(request, self._state, self._task)
        objects: dict[str, InflatableObject] = {}
        for message in messages:
            objects |= get_all_nested_objects(message)
        # The pieces last: a node needs to know first how they belong together.
        for name in sorted(response.objects_to_push, key=lambda n: type(objects[n]) is ArrayChunk):
            content, session = objects[name].deflate(), response.session_id
            if not self._state.store_object(self._run_id, session, name, content):
                # A node may say at any time that it has its message, and so lose the rest of it.
                _LOG.warning("a message was dropped while it was sent")
        return list(response.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have begun to arrive, each waited for until it is whole."""
        request = runtime_pb2.PullAppMessagesRequest(message_ids=message_ids)
        response = runtime_handlers.pull_messages(request, self._state, self._task)
        replies = []
        for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            message_id, sent = proto.metadata.message_id, proto.metadata.reply_to_message_id
            self._arriving[sent] = message_id
            try:
                replies.append(self._arrived(tree))
            finally:
                self._arriving.pop(sent, None)
                self._state.object_store.delete(message_id)
        return replies

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Forget messages and their replies, and the bytes of both; waiting for them ends."""
        sent = set(message_ids)
        known = (self._state.message_ins_id_to_message_res_id, self._arriving)
        replies = {replies[name] for replies in known for name in sent if name in replies}
        self._state.delete_messages(sent)
        for name in sent | replies:
            self._state.object_store.delete(name)

    def _arrived(self, tree: ObjectTree) -> Message:
        """Return a reply whose frame lies in one buffer, filled as its pieces come.

        The message itself is the last object that a platform sends: then all is there.
        """
        paths = list(paths_to(tree))
        heads = {path[-1]: self._awaited(path[-1], self._get) for path in paths[1:]}
        take = partial(self._take, max(paths, key=len)[1:])
        fetch = partial(map, partial(self._awaited, get=take))
        payload = to_payload(heads, fetch)
        heads[tree.object_id] = self._awaited(tree.object_id, self._get)
        return to_message(tree.object_id, heads, payload)

    def _awaited(self, name: str, get: Callable[[str], bytes | None]) -> bytes:
        """Return an object's content as soon as it is there."""
        pause = PIECE_POLL_S[0]
        while not (content := get(name)):
            if content is None:
                raise FederationError("a reply was withdrawn, or its sender stopped half-way")
            time.sleep(pause)
            pause = min(2 * pause, PIECE_POLL_S[1])
        return content

    def _get(self, name: str) -> bytes | None:
        return self._state.get_object(self._run_id, name)

    def _take(self, above: tuple[str, ...], name: str) -> bytes | None:
        """Return a piece and leave none in the link, unless another message shares it."""
        store = cast(InMemoryObjectStore, self._state.object_store)
        # Flower registers a message's objects under the first lock: none becomes shared meanwhile.
        with self._state._lock_object_push_sessions, store.lock_store:
            content = self._get(name)
            owned = all(o in store.store and store.store[o].ref_count == 1 for o in (*above, name))
            if content and owned:
                store.store[name].content, store.store[name].is_available = b"", False
        return content


class Link:
    """Flower's link between coordinator and platforms, inside this process.

    Its state is in memory only: no platform's update ever lies on the coordinator's disk, and a
    round costs a third of what it costs over Flower's SQLite tables. After a restart platforms
    register anew by themselves; what must outlive a restart is in our checkpoints.
    """

    def __init__(
        self,
        doorkeeper: Doorkeeper | None = None,
        notice: Callable[[], bytes] | None = None,
        post: PostOffice | None = None,
    ) -> None:
        application = create_app(_settings(), SuperLinkLifespan)
        self._state: InMemoryLinkState = application.state.linkstate_factory.state()
        self._doorkeeper = doorkeeper
        #: What the network may reach; an ASGI application.
        self.application: Application = Gate(application, doorkeeper, notice, post)

    @contextmanager
    def courier(self) -> Iterator[GridCourier]:
        """Open a run for the platforms' messages, and close it at the end."""
        run, task = self._start_run()
        try:
            grid = _InProcessGrid(self._state, run, task)
            yield GridCourier(grid, grid.withdraw, self._owner)
        finally:
            self._state.finish_task(task.task_id, SubStatus.STOPPED, "")

    def _owner(self, node: NodeId) -> str | None:
        """Return the platform that vouches for a node's key; None without a doorkeeper.

        It is "" where none does any more: then the node may speak for nobody.
        """
        if self._doorkeeper is None:
            return None
        found = list(self._state.get_node_info(node_ids=[node]))
        return (self._doorkeeper.platform_of(found[0].public_key) or "") if found else ""

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
        # Flower ends a run whose task is not heard for a minute of the wall clock, for good: a clock
        # that is set, or a machine that slept, must not do that. The task is this process.
        self._state.task_token_store[task.task_id].active_until = _NEVER
        return run, task


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
        start.plan.check_rounds()
        coordinate(GridCourier(grid), state, start, RunOptions(platforms=platforms), roster)
