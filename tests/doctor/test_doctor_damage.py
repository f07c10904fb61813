"""Whatever stands in the place of a file: every check has a line of its own for it, and none breaks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from doctor_folders import RUN, TINY, Federation, charge, private, received

from clients import doctor as of_platform
from clients.state import PlatformFolder
from server import doctor as of_server
from server.checkpoint import Checkpoint, CheckpointStore
from server.optimizer import initial_state


def _nothing(path: Path) -> None:
    path.touch(mode=0o600)


def _noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(len(path.name)).bytes(3000))


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def _gone(_path: Path) -> None:
    pass


KINDS = (_nothing, _noise, _folder, _pipe, _loop, _deep, _gone)


def _damaged(folder: Path, kind: Callable[[Path], None], look: Callable[[], str]) -> None:
    """Put something else in the place of each file in turn."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        spare = folder.parent / "spare"
        path.rename(spare)
        kind(path)
        text = look()
        assert "broke" not in text, (path.name, text)
        assert "took longer" not in text, (path.name, text)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        spare.rename(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_platform_s_files(
    federation: Federation, kind: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    federation.on(1)
    folder = federation.state / "A"
    charge(federation, private(), run=RUN, rounds=2)
    PlatformFolder(folder).save_received(received(private(), 2))

    def look() -> str:
        assert of_platform.main(["--id", "A", "--state", str(federation.state)]) in {0, 1}
        return capsys.readouterr().out

    _damaged(folder, kind, look)


@pytest.mark.parametrize("kind", KINDS)
def test_the_coordinator_s_files(
    federation: Federation, kind: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    federation.on(1)
    CheckpointStore(federation.folder / "state").save(
        Checkpoint(
            run=RUN,
            plan=TINY,
            round=2,
            parameters=np.zeros(3, np.float32),
            optimizer=initial_state(TINY.federation, 3),
            history=(),
        )
    )

    def look() -> str:
        assert of_server.main(["--federation", str(federation.folder)]) in {0, 1}
        return capsys.readouterr().out

    _damaged(federation.folder, kind, look)
