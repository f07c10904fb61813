"""Checks of the machine that both sides need: disk, clock, libraries, files that must be private."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from crossrec_model.checkup import Finding, fail, ok, warn
from crossrec_model.secagg.identity import not_private

Clock = Callable[[], datetime]
FreeBytes = Callable[[Path], int]
Installed = Callable[[str], str]

#: Below so many times what is needed, free space is warned of.
AMPLE: Final = 5
#: Node authentication allows the clocks 300 s; it fails a little earlier here.
SKEW_WARN: Final = timedelta(seconds=30)
SKEW_FAIL: Final = timedelta(seconds=240)
#: Without exactly these nothing works; of the others another version is only warned of.
CORE: Final = ("flwr", "torch", "opacus", "cryptography", "numpy", "dp-accounting")
_DISTRIBUTION: Final = "crossrec"
_REINSTALL: Final = "install crossrec again in an environment of its own: pip install ."


def free_bytes(path: Path) -> int:
    """Bytes that can be written at `path`, or in the nearest folder above it that exists."""
    return shutil.disk_usage(_existing(path)).free


def disk(path: Path, needed: int, purpose: str, *, free: FreeBytes = free_bytes) -> Finding:
    """Whether `needed` bytes fit at `path`; `purpose` says what for."""
    try:
        left = free(path)
    except OSError as error:
        return fail("disk", f"{path} can't be looked at: {error.strerror}", "check the disk")
    found = f"{_size(left)} free at {path}, {purpose} take about {_size(needed)}"
    if left < needed:
        return fail("disk", found, "free the disk, or move the folder to a larger one")
    if left < AMPLE * needed:
        return warn("disk", found, f"keep {_size(AMPLE * needed)} free")
    return ok("disk", found)


def skew(reference: datetime, now: datetime, of: str) -> Finding:
    """Compare this machine's clock with the one of `of`, which was `reference` at `now`."""
    apart = abs(now - reference)
    side = "ahead of" if now > reference else "behind"
    found = f"this clock is {apart.total_seconds():.0f} s {side} {of}'s"
    remedy = "set both clocks by a time server, e.g. timedatectl set-ntp true"
    if apart > SKEW_FAIL:
        return fail("clock", f"{found}, beyond {SKEW_FAIL.total_seconds():.0f} s", remedy)
    if apart > SKEW_WARN:
        return warn("clock", found, remedy)
    return ok("clock", found)


def libraries(
    requirements: Iterable[str] | None = None,
    requires_python: str | None = None,
    *,
    installed: Installed = metadata.version,
    python: str | None = None,
) -> Iterator[Finding]:
    """Compare what is installed with what our own package asks for.

    Args:
        requirements: lines such as `torch==2.13.0`; None for those of the installed package.
        requires_python: bounds of Python's version; None likewise.
        installed: version by name, raises PackageNotFoundError.
        python: the version that runs; None for this one.
    """
    if requirements is None:
        try:
            own = metadata.metadata(_DISTRIBUTION)
        except metadata.PackageNotFoundError:
            yield warn("libraries", "crossrec itself is not installed, bounds unknown", _REINSTALL)
            return
        requirements = own.get_all("Requires-Dist") or []
        requires_python = requires_python or own["Requires-Python"]
    versions, bad = _compared(requirements, installed)
    python = python or platform.python_version()
    if requires_python and not SpecifierSet(requires_python).contains(python, prereleases=True):
        remedy = "make the environment with a Python in these bounds"
        yield fail("libraries", f"Python {python} runs, {requires_python} is needed", remedy)
    yield from bad
    core = [f"{name} {versions[name]}" for name in CORE if name in versions]
    if core:
        yield ok("libraries", f"Python {python}, {', '.join(core)}")


def _compared(
    requirements: Iterable[str], installed: Installed
) -> tuple[dict[str, str], list[Finding]]:
    """Versions within their bounds by name, and a line for each other one."""
    good: dict[str, str] = {}
    bad: list[Finding] = []
    for requirement in map(Requirement, requirements):
        name, bounds = requirement.name, requirement.specifier
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = installed(name)
            fits = bounds.contains(Version(version), prereleases=True)
        except metadata.PackageNotFoundError:
            bad.append(
                fail("libraries", f"{name} is not installed, {bounds} is needed", _REINSTALL)
            )
            continue
        except InvalidVersion:
            fits = False
        if fits:
            good[name] = version
            continue
        level = fail if name in CORE else warn
        bad.append(level("libraries", f"{name} {version} is outside {bounds}", _REINSTALL))
    return good, bad


def private_files(
    what: str, folder: Path, keys: Iterable[Path], *, user: int | None = None
) -> Iterator[Finding]:
    """Whether a folder and the key files in it, as far as there are any, are this user's alone."""
    user = os.geteuid() if user is None else user
    faults = []
    for path in (folder, *keys):
        try:
            # Not through links: a key's own file must be there.
            fault = not_private(path.stat() if path == folder else path.lstat(), user)
        except FileNotFoundError:
            continue
        except OSError as error:
            fault = f"can't be looked at: {error.strerror}; check who owns it"
        if fault:
            found, _, remedy = fault.rpartition("; ")
            faults.append(fail(what, f"{path} {found}", remedy))
    yield from faults
    if not faults:
        yield ok(what, f"{folder} and its keys are this user's alone")


def held(lock: Path) -> bool:
    """Whether a process holds a lock file now; False if there is none."""
    try:
        file = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def size_of(*paths: Path) -> int:
    """Bytes of files and of all files in folders; what is not there counts nothing."""
    total = 0
    for path in paths:
        files = path.rglob("*") if path.is_dir() else (path,)
        for file in files:
            try:
                total += file.stat().st_size if file.is_file() else 0
            except FileNotFoundError:
                continue  # replaced or pruned while we look
    return total


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        size /= 1024
    return f"{size:,.4g} TiB"
