"""Fixtures for tests that start processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from open_line import Line, open_line
from process_stage import Stage

from server.tls import TlsFiles, make_certificates


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificates(tmp_path_factory.mktemp("tls"), [])


@pytest.fixture
def stage(tmp_path: Path, tls_files: TlsFiles) -> Iterator[Stage]:
    stage = Stage(tmp_path, tls_files)
    try:
        yield stage
    finally:
        stage.end()


@pytest.fixture
def line(tls_files: TlsFiles) -> Iterator[Line]:
    with open_line(tls_files) as line:
        yield line
