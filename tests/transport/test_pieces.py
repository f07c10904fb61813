"""Cutting frames and putting them together: nothing copied, nothing lost, nothing believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrec_model.errors import WireError
from crossrec_model.wire import pieces
from crossrec_model.wire.pieces import MAX_FRAME, PIECE_BYTES, SHORT_BYTES, assemble, slices

ROOT = Path(__file__).parents[2]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 9), st.integers(0, 20))
def test_slices_are_the_frame_in_bounded_pieces(
    lengths: list[int], longest: int, short: int
) -> None:
    frame = tuple(bytes([i % 251]) * length for i, length in enumerate(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", longest)
        patch.setattr(pieces, "SHORT_BYTES", short)
        cut = slices(frame)
    assert b"".join(cut) == b"".join(frame)
    assert all(0 < len(piece) <= longest for piece in cut)


def test_long_pieces_are_views_and_short_neighbours_are_one() -> None:
    numbers = np.arange(PIECE_BYTES, dtype=np.uint16)
    cut = slices((b"a", b"bc", memoryview(numbers), b"", bytes(SHORT_BYTES), b"d"))
    assert [len(piece) for piece in cut] == [3, PIECE_BYTES, PIECE_BYTES, SHORT_BYTES, 1]
    numbers[0] = 0x4142
    assert bytes(cut[1][:2]) == b"BA"
    assert slices(()) == slices((b"",)) == slices((memoryview(np.zeros(0)),)) == []


def test_pieces_fill_one_buffer_and_repeated_ones_come_once() -> None:
    contents = {"a": b"12", "b": b"345", "c": b""}
    came: list[str] = []

    def arriving(*names: str):  # type: ignore[no-untyped-def]
        for name in names:
            came.append(name)
            yield contents[name]

    frame = assemble(9, ["a", "b", "c", "a", "a"], arriving("a", "b", "c"))
    assert bytes(frame) == b"123451212"
    assert frame.readonly
    assert frame.contiguous
    assert came == ["a", "b", "c"]
    assert bytes(assemble(0, [], [])) == b""


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (4, "more than the 4 bytes announced"),
        (6, "have 5 bytes; 6 were announced"),
        (MAX_FRAME + 1, f"at most {MAX_FRAME} are allowed"),
        (-1, "frame has -1 bytes"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(size: int, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        assemble(size, ["a", "b"], [b"12", b"345"])


def test_both_sides_read_and_write_the_same_records() -> None:
    """The two sides never import each other, so this keeps their adapters alike."""
    texts = [(ROOT / side / "records.py").read_text("utf-8") for side in ("server", "clients")]
    ours, theirs = (text.partition("from __future__")[2] for text in texts)
    assert ours == theirs
