"""Shared by the tests of the linkage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crossrec_model.linkage import blinding, intersection, messages
from crossrec_model.linkage.group import Cores


@pytest.fixture(scope="session")
def cores() -> Iterator[Cores]:
    with Cores(2) as pool:
        yield pool


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of 64 elements, so that the smallest set has four."""
    for module in (blinding, intersection, messages):
        monkeypatch.setattr(module, "BLOCK", 64)
    return 64
