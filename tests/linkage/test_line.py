"""Neither a full disk nor a courier that forgets ends a linkage without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.linking.kept import on_disk
from clients.linking.line import Line
from crossrec_model.errors import StateError
from crossrec_model.linkage.errors import LinkageError
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.post import (
    ANY_THREAD,
    Pulled,
    Push,
    Pushed,
    Status,
    decode_post,
    encode_post,
)


def test_a_full_disk_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _start: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    storage, _flush = on_disk(tmp_path)
    with pytest.raises(StateError, match="No space left"):
        storage("theirs", 256)


def test_a_courier_that_forgets_for_ever_holds_nobody_for_ever(tmp_path: Path) -> None:
    def forgetful(request: bytes) -> bytes:
        asked = decode_post(request)
        if isinstance(asked, Push):
            status = Status.DONE if asked.opens else Status.NO_THREAD
            return encode_post(Pushed(status=status, received=0))
        return encode_post(Pulled(status=Status.NOTHING, received=0, thread=ANY_THREAD, frame=b""))

    line = Line(
        forgetful, tmp_path, "B", Purpose.USERS, thread=b"t" * 16, patience_s=0.1,
        report=lambda _text: None,
    )  # fmt: skip
    for number in range(3):
        line.put(number, b"frame")
    with pytest.raises(LinkageError, match="silent"):
        line.receive(0, 3)
