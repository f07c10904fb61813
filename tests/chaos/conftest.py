"""Fixtures of the chaos suite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "transport"))

from federation_stage import Cast, FederationStage

from server.tls import TlsFiles, make_certificates


@pytest.fixture(scope="session")
def chaos_tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificates(tmp_path_factory.mktemp("tls"), [])


@pytest.fixture
def stage_of(tmp_path: Path, chaos_tls: TlsFiles) -> Iterator[Callable[[Cast], FederationStage]]:
    with ExitStack() as held:
        yield lambda cast: held.enter_context(
            FederationStage(tmp_path / "federation", chaos_tls, cast)
        )
