"""Frames as Flower's records, which it sends in pieces; the coordinator's side.

The versions of Flower that we know are checked here, before it is first imported: its format of
arrays is private to it, and so are the parts of it that `server/flower.py` uses.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from crossrec_model.errors import ConfigError, WireError
from crossrec_model.wire.pieces import Frame, Payload, assemble, slices

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
    from flwr.app import Array, ArrayRecord, Message, RecordDict
    from flwr.app.message.arraychunk import ArrayChunk
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_children_ids_from_object_content,
        get_object_type_from_object_content,
    )
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

#: Objects above one another over a frame's pieces: message, records, record, array.
_LEVELS: Final = 4
_KEY, _ARRAY, _STYPE = "crossrec", "frame", "crossrec.bytes"
Fetch = Callable[[Iterable[str]], Iterable[bytes]]


def to_record(frame: Frame) -> RecordDict:
    """Wrap a frame so that Flower sends it in pieces, which share its memory."""
    pieces = slices(frame if isinstance(frame, tuple) else (frame,))
    whole = frame if isinstance(frame, bytes) else b""
    array = Array(dtype="uint8", shape=(sum(map(len, pieces)),), stype=_STYPE, data=whole)
    # Flower cuts an array once, and keeps the pieces under this name.
    array.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in map(ArrayChunk, pieces)]
    record = ArrayRecord()
    record[_ARRAY] = array
    return RecordDict({_KEY: record})


def from_record(content: RecordDict) -> Payload | None:
    """Return the bytes in a record, None if it is not one of ours. Nothing is deserialised."""
    if (array := _array(content)) is None:
        return None
    # A frame in pieces that never went through a link is still the sender's own memory.
    pieces = (cast(ArrayChunk, piece).data for _, piece in array.slice_array())
    return array.data or b"".join(pieces)


def _array(content: RecordDict) -> Array | None:
    record = content.get(_KEY)
    array = record.get(_ARRAY) if isinstance(record, ArrayRecord) else None
    return array if array is not None and array.stype == _STYPE else None


def paths_to(tree: ObjectTree, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the ids from the message down to each object that is no piece, the message's first."""
    path = (*above, tree.object_id)
    yield path
    if len(path) < _LEVELS:
        for branch in tree.children:
            yield from paths_to(branch, path)


def to_payload(heads: dict[str, bytes], fetch: Fetch) -> Payload | None:
    """Return the frame of which these objects tell, in one buffer; None if they tell of none.

    `heads` holds the contents of a message's objects but for the frame's pieces; `fetch` brings
    the contents of the pieces named, in that order, and is asked for each once.

    Raises:
        WireError: for objects that can't be read, more than one frame, or pieces that don't fit it.
    """
    with _read_strictly():
        arrays = [content for content in heads.values() if _is_array(content)]
        if len(arrays) > 1:
            raise WireError(f"message has {len(arrays)} arrays; at most 1 is allowed")
        return _payload(arrays[0], fetch) if arrays else None


def to_message(name: str, heads: dict[str, bytes], payload: Payload | None) -> Message:
    """Return the message of this object id, of which `to_payload` gave the frame.

    Raises:
        WireError: if the objects are not a message.
    """
    # Flower copies an array's bytes twice, so it gets one without any.
    empty = Array(dtype="uint8", shape=(0,), stype=_STYPE, data=b"")
    with _read_strictly():
        arrays = [n for n in heads if _is_array(heads[n])]
        objects: dict[str, Any] = dict.fromkeys(arrays, empty)
        try:
            message = inflate_object_from_contents(name, heads, objects=objects)
        except Exception as error:
            # Flower's own parsers raise whatever they come upon.
            raise WireError(f"objects are no message ({type(error).__name__})") from None
    if not isinstance(message, Message):
        raise WireError(f"{type(message).__name__} came where a message was due")
    array = _array(message.content) if message.has_content() else None
    if array is not None and payload is not None:
        array.__dict__.update(data=payload, shape=(len(payload),))
    return message


@contextmanager
def _read_strictly() -> Iterator[None]:
    """Turn what a head that is no head of Flower's raises into WireError."""
    try:
        yield
    except ValueError:
        raise WireError("an object has a head that is not known") from None


def _is_array(content: bytes) -> bool:
    return get_object_type_from_object_content(content) == Array.__qualname__


def _payload(content: bytes, fetch: Fetch) -> memoryview:
    """Return the bytes of the array that an object of Flower's describes."""
    names = get_object_children_ids_from_object_content(content)
    try:
        facts = json.loads(get_object_body(content, Array))
        (size,), places, stype = facts["shape"], facts["arraychunk_ids"], facts["stype"]
        order = [names[place] for place in places]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise WireError("array is described in a way that is not known") from None
    if type(size) is not int or stype != _STYPE:
        raise WireError(f"array of kind {stype!r} came; {_STYPE!r} is needed")
    pieces = (get_object_body(piece, ArrayChunk) for piece in fetch(dict.fromkeys(order)))
    return assemble(size, order, pieces)
