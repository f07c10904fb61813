"""A safetensors file with a description and a checksum, replaced as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from crossrec_model.durable import write_durably

_DOCUMENT: Final = "crossrec"
_DIGEST: Final = "sha256"

Tensors = Mapping[str, npt.NDArray[np.float32]]


def write(path: Path, document: Mapping[str, Any], tensors: Tensors) -> None:
    """Replace `path`: write to a temporary name, flush to the disk, rename, flush the folder.

    Raises:
        OSError: if it can't be written; an earlier file then stands as it was.
    """
    whole = {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    content = save(whole, metadata={_DOCUMENT: text, _DIGEST: _digest(text, whole)})
    write_durably(path, content, mode=0o600)


def read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Return the description and the tensors of a file that `write` wrote.

    Raises:
        ValueError: if anything in it differs from what was written.
        OSError: if it can't be read.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    if set(metadata) != {_DOCUMENT, _DIGEST}:
        raise ValueError("its description is missing")
    text = metadata[_DOCUMENT]
    if _digest(text, tensors) != metadata[_DIGEST]:
        raise ValueError("its checksum differs")
    try:
        document: dict[str, Any] = json.loads(text)
    except RecursionError:
        raise ValueError("its description is nested too deeply") from None
    return dict(document), tensors


def _digest(text: str, tensors: Tensors) -> str:
    """SHA-256 over the description and every tensor with its name, type and shape."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        total.update(np.ascontiguousarray(tensor).data)
    return total.hexdigest()
