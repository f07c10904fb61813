"""A platform's only contact with Flower: its fleet interface carries bytes to our own handler.

Only code installed here runs: a bundle is never asked for. Flower's own connection loop is not
used, since it ends the process by itself and swallows errors; its HTTP client is, which is a
private part, so the version is pinned exactly and
`tests/transport/test_flower_contract.py` fails loudly when one of them changes.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from clients.connection import (
    End,
    Endpoint,
    Handler,
    NotThereError,
    Report,
    abreast,
    answer,
    fetch_notice,
    pause_after,
    quiet_libraries,
    wait_for_coordinator,
)
from clients.passport import Passport, refusal
from clients.records import from_record, paths_to, to_message, to_payload, to_record
from crossrec_model.errors import ConnectionRefusedByPeerError, CrossrecError, WireError
from crossrec_model.wire.pieces import Frame, Payload

with warnings.catch_warnings():
    # Flower's typer imports a name from click that click 8.4 calls deprecated.
    warnings.filterwarnings("ignore", r"'click\.", DeprecationWarning)
    from flwr.app import Context, Message, RecordDict
    from flwr.app.message import remove_content_from_message
    from flwr.app.message.arraychunk import ArrayChunk
    from flwr.clientapp import ClientApp
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto import fleet_pb2 as fleet
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import (
        make_pull_object_fn_protobuf,
        make_push_object_fn_protobuf,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectPushError,
        pull_objects,
    )
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

#: The shortest interval that Flower allows; a node counts as gone after twice as long.
HEARTBEAT_S: Final = 10.0
#: Heartbeats go out more often than promised, so that one lost on the way costs nothing.
BEAT_EVERY_S: Final = 3.0
#: A call that fails on the way is repeated for this long before the connection counts as lost.
PATIENCE_S: Final = 10.0
GOODBYE_S: Final = 2.0
#: The coordinator's header of a refusal: why, in a word.
REFUSED: Final = "crossrec-refused"
_LOG = logging.getLogger("crossrec.platform")
Response = TypeVar("Response")


class _LostError(Exception):
    """The connection is gone, or the coordinator does not know this node any more."""


def client_app(handle: Handler, ended: Callable[[CrossrecError | None], None]) -> ClientApp:
    """Return an ordinary Flower ClientApp around a handler of frames.

    `ended` is called when an answer was the platform's last, with the error that ended it if any.
    """
    application = ClientApp()

    @application.train()
    def on_message(message: Message, _context: Context) -> Message:
        reply = answer(handle, _frame(message))
        if reply.last:
            ended(reply.error)
        return _reply(reply.payload, message)

    return application


def _frame(message: Message) -> Payload:
    """Return the bytes in a message, none if it is not one of ours."""
    return from_record(message.content) or b""


def _reply(frame: Frame, message: Message) -> Message:
    return Message(to_record(frame), reply_to=message)


#: For a company's own Flower federation; see `tool.flwr.app.components` in pyproject.toml.
app = ClientApp()
_handlers: dict[int, Handler] = {}


@app.train()
def on_message(message: Message, context: Context) -> Message:
    """Answer one frame with the platform that the node's configuration describes."""
    if context.node_id not in _handlers:
        platform = importlib.import_module("clients.platform")
        settings = {name: str(value) for name, value in context.node_config.items()}
        _handlers[context.node_id] = platform.handler_from(settings)
    reply = answer(_handlers[context.node_id], _frame(message))
    if reply.error is not None:
        _LOG.error("%s", reply.error)
    return _reply(reply.payload, message)


def serve(
    handle: Handler,
    *,
    address: str,
    ca: Path | None = None,
    insecure: bool = False,
    connect_timeout_s: float = 60.0,
    report: Report = print,
    passport: Passport | None = None,
) -> None:
    """Answer the coordinator's frames with `handle` until the run is finished.

    `passport` vouches for each session's key; a coordinator of ours lets nobody in without one.

    A coordinator that goes away is waited for again, `connect_timeout_s` seconds at a time;
    `report` gets a line each time. That goes for its end, too: it waits for those who have not said that
    they have kept the final model. Blocks; KeyboardInterrupt passes through after a goodbye.

    Raises:
        ConfigError: for an address or CA file that can't be used.
        ConnectionRefusedByPeerError: if the coordinator is not there, is not the one that `ca`
            vouches for, or refuses this platform.
        CrossrecError: whatever `handle` raised of that kind; the coordinator got a code.
    """
    quiet_libraries()
    endpoint = Endpoint(address=address, ca=ca, insecure=insecure)
    end = End()
    application = client_app(handle, end)
    try:
        while not end.over:
            wait_for_coordinator(endpoint, timeout_s=connect_timeout_s, report=report)
            _connect(endpoint, application, end, report, passport)
    except CrossrecError:
        if not end.reached:
            raise
    if end.error is not None:
        raise end.error


