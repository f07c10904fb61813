"""The files of docs/deploy: units, images and rules that use options and figures that there are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from clients.platform import main as platform
from server.__main__ import main as coordinator
from server.metrics import Metrics

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "docs" / "deploy"
UNITS = ("crossrec-coordinator.service", "crossrec-platform@.service")
PYTHON = "/opt/crossrec/bin/python"
PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "server": coordinator,
    "clients.platform": platform,
}
#: What the commands are going to have.
PENDING = {"--log-format", "--metrics-port", "status"}
INSTRUCTIONS = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN"),
    *("STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}


def _settings(unit: str) -> dict[str, list[str]]:
    """Settings of a unit; a name may occur more than once."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / unit).read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def _instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ")
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in joined.splitlines()
        if line.strip()
    ]


@cache
def _help(program: str, command: str) -> str:
    said = StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        PROGRAMS[program]([*([command] if command else []), "--help"])
    return said.getvalue()


def _commands() -> list[str]:
    """Every command of ours in the units, the images and the page."""
    found = [_settings(unit)["ExecStart"][0].removeprefix(PYTHON) for unit in UNITS]
    page = (DEPLOY / "README.md").read_text(encoding="utf-8")
    found += re.findall(r"^    python (-m (?:server|clients\.platform)\b[^#\n]*)", page, re.M)
    instructions = _instructions()
    starts = [value for name, value in instructions if name in {"ENTRYPOINT", "CMD"}]
    assert len(starts) == 4
    found += [
        " ".join([*_words(first), *_words(second)]).removeprefix("python")
        for first, second in zip(starts[::2], starts[1::2], strict=True)
    ]
    return found


def _words(json_list: str) -> list[str]:
    return re.findall(r'"([^"]*)"', json_list)


@pytest.mark.parametrize("line", _commands())
def test_commands_use_options_that_there_are(line: str) -> None:
    flag, program, *words = shlex.split(line)
    assert flag == "-m"
    command = words[0] if words and not words[0].startswith("-") else ""
    said = _help(program, command)
    if command in PENDING and f" {command}" not in said.split("\n", 1)[0]:
        pytest.skip(f"the command {command} is not there yet")
    assert f"{program} {command}".strip() in said.split("\n", 1)[0]
    for word in words:
        if word in PENDING and word not in said:
            pytest.skip(f"the option {word} is not there yet")
        assert not word.startswith("--") or f"{word} " in said or f"{word}]" in said
        if re.fullmatch(r"-\w", word):
            pytest.fail(f"{word} is short: the page should say what it means")


def test_every_option_is_looked_for() -> None:
    lines = _commands()
    assert len(lines) > 8
    assert sum("--metrics-port 9464" in line for line in lines) == 3
    assert sum("--log-format json" in line for line in lines) == 5
    assert any(" init " in line for line in lines)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_hardened_and_gives_up_on_mistakes_only(unit: str) -> None:
    settings = _settings(unit)
    for name, value in (
        ("User", "crossrec"),
        ("Restart", "on-failure"),
        ("RestartSec", "5"),
        ("RestartPreventExitStatus", "2"),
        ("SuccessExitStatus", "130 143"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("StateDirectory", "crossrec"),
        ("StateDirectoryMode", "0700"),
        ("CapabilityBoundingSet", ""),
        ("UMask", "0077"),
        ("LimitCORE", "0"),
    ):
        assert settings[name] == [value]
    # Secrets come from files that only the service can read, never from the unit.
    text = (DEPLOY / unit).read_text(encoding="utf-8")
    assert not re.search(r"(?i)^[^#]*(password|secret|token)\s*=", text, re.M)


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit(unit: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / unit).read_text(encoding="utf-8").replace(PYTHON, sys.executable)
    copy = tmp_path / unit
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(copy)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # It tells of settings that it ignores, and still ends well.
    assert (done.returncode, done.stderr) == (0, "")


def test_the_images_are_built_of_files_that_there_are() -> None:
    instructions = _instructions()
    assert {name for name, _ in instructions} <= INSTRUCTIONS
    for name, value in instructions:
        if name == "COPY" and not value.startswith("--from="):
            *sources, _target = value.split()
            # Named one by one: a folder of keys beside the code must never come in.
            assert all((ROOT / source).exists() and source != "." for source in sources)
    stages = [value.split(" AS ")[1] for name, value in instructions if name == "FROM"]
    assert stages == ["build", "base", "platform", "coordinator"]
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (torch,) = [pin for pin in pins if pin.startswith("torch==")]
    assert any(f'"{torch}"' in value for name, value in instructions if name == "RUN")


def test_the_images_run_as_nobody_special_and_hold_no_secret() -> None:
    instructions = _instructions()
    users = [value for name, value in instructions if name == "USER"]
    assert users == ["10001:10001"]
    at = [name for name, _ in instructions].index("USER")
    assert all(name not in {"RUN", "COPY"} for name, _ in instructions[at:])
    named = " ".join(value for name, value in instructions if name in {"ENV", "ARG"})
    assert not re.search(r"(?i)passw|secret|token|key", named)


def test_the_health_check_asks_the_port_that_is_served() -> None:
    checks = [value for name, value in _instructions() if name == "HEALTHCHECK"]
    served = [value for name, value in _instructions() if name == "CMD"][-1]
    assert checks[0] == "NONE"
    assert "http://127.0.0.1:9464/health" in checks[1]
    assert '"--metrics-port", "9464"' in served


def _figures() -> set[str]:
    names: set[str] = set()
    for family in Metrics().registry.collect():
        names |= {sample.name for sample in family.samples} | {family.name}
        names |= {f"{family.name}_total"} if family.type == "counter" else set()
    return names


@pytest.mark.parametrize("file", ["alerts.yml", "README.md"])
def test_rules_and_page_name_figures_that_there_are(file: str) -> None:
    named = set(re.findall(r"\bcrossrec_[a-z_]+", (DEPLOY / file).read_text(encoding="utf-8")))
    assert len(named) > 4
    assert named <= _figures()


def test_the_rules_are_well_formed() -> None:
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) > 4
    for rule in group["rules"]:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "what_to_do"}


def test_the_page_leads_to_files_that_there_are() -> None:
    page = (DEPLOY / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (DEPLOY / target).exists()
