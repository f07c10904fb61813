"""The operator's settings, the papers beside them in a federation's folder, and benchmark figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, judge, same
from targets_keys import key, signed_plan, signed_roster

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.federation_files import read_address, read_plan, told_versions
from server.folder import SETTINGS, FederationFolder, Settings


def _settings(data: bytes) -> None:
    """The operator's own file, as it is read, written anew, and used."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        # The folder refuses it before.
        raise ConfigError("no UTF-8") from None
    found = Settings.from_toml(text)
    same(Settings.from_toml(found.to_toml()), found, SETTINGS)
    same(bool(found.address and found.bind), True, "address")


def _signed_settings(data: bytes) -> None:
    """As `_settings`, and with the noise worked out."""
    _settings(data)
    settings = Settings.from_toml(data.decode("utf-8"))
    if settings.plan.federation.rounds * settings.plan.privacy.steps > _MOST_STEPS:
        raise ConfigError("a search for the noise of so many steps takes longer than an input may")
    plan = settings.signed_for(signed_roster().roster)
    same(Plan.from_json(plan.to_json()), plan, "plan")


def _setting_seeds() -> list[bytes]:
    whole = Settings(name="demo", host="127.0.0.1").to_toml()
    short = '[coordinator]\nname = "a b"\nhost = "::1"\nport = 1\n[privacy]\nnoise = "none"\n'
    return [whole.encode(), short.encode()]


def _files(scratch: Path) -> Check:
    """A file in the coordinator's or a platform's folder; the first byte says which."""
    names = ("roster.json", "plan.json", SETTINGS, "address")
    folder = FederationFolder(scratch)
    whole = {
        "roster.json": signed_roster().to_json(),
        "plan.json": signed_plan().to_json(),
        SETTINGS: Settings(name="demo", host="127.0.0.1").to_toml().encode(),
        "address": b"example.org:9092",
    }

    def check(data: bytes) -> None:
        chosen = names[data[0] % len(names)] if data else names[0]
        for name, content in whole.items():
            (scratch / name).write_bytes(data[1:] if name == chosen else content)
        told_versions(data[1:])
        same(read_address(scratch) is not None, True, "address")
        judge(lambda _: read_plan(scratch / "plan.json", key("signer").public), data)
        folder.settings()
        folder.notice()

    return check


def _file_seeds() -> list[bytes]:
    contents = (
        signed_roster().to_json(), signed_plan().to_json(),
        Settings(name="demo", host="::1").to_toml().encode(), b"example.org:9092",
    )  # fmt: skip
    return [bytes((number,)) + content for number, content in enumerate(contents)]


def _figures(scratch: Path) -> Check:
    from crossrec_model.evaluation.figures import check_figures, read_figures, write_figures

    path = scratch / "figures.json"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        found = read_figures(path)
        check_figures(found)
        same(all(math.isfinite(figure.value) for figure in found), True, "values")
        write_figures(path, found)
        same(read_figures(path), found, "figures")

    return check


def _figure_seeds() -> list[bytes]:
    from dataclasses import asdict

    from crossrec_model.evaluation.figures import Figure

    made = [
        Figure(figure="a.b", value=1.5, goal=">=1", command="python x.py", seeds=3),
        Figure(figure="c", value=2, goal="<= 1e6", command="python y.py"),
    ]
    return [json.dumps([asdict(figure) for figure in made]).encode()]


_MOST_STEPS: Final = 2000


TARGETS: Final = (
    Target(
        name="coordinator.settings",
        seeds=_setting_seeds,
        check=lambda _: _settings,
        changes=OF_TEXT,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="coordinator.private_plan",
        seeds=_setting_seeds,
        check=lambda _: _signed_settings,
        changes=OF_TEXT,
        cost=Cost.DEAR,
        memory_mib=512,
    ),
    Target(
        name="coordinator.folder",
        seeds=_file_seeds,
        check=_files,
        changes=OF_BYTES + OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(name="evaluation.figures", seeds=_figure_seeds, check=_figures, changes=OF_JSON),
)