def _connect(
    endpoint: Endpoint,
    application: ClientApp,
    end: End,
    report: Report,
    passport: Passport | None,
) -> None:
    """Answer until the end or until the connection is lost, which is reported."""
    try:
        if passport is not None and passport.notice is not None:
            notice = fetch_notice(endpoint, passport.introduction())
            if notice is not None:
                passport.notice(notice)
        with _session(endpoint, report, passport) as session:
            report(f"connected to the coordinator at {endpoint.address}")
            session.work(application, end)
    except (_LostError, NotThereError) as reason:
        if not end.over:
            report(f"lost the coordinator at {endpoint.address} ({reason}); reconnecting")
    except httpx.HTTPStatusError as error:
        response = error.response
        word = response.headers.get(REFUSED, str(response.status_code))
        raise ConnectionRefusedByPeerError(refusal(endpoint.address, word)) from None


def _is_refusal(error: httpx.HTTPStatusError) -> bool:
    """Whether the coordinator's door refused it, not Flower."""
    return REFUSED in error.response.headers


@contextlib.contextmanager
def _session(endpoint: Endpoint, report: Report, passport: Passport | None) -> Iterator[_Session]:
    """Register a new node for the time of the context, and keep its heart beating."""
    private, public = generate_key_pairs()
    node_key = public_key_to_bytes(public)
    headers = passport.headers(node_key) if passport else {}
    authority = endpoint.ca.read_bytes() if endpoint.ca else None
    with FleetHttpClient.from_server_address(
        endpoint.address,
        endpoint.insecure,
        authority,
        interceptors=[NodeAuthHttpInterceptor(private, public), _Headers(headers), _Unbound()],
    ) as client:
        session = _Session(client, node_key, report)
        stop = threading.Event()
        threading.Thread(target=session.beat, args=(stop,), daemon=True).start()
        try:
            yield session
        finally:
            stop.set()
            goodbye = threading.Thread(target=session.leave, daemon=True)
            goodbye.start()
            # A coordinator that hangs must not keep the user's Ctrl-C waiting.
            goodbye.join(GOODBYE_S)


