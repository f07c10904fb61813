"""Disk, clock, libraries and the modes of key files."""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from crossrec_model.checkup import Finding
from crossrec_model.checkup_machine import (
    CORE,
    disk,
    free_bytes,
    held,
    libraries,
    private_files,
    size_of,
    skew,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("left", "level"),
    [(99, "fail"), (100, "warn"), (499, "warn"), (500, "ok")],
)
def test_disk(left: int, level: str) -> None:
    finding = disk(Path("/srv"), 100, "data", free=lambda _path: left)
    assert finding.level == level
    assert f"{left} bytes free at /srv, data take about 100 bytes" in finding.found


def test_a_disk_that_is_gone_is_one_line(tmp_path: Path) -> None:
    def gone(_path: Path) -> int:
        raise OSError(5, "Input/output error")

    assert disk(tmp_path, 1, "data", free=gone).found.endswith("looked at: Input/output error")
    # A folder that is yet to be made lies on the disk of the nearest one above it.
    assert free_bytes(tmp_path / "new" / "deep") > 0


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (0, "ok", "0 s behind"),
        (30, "ok", "30 s ahead of"),
        (31, "warn", "31 s ahead of"),
        (-31, "warn", "31 s behind"),
        (240, "warn", "240 s ahead of"),
        (-241, "fail", "241 s behind the coordinator's, beyond 240 s"),
        (86_400, "fail", "86400 s ahead of"),
    ],
)
def test_clock_skew(seconds: int, level: str, words: str) -> None:
    finding = skew(NOW, NOW + timedelta(seconds=seconds), "the coordinator")
    assert finding.level == level
    assert words in finding.found


def _libraries(
    versions: dict[str, str], *requirements: str, python: str = "3.11.7"
) -> list[Finding]:
    def installed(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    return list(libraries(requirements, ">=3.11", installed=installed, python=python))


def test_libraries_within_their_bounds() -> None:
    versions = {"flwr": "1.41.0", "torch": "2.13.0+cpu", "polars": "2.1.0"}
    needs = ("flwr==1.41.0", "torch==2.13.0", "polars>=2.1,<3", "ray==2; extra == 'ray'")
    (finding,) = _libraries(versions, *needs)
    assert finding.level == "ok"
    assert finding.found == "Python 3.11.7, flwr 1.41.0, torch 2.13.0+cpu"


@pytest.mark.parametrize(
    ("versions", "needs", "level", "words"),
    [
        ({"torch": "2.12.1"}, "torch==2.13.0", "fail", "torch 2.12.1 is outside ==2.13.0"),
        ({"torch": "strange"}, "torch==2.13.0", "fail", "torch strange is outside"),
        ({"polars": "3.0"}, "polars>=2.1,<3", "warn", "polars 3.0 is outside"),
        ({}, "polars>=2.1", "fail", "polars is not installed, >=2.1 is needed"),
    ],
)
def test_libraries_outside(versions: dict[str, str], needs: str, level: str, words: str) -> None:
    finding = _libraries(versions, needs)[0]
    assert finding.level == level
    assert words in finding.found
    assert "pip install" in finding.remedy


def test_an_old_python() -> None:
    assert _libraries({}, python="3.10.4")[0].found == "Python 3.10.4 runs, >=3.11 is needed"


def test_the_installed_package_has_bounds_for_what_matters() -> None:
    findings = list(libraries())
    assert findings[-1].level == "ok"
    assert all(name in findings[-1].found for name in CORE)


def test_without_the_installed_package_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossrec_model.checkup_machine._DISTRIBUTION", "not-there-at-all")
    (finding,) = libraries()
    assert finding.level == "warn"


def _keys(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "A"
    folder.mkdir(mode=0o700)
    key = folder / "identity.key"
    key.write_bytes(b"key")
    key.chmod(0o600)
    return folder, key


def test_files_that_are_private(tmp_path: Path) -> None:
    folder, key = _keys(tmp_path)
    (finding,) = private_files("folder", folder, (key, folder / "not.there"))
    assert finding.level == "ok"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read(tmp_path: Path, mode: int) -> None:
    folder, key = _keys(tmp_path)
    key.chmod(mode)
    (finding,) = private_files("folder", folder, (key,))
    assert (finding.level, finding.remedy) == ("fail", "chmod 600 it")
    assert f"{key} is open to others (mode {mode:04o})" == finding.found


def test_a_folder_that_others_can_enter_or_a_strange_owner(tmp_path: Path) -> None:
    folder, key = _keys(tmp_path)
    folder.chmod(0o755)
    (finding,) = private_files("folder", folder, (key,))
    assert (finding.level, finding.remedy) == ("fail", "chmod 700 it")
    folder.chmod(0o700)
    findings = list(private_files("folder", folder, (key,), user=os.geteuid() + 1))
    assert [f.level for f in findings] == ["fail", "fail"]
    assert all("belongs to user" in f.found for f in findings)


def test_a_link_is_no_key(tmp_path: Path) -> None:
    folder, key = _keys(tmp_path)
    key.rename(folder / "elsewhere")
    key.symlink_to(folder / "elsewhere")
    (finding,) = private_files("folder", folder, (key,))
    assert "is no plain file" in finding.found


def test_a_held_lock_is_seen_and_not_taken(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not held(lock)
    assert not lock.exists()
    lock.touch()
    assert not held(lock)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert held(lock)
    assert not held(lock)


def test_sizes_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "data" / "quarantine").mkdir(parents=True)
    (tmp_path / "data" / "a").write_bytes(bytes(5))
    (tmp_path / "data" / "quarantine" / "b").write_bytes(bytes(7))
    (tmp_path / "c").write_bytes(bytes(11))
    assert size_of(tmp_path / "data", tmp_path / "c", tmp_path / "none") == 23
