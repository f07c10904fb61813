"""A Flower grid without a network: many platforms in this process, some at once."""

from __future__ import annotations

import itertools
import time
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

with warnings.catch_warnings():
    # Flower's typer imports a name from click that click 8.4 calls deprecated.
    warnings.filterwarnings("ignore", r"'click\.", DeprecationWarning)
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import ErrorCode
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run

from clients.connection import Handler
from clients.flower import client_app
from crossrec_model.errors import CrossrecError

#: Flower keeps 1 for the coordinator.
FIRST_NODE = 2


class LocalGrid(Grid):
    """A grid whose nodes are reached by calls; how a call is made is left to the subclass.

    A platform's mistake, which would end its process, is raised from `get_nodes`, so that it ends
    the simulation with the same line.
    """

    def __init__(self, nodes: Iterable[int]) -> None:
        self._run = Run.create_empty(run_id=1)
        self._online = set(nodes)
        self._errors: list[CrossrecError] = []
        self._numbers = itertools.count(1)
        self._replies: dict[str, tuple[Message, Future[Message]]] = {}

    @abstractmethod
    def _submit(self, node: int, message: Message) -> Future[Message]:
        """Start one platform's work on a message."""

    def _ended(self, node: int, error: CrossrecError | None) -> None:
        """Take a node that gave its last answer off the grid."""
        self._online.discard(node)
        if error is not None:
            self._errors.append(error)

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to one node (Flower's older way of making one)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes online."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes online; raises the error of a platform that ended with one."""
        if self._errors:
            raise self._errors[0]
        end = time.time() + 60.0
        return [NodeInfo(node_id=node, online_until=end) for node in sorted(self._online)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start work on every message and return their ids."""
        ids = []
        for message in messages:
            message_id = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = message_id
            work = self._submit(message.metadata.dst_node_id, message)
            self._replies[message_id] = (message, work)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are ready."""
        return [
            self._reply(message_id)
            for message_id in message_ids
            if message_id in self._replies and self._replies[message_id][1].done()
        ]

    def _reply(self, message_id: str) -> Message:
        message, work = self._replies.pop(message_id)
        if (error := work.exception()) is None:
            return work.result()
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code=code, reason=type(error).__name__), reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for all replies, `timeout` seconds at most."""
        pending = set(self.push_messages(messages))
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while pending and time.monotonic() < end:
            replies += self.pull_messages(pending)
            pending -= {reply.metadata.reply_to_message_id for reply in replies}
            time.sleep(0.001)
        return replies


class InProcessGrid(LocalGrid):
    """Platforms as threads of this process; `at_once` of them work at the same time."""

    def __init__(self, handlers: Mapping[str, Handler], *, at_once: int = 1) -> None:
        numbered = dict(enumerate(handlers.values(), start=FIRST_NODE))
        super().__init__(numbered)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="platform")
        self._applications = {n: self._application(n, handle) for n, handle in numbered.items()}

    def _application(self, node: int, handle: Handler) -> ClientApp:
        return client_app(handle, lambda error: self._ended(node, error))

    def _submit(self, node: int, message: Message) -> Future[Message]:
        context = Context(
            run_id=self.run.run_id,
            node_id=node,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        return self._pool.submit(self._applications[node], message=message, context=context)

    def close(self) -> None:
        """Wait for work that is under way, and end the threads."""
        self._pool.shutdown(cancel_futures=True)
