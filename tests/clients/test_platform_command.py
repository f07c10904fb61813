"""The platform's command line: real processes for a whole run, one line for every mistake."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from platform_rows import write_platform

from clients.keys import pin, read_roster
from clients.platform import handler_from, main
from clients.state import PlatformFolder
from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.parameters import initial_vector
from crossrec_model.wire import messages as wire
from server.__main__ import main as server
from server.tls import TlsFiles, make_certificates

ROOT = Path(__file__).parent.parent.parent
PLAN = """seed = 5
[model]
buckets = 128
dimension = 4
neighbours = 2
sketch_width = 64
tower = [8, 4, 1]
[training]
users_per_step = 20
history = 8
positives = 4
negatives = 16
[federation]
rounds = {rounds}
"""


class Command:
    """A child process with its output collected."""

    def __init__(self, module: str, *arguments: object, cwd: Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.output += line

    def expect(self, pattern: str, within_s: float = 60.0) -> re.Match[str]:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if found := re.search(pattern, self.output, re.MULTILINE):
                return found
            if self.child.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in:\n{self.output}")

    def wait(self, within_s: float = 180.0) -> int:
        code = self.child.wait(within_s)
        self._reader.join(5)
        return code

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.wait(10)
        assert self.child.stdout is not None
        self.child.stdout.close()


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: list[Command] = []

    def begin(module: str, *arguments: object) -> Command:
        children.append(Command(module, *arguments, cwd=tmp_path))
        return children[-1]

    yield begin
    for child in children:
        child.end()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificates(tmp_path_factory.mktemp("tls"), [])


def _roster(state: Path, folder: Path) -> Path:
    """Make the identities of A, B and C in their state folders, and sign their roster."""
    for name in "ABC":
        assert main(["keys", "--id", name, "--state", str(state)]) == 0
    cards = [str(state / name / f"{name}.platform") for name in "ABC"]
    assert server(["roster", *cards, "--out", str(folder), "--name", "test"]) == 0
    return folder / "roster.json"


def _coordinator(
    start: Start, tmp_path: Path, tls: TlsFiles, roster: Path, *, rounds: int = 3
) -> str:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(rounds=rounds), encoding="utf-8")
    options = ("--port", 0, "--state", "coordinator", "--tls", tls.ca.parent, "--plan", plan)
    coordinator = start("server", *options, "--roster", roster, "--platforms", 3)
    return coordinator.expect(r"coordinator on (https://\S+)").group(1)


def _platform(
    start: Start, name: str, data: Path, url: str, tls: TlsFiles, roster: Path
) -> Command:
    options = ("--id", name, "--data", data, "--server", url, "--ca", tls.ca, "--roster", roster)
    return start("clients.platform", *options, "--data-end", "2024-07-19")


@pytest.mark.processes
def test_three_platforms_take_part_and_recommend(start, tmp_path, rows, tls, capsys) -> None:
    state = tmp_path / "crossrec-state"
    roster = _roster(state, tmp_path / "roster")
    url = _coordinator(start, tmp_path, tls, roster)
    platforms = {name: _platform(start, name, rows[name], url, tls, roster) for name in "ABC"}
    for platform in platforms.values():
        assert platform.wait() == 0, platform.output
    said = platforms["A"].output
    assert "60 users with events, 30 items" in said
    for line in (
        r"^pinned the roster of test, version 1 \(A, B, C\), signed by \w+",
        r"^connected to the coordinator at 127\.0\.0\.1:\d+$",
        r"^round 1/3: measured noised statistics$",
        r"^round 2/3: trained on noised gradients, loss \d+\.\d+, \d+\.\d+ s$",
        r"^round 3/3: measured noised statistics$",
        r"^mixing weights from \d+ validation users",
        r"recommend --id A",
    ):
        assert re.search(line, said, re.MULTILINE), said
    for path in state.rglob("*"):
        # Only the card is there to be given away.
        public = path.name == f"{path.parent.name}.platform"
        assert public or path.stat().st_mode & 0o077 == 0, path
    capsys.readouterr()
    # A run without further options is private, and what it cost is on the ledger.
    assert main(["privacy", "--id", "A", "--state", str(state), "--json"]) == 0
    spent = json.loads(capsys.readouterr().out)
    assert 7.8 < spent["life"]["epsilon"] <= 8.0
    options = ["recommend", "--id", "A", "--state", str(state), "--k", "4"]
    assert main([*options, "--user", "u3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert re.search(r"^  1\. +-?\d+\.\d+  i\d+  Title \d+ 红茶  \[kind\d\]  \(.+\)$", lines[0])
    assert main([*options, "--user", "stranger", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["known"], len(document["items"])) == (False, 4)
    assert "cold-start list" in document["notes"][0]


@pytest.mark.processes
def test_a_stopped_platform_leaves_its_state_and_may_come_back(
    start, tmp_path, rows, tls, capsys
) -> None:
    state = tmp_path / "crossrec-state"
    roster = _roster(state, tmp_path / "roster")
    url = _coordinator(start, tmp_path, tls, roster, rounds=6)
    first = _platform(start, "A", rows["A"], url, tls, roster)
    first.expect(r"^connected to the coordinator")
    first.child.send_signal(signal.SIGTERM)
    assert first.wait() == 143, first.output
    assert first.output.splitlines()[-1] == (
        "stopped; what was received is saved: start again to go on"
    )
    # Its place is free again, and its folder is not locked.
    platforms = [_platform(start, name, rows[name], url, tls, roster) for name in "ABC"]
    platforms[0].expect(r"^round 2/6")
    platforms[0].child.send_signal(signal.SIGINT)
    assert platforms[0].wait() == 130, platforms[0].output
    received = PlatformFolder(state / "A").load_received()
    assert received is not None
    assert not received.received.finished
    capsys.readouterr()
    error = _refused(capsys, "recommend", "--id", "A", "--user", "u1", "--state", state)
    assert re.search(r"platform A is not trained yet \(round \d of 6 is on disk\)", error)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command line; it must end with 2 and one line."""
    assert main([str(argument) for argument in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from clients.platform import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "loaded = {'torch', 'flwr', 'polars', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    for arguments in (["--help"], ["recommend", "--help"], ["data", "--help"], ["keys", "--help"]):
        shown = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert "--state" in shown.stdout


def test_only_preparing_the_data(rows, tmp_path, capsys) -> None:
    state = tmp_path / "state"
    assert main(["data", "--id", "A", "--data", str(rows["A"]), "--state", str(state)]) == 0
    said = capsys.readouterr().out
    assert "60 users with events, 30 items" in said
    assert "interactions: read 720" in said
    assert (state / "A" / "data" / "interactions.parquet").is_file()
    assert state.joinpath("A").stat().st_mode & 0o077 == 0
    # Prepared but not trained.
    error = _refused(capsys, "recommend", "--id", "A", "--user", "u", "--state", state)
    assert "platform A has no model yet; run first: python -m clients.platform --id A" in error


def test_an_unknown_platform_is_told_what_to_run(tmp_path, capsys) -> None:
    (tmp_path / "B").mkdir()
    error = _refused(capsys, "recommend", "--id", "X", "--user", "u", "--state", tmp_path)
    assert "platform X is unknown" in error
    assert "(known: B)" in error
    assert "run first: python -m clients.platform --id X --data" in error


SERVER = ("--server", "https://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--id", "A"), "the following arguments are required: --data; see"),
        (("--id", "../A", "--data", "d", *SERVER), "platform id '../A' is not"),
        (("--id", "A", "--data", "d", *SERVER, "--threads", "0"), "threads = 0 is outside"),
        (("--id", "A", "--data", "d", *SERVER, "--threads", "x"), "invalid int value: 'x'"),
        (("--id", "A", "--data", "d", *SERVER, "--connect-timeout", "0"), "connect timeout = 0"),
        (("--id", "A", "--data", "d", *SERVER, "--connect-timeout", "nan"), "connect timeout"),
        (("--id", "A", "--data", "d", *SERVER, "--test-weeks", "9"), "test weeks = 9 must be"),
        (("--id", "A", "--data", "d", *SERVER, "--test-weeks", "nan"), "test weeks = nan"),
        (("--id", "A", "--data", "d", *SERVER, "--epsilon", "0"), "epsilon"),
        (("--id", "A", "--data", "d", *SERVER, "--delta", "1"), "delta"),
        (("--id", "A", "--data", "d", *SERVER, "--life-epsilon", "7"), "life"),
        (("--id", "A", "--data", "d", *SERVER, "--data-end", "soon"), "'soon' is no day like"),
        (("--id", "A", "--data", "d", *SERVER, "--ca", "no.pem"), "CA file no.pem can't be read"),
        (("--id", "A", "--data", "d", "--server", "http://h:1"), "plain HTTP"),
        (("--id", "A", "--data", "d", "--server", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("recommend", "--id", "A", "--user", "u", "--k", "0"), "--k is 0"),
        (("recommend", "--id", "A"), "required: --user"),
        (("data", "--id", "A"), "required: --data"),
        (("keys",), "required: --id"),
        (("keys", "--id", "../A"), "platform id '../A' is not"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in _refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def _options(state: Path, data: object, *more: object) -> tuple[object, ...]:
    return ("--id", "A", "--data", data, "--state", state, *SERVER, "--connect-timeout", 0.3, *more)


def _pinned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A state folder in which A has its identity and trusts a roster; return the folder."""
    state = tmp_path / "state"
    pin(state / "A", read_roster(_roster(state, tmp_path / "roster")), accept=False)
    capsys.readouterr()
    return state


def test_a_key_and_a_roster_are_asked_for_before_the_data(tmp_path, capsys) -> None:
    state = tmp_path / "state"
    error = _refused(capsys, *_options(state, tmp_path / "none"))
    assert "A/identity.key does not exist; make it with: python -m clients.platform init" in error
    roster = _roster(state, tmp_path / "roster")
    capsys.readouterr()
    error = _refused(capsys, *_options(state, tmp_path / "none"))
    assert "knows no roster yet; get roster.json" in error
    error = _refused(capsys, *_options(state, tmp_path / "none", "--roster", tmp_path / "x.json"))
    assert f"roster {tmp_path / 'x.json'} does not exist" in error
    other = _roster(tmp_path / "other", tmp_path / "others")
    capsys.readouterr()
    error = _refused(capsys, *_options(state, tmp_path / "none", "--roster", other))
    assert "the roster has another key for platform A" in error
    # With both, it is the data that are missing; from then on the roster is known.
    for more in (("--roster", roster), ()):
        error = _refused(capsys, *_options(state, tmp_path / "none", *more))
        assert "there is no source" in error


def test_data_that_cannot_be_used_are_one_line(rows, tmp_path, capsys) -> None:
    state = _pinned(tmp_path, capsys)
    before = {path.name for path in (state / "A").iterdir()}
    assert "there is no source" in _refused(capsys, *_options(state, tmp_path / "none"))
    few = _refused(capsys, *_options(state, rows["A"], "--min-users", 61))
    assert "60 users have events, below min_users = 61" in few
    broken = tmp_path / "broken"
    shutil.copytree(rows["A"], broken)
    events = (broken / "events.csv").read_text(encoding="utf-8")
    (broken / "events.csv").write_text(events.replace("item", "thing", 1), encoding="utf-8")
    assert "item" in _refused(capsys, *_options(state, broken))
    (broken / "events.csv").write_text("", encoding="utf-8")
    assert "empty" in _refused(capsys, *_options(state, broken))
    future = events.replace(",purchase,2024-0", ",purchase,2924-0")
    (broken / "events.csv").write_text(future, encoding="utf-8")
    assert "time" in _refused(capsys, *_options(state, broken))
    (broken / "events.csv").write_text(events.replace("purchase", "stroke"), encoding="utf-8")
    assert "stroke" in _refused(capsys, *_options(state, broken))
    (broken / "events.csv").write_text(events, encoding="utf-8")
    items = (broken / "items.csv").read_text(encoding="utf-8").splitlines()
    (broken / "items.csv").write_text("\n".join(items[:6]) + "\n", encoding="utf-8")
    assert "it has 5 of the 30 items" in _refused(capsys, *_options(state, broken))
    # Nothing but why the last rows were refused, lock, ledger, log, and the record of opened sums.
    added = {path.name for path in (state / "A").iterdir()} - before
    assert added <= {"data.rejected", "ledger.jsonl", "lock", "opened.json", "platform.log"}


def test_a_device_that_is_not_there(rows, tmp_path, capsys) -> None:
    state = _pinned(tmp_path, capsys)
    error = _refused(capsys, *_options(state, rows["A"], "--device", "abacus"))
    assert "device 'abacus' is unknown; choose cpu, cuda or auto" in error


def test_a_coordinator_that_is_not_there(rows, tmp_path, capsys) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = _pinned(tmp_path, capsys)
    options = _options(state, rows["A"], "--server", f"https://127.0.0.1:{port}")
    assert main([str(o) for o in options]) == 2
    said = capsys.readouterr()
    assert "is not there (Connection refused); trying again" in said.out
    assert said.err.startswith("error: the coordinator at 127.0.0.1:")
    assert said.err.count("\n") == 1


@pytest.mark.processes
def test_a_wrong_authority_ends_at_once(start, tmp_path, rows, tls, capsys) -> None:
    state = _pinned(tmp_path, capsys)
    url = _coordinator(start, tmp_path, tls, tmp_path / "roster" / "roster.json")
    wrong = make_certificates(tmp_path / "other", []).ca
    options = _options(state, rows["A"], "--server", url, "--ca", wrong)
    assert f"CA file {wrong} did not sign" in _refused(capsys, *options)


def test_a_folder_in_use_is_refused(rows, tmp_path, capsys) -> None:
    with PlatformFolder(tmp_path / "A").held():
        error = _refused(capsys, *_options(tmp_path, rows["A"]))
        assert "is in use by another process of this platform" in error
        error = _refused(capsys, "data", "--id", "A", "--data", rows["A"], "--state", tmp_path)
        assert "is in use" in error


def test_a_short_validation_period_is_told_before_anything_is_trained(
    tmp_path, plan, capsys
) -> None:
    data = write_platform(tmp_path / "rows", 9, days=200)
    text = (data / "events.csv").read_text(encoding="utf-8").splitlines()
    # Nothing but one last event after April: nobody can be validated on.
    early = [line for line in text if line.split(",")[3] < "2024-05"] + [text[0]]
    last = "u0,i0,purchase,2024-12-01T00:00:00Z,1,1.5"
    body = "\n".join([text[0], *early[:-1], last])
    (data / "events.csv").write_text(body + "\n", encoding="utf-8")
    state = str(_pinned(tmp_path, capsys))
    settings = {"id": "A", "data": str(data), "state": state, "no-privacy": "true"}
    handler = handler_from(settings)
    with pytest.raises(CrossrecError, match="no user with a history took an item in the val"):
        handler(wire.encode(wire.Welcome(plan=plan.to_json())))


def test_a_platform_for_flowers_own_supernode(rows, tmp_path, plan) -> None:
    folder = tmp_path / "state"
    roster, state = _roster(folder, tmp_path / "roster"), str(folder)
    settings = {"id": "A", "data": str(rows["A"]), "state": state, "no-privacy": "true"}
    handler = handler_from(settings | {"roster": str(roster)})

    def ask(message: wire.Message) -> wire.Message:
        return wire.decode(b"".join(handler(wire.encode(message))))

    hello = ask(wire.Hello(session=bytes(16)))
    assert isinstance(hello, wire.HelloReply)
    assert hello.platform == "A"
    assert isinstance(ask(wire.Welcome(plan=plan.to_json())), wire.WelcomeReply)
    # Its sums are secure: without a key agreement nothing leaves it.
    vector = initial_vector(plan)
    asked = wire.TrainRequest(run=bytes(16), round=1, rounds=4, ticket=b"", parameters=vector)
    assert ask(asked) == wire.Failure(code=wire.FailureCode.LEFT_THE_SUM)
    # Its folder is held for as long as the process lives.
    gc.collect()
    with pytest.raises(CrossrecError, match="in use by another process of this platform"):
        handler_from({"id": "A", "data": str(rows["A"]), "state": state})
    with pytest.raises(ConfigError, match="unrecognized arguments: --colour red"):
        handler_from({"id": "A", "data": "d", "colour": "red"})
    with pytest.raises(ConfigError, match="arguments are required: --data"):
        handler_from({"id": "A"})