class _Headers:
    """Adds the same headers to every request."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._headers)
        return call_next(context)


class _Unbound:
    """Frees a request's bytes once it is answered.

    A response and its stream hold each other, so that pieces of megabytes would pile up until the
    garbage collector finds them.
    """

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        response = call_next(context)
        response.stream = httpx.ByteStream(b"")
        return response


class _Session:
    """One registered node."""

    def __init__(self, client: FleetHttpClient, public_key: bytes, report: Report) -> None:
        self._client, self._report = client, report
        self._answer_lost = False
        self._call(client.RegisterNode, fleet.RegisterNodeFleetRequest(public_key=public_key))
        request = fleet.ActivateNodeRequest(public_key=public_key, heartbeat_interval=HEARTBEAT_S)
        self._node = Node(node_id=self._call(client.ActivateNode, request).node_id)

    def _call(self, method: Callable[[Any], Response], request: Any) -> Response:
        """Call the coordinator; repeat what fails on the way, give up on what it refuses."""
        end, pause, reported = time.monotonic() + PATIENCE_S, 0.1, False
        while True:
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status < 500 and status != httpx.codes.TOO_MANY_REQUESTS:
                    raise
                reason = f"it answered {status}"
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                # It may have got the request nevertheless.
                self._answer_lost |= not isinstance(error, httpx.ConnectError)
            if time.monotonic() + pause > end:
                raise _LostError(reason)
            if not reported:
                self._report(f"the coordinator does not answer ({reason}); trying again")
                reported = True
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def work(self, application: ClientApp, end: End) -> None:
        """Answer messages until the end is reached."""
        answered = time.monotonic()
        while not end.over:
            asked = time.monotonic()
            try:
                if self._answer_next(application):
                    answered = asked = time.monotonic()
                    end.heard = end.reached
            except httpx.HTTPStatusError as error:
                # Connecting anew tells whether it has restarted, or lets this platform in no more.
                if error.response.status_code == httpx.codes.UNAUTHORIZED or _is_refusal(error):
                    raise _LostError("it does not know this node any more") from None
                # The run that the message belonged to is over: the answer is of no use.
                _LOG.warning("an answer was not taken: %s", error)
            except (ObjectPullError, ObjectPushError) as error:
                _LOG.warning("a message was withdrawn: %s", error)
            except (WireError, ValueError) as error:
                _LOG.warning("a message could not be read: %s", error)
            now = time.monotonic()
            time.sleep(pause_after(now - answered, now - asked))

    def _answer_next(self, application: ClientApp) -> bool:
        """Answer the message that waits; return whether there was one.

        The request is let go before its reply is sent, so that never both are held twice.
        """
        # Flower hashes each piece once in this context, and again at every look outside it.
        with no_object_id_recompute():
            if (message := self._receive()) is None:
                return False
            run_id = message.metadata.run_id
            context = Context(
                run_id=run_id,
                node_id=self._node.node_id,
                node_config={},
                state=RecordDict(),
                run_config={},
            )
            reply = application(message=message, context=context)
            del message
            self._send(reply, run_id)
        return True

    def _receive(self) -> Message | None:
        """Return the next message in full, its frame in one buffer; None if there is none."""
        request, self._answer_lost = fleet.PullMessagesRequest(node=self._node), False
        response = self._call(self._client.PullMessages, request)
        if not response.messages_list:
            if self._answer_lost:
                # The coordinator hands each message out once and would wait for our answer to it.
                raise _LostError("what it said was lost on the way")
            return None
        sent, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
        run_id, message_id = sent.metadata.run_id, sent.metadata.message_id
        call = partial(self._call, self._client.PullObject)
        pull = partial(
            pull_objects,
            pull_object_fn=make_pull_object_fn_protobuf(call, self._node, run_id),
            initial_backoff=0.02,
            backoff_cap=0.5,
            max_time=60.0,
        )
        heads = pull([path[-1] for path in paths_to(tree)])
        payload = to_payload(heads, partial(abreast, lambda name: pull([name])[name]))
        message = to_message(tree.object_id, heads, payload)
        confirmation = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=message_id
        )
        self._call(self._client.ConfirmMessageReceived, confirmation)
        message.metadata.__dict__["_message_id"] = message_id
        return message

    def _send(self, reply: Message, run_id: int) -> None:
        """Send a reply; its pieces are made when their turn comes."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        # Flower's field for the seconds that the work took stays empty: they tell how much data a
        # platform has.
        request = fleet.PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
        )
        response = self._call(self._client.PushMessages, request)
        call = partial(self._call, self._client.PushObject)
        push = make_push_object_fn_protobuf(call, self._node, run_id, response.session_id)
        objects, wanted = get_all_nested_objects(reply), set(response.objects_to_push)
        order = [name for name in objects if name in wanted and name != reply.object_id]
        # The pieces late: the coordinator needs to know first how they belong together.
        order.sort(key=lambda name: type(objects[name]) is ArrayChunk)
        for _ in abreast(lambda name: push(name, objects[name].deflate()), order):
            pass
        # The message last: with it all is there, be it that other platforms sent equal pieces.
        if reply.object_id in wanted:
            push(reply.object_id, reply.deflate())

    def beat(self, stop: threading.Event) -> None:
        """Say that we live until told to stop; a failure shows in the main thread's own calls."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        while not stop.wait(BEAT_EVERY_S):
            with contextlib.suppress(httpx.HTTPError, ValueError, RuntimeError):
                self._client.SendNodeHeartbeat(request)

    def leave(self) -> None:
        """Tell the coordinator that this node goes."""
        node_id = self._node.node_id
        with contextlib.suppress(httpx.HTTPError, ValueError, RuntimeError):
            self._client.DeactivateNode(fleet.DeactivateNodeRequest(node_id=node_id))
            self._client.UnregisterNode(fleet.UnregisterNodeFleetRequest(node_id=node_id))
