"""Inputs that once ended in a traceback, a hang or an unclear refusal."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import sqlite3
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import targets_coordinator
import targets_data
import targets_keys
import targets_platform

from clients.adapters import open_source
from clients.adapters.readers import read_jsonl
from clients.adapters.trial import first_broken
from clients.connection import Endpoint
from clients.joining import accept_invitation
from crossrec_model import errors
from crossrec_model.config import Plan
from crossrec_model.data.histories import read_histories
from crossrec_model.data.items import item_table
from crossrec_model.data.prepared import open_prepared
from crossrec_model.data.summary import CleaningSummary
from crossrec_model.errors import ConfigError, CrossrecError, DataError, FederationError, WireError
from crossrec_model.evaluation.figures import Figure
from crossrec_model.privacy import pricing
from crossrec_model.privacy.events import GaussianRelease, SampledGaussian
from crossrec_model.secagg.errors import RosterError
from crossrec_model.secagg.invitation import Invitation, Notice, SignedPlan
from crossrec_model.secagg.node_pass import NodePass
from crossrec_model.wire.pieces import assemble
from server.checkpoint import CheckpointStore
from server.database import Database
from server.folder import Settings
from server.gate import Gate
from server.openings import Openings
from server.store import Store
from server.tls import TlsFiles, make_certificates, renew_certificate

DEEP = "[" * 1200 + "]" * 1200
DEEP_TOML = f"seed = {DEEP}\n"
LONG = "9" * 5000
HEX = "0x" + "f" * 5000
RUN = targets_coordinator.RUN
#: A Parquet file of three users, of which one byte was changed: a page of 2^64 values.
PARQUET = (
    "c-o~@PjAyO6nBy~+hGy~)m9?q(8CsWVj5|-(gy9~P5Vn3Z6(^#OO-CkR@jm%N!xXY331*hKxm(V4}v)C!j%u"
    "e5pkS&cGI!}7r?Up?Du=`_p|-dR%yL}Q+OWFSFnr`LL!X5!RG>>EsSs$XO{rZz>u}aC@=OcMeG|%xGad$Ji>"
    "Eo5y=@<ndwJv*zP(Q5t&>H(Df~S_D&ioDp;w2fpiJR$c+Rr253FN50>!EL`%#|fGNU6OOgahoJ!q04E)IT<8"
    "~ahPrCkVE_p#N^ea*SD%{BiEnu!-kx8au_(2#SgI)$_Zrv@FPjf&Sn~AD`q^W4ej^nV~>Bnw6bdS1$&sE<F("
    "DfThzn1>MqTUx(c6BzvgQ_HP3E*KzWG->+8mCMw15!xU$QIs*B(}N|aV1&aNVvh4SX3)JsW1p)EJGm{#Ay*0"
    "P(@<_%=hbS-Nt^qR00xN)zmfpTG0NczT~5fv*c46>qvhuY5!6$@<qmkeB%^v(%OH$KKahL-pSZR<WeHCJ_{z"
    "xUQn5%_4@PXlj!i+J++k&;v?3qA%(Wdrt$#xXSHO{T~8^E=mxhn`mhT4kjL**dX&UH1GCPZRW?zUzp=}xx7l"
    "``Ch^efoO_CMh3zfF+1cy8^czO2VU1c%r`Iu8dDMXEogGa`**Tcxi-cs156evCRmUuzx0*%cV5L4dFwc6O(}"
    "<QBKH^8?B-=mpYjk~=9S!Ve!aE$3R?i`+yvZTv+G(7(4)#2|S))kVuLdV}80GT4QG6Wui@AXtMo^cWxm;K_a"
    "`{fbd*b9uo@JOFXT|dzv*dYY(<!W)rLt{UwrLeT&-6;R>saQZx(1)!xTDYT+pEGK)DN3M0k!"
)


def each(name: str, values: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrise by values that are too long or odd to name a test."""
    return pytest.mark.parametrize(name, values, ids=[f"{name}{n}" for n in range(len(values))])


def _refused(kind: type[CrossrecError], work: Callable[[], object]) -> str:
    """The message of a refusal: one line, short, printable."""
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert message.isprintable()
    assert 0 < len(message) <= 1600
    return message


@each("quoted", ["a\nb", "\x1b[2J", "\x00", "\ud800", "\u2028"])
def test_a_message_shows_what_it_quotes_as_one_line(quoted: str) -> None:
    message = str(WireError(f"name {quoted} is unknown; use another"))
    assert message.isprintable()
    assert message.endswith("is unknown; use another")


def test_a_long_message_keeps_its_beginning_and_its_remedy() -> None:
    message = str(ConfigError(f"key {'x' * 10**6} is unknown; known: a, b"))
    assert len(message) < 1600
    assert message.startswith("key xxx")
    assert message.endswith("known: a, b")


@each("value", [10**5000, "x" * 10**6, json.loads("[" * 500 + "]" * 500), [1] * 999])
def test_a_value_is_shown_shortly(value: object) -> None:
    assert len(errors.shown(value)) < 200


def test_a_frame_whose_piece_is_missing_is_refused() -> None:
    assert "one is missing" in _refused(WireError, lambda: assemble(3, ["a", "b"], [b"a"]))


@each("side", ["server.records", "clients.records"])
@each(
    "content",
    [
        *(b"", b"\0", b"Array", b"Array\0", b"\xff 1\0", b"Message a x\0", b"Message  3\0abc"),
        *(b"Array a 2\0{}", b"RecordDict  2\0{}", b"Message a 0\0", b"Unknown  0\0"),
        b'Array  9\0{"shape":[1],"arraychunk_ids":[0],"stype":"crossrec.bytes"}',
    ],
)
def test_objects_that_are_no_message_are_refused(side: str, content: bytes) -> None:
    records = importlib.import_module(side)

    def read() -> None:
        payload = records.to_payload({"x": content}, lambda _names: iter(()))
        records.to_message("x", {"x": content}, payload)

    _refused(WireError, read)


@each(
    "plan",
    [
        f'{{"aggregation":{{"bound":1{"0" * 400}}}}}',
        f'{{"model":{{"tower":[128{",1" * 50_000},1]}}}}',
        json.dumps({"model": {"relations": ["self"] * 9999}}),
        f'{{"model":{{"tower":{"[" * 900}{"]" * 900}}}}}',
        json.dumps({"model": {"\x1b[2J": 1}}),
        json.dumps({"\ud800": 1}),
        f'{{"seed":{LONG[:4300]}}}',
        json.dumps({"training": {"optimizer": "x" * 99_999}}),
    ],
)
def test_plans_that_are_no_plans_are_refused(plan: str) -> None:
    _refused(ConfigError, lambda: Plan.from_json(plan.encode()))


@each(
    "text",
    [
        DEEP_TOML,
        f"seed = {LONG}",
        f"seed = {HEX}",
        f"[aggregation]\nbound = {HEX}",
        f"[aggregation]\nlevels = {HEX}",
        f'[coordinator]\nname = "a"\nhost = "b"\nport = {HEX}',
        f'[coordinator]\nname = {HEX}\nhost = "b"',
        f'[coordinator]\nname = "a"\nhost = "b"\n[privacy]\nepsilon = {HEX}',
    ],
)
def test_toml_that_is_too_deep_or_long_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    _refused(ConfigError, lambda: Plan.from_toml(path))
    _refused(ConfigError, lambda: Settings.from_toml(text))
    _refused(DataError, lambda: open_source(str(path), "A"))


@each(
    "change",
    [
        *({"name": "\U0001f600"}, {"name": ""}, {"host": "ü"}, {"host": "a b"}, {"host": "a\x7f"}),
        *({"listen": "\x7f"}, {"database": "a\nb"}, {"epsilon": float("nan")}, {"delta": 1.0}),
        {"epsilon": float("inf")},
    ],
)
def test_settings_that_no_file_or_roster_can_carry_are_refused(change: dict[str, Any]) -> None:
    _refused(ConfigError, lambda: Settings(**{"name": "demo", "host": "localhost", **change}))


def test_settings_with_letters_beyond_the_first_plane_come_back() -> None:
    made = Settings(name="demo", host="localhost", database="sqlite:////\U0001f600/ü.db")
    assert Settings.from_toml(made.to_toml()) == made


def _signed_plan(change: dict[str, Any]) -> bytes:
    document = json.loads(targets_keys.signed_plan().to_json()) | change
    return targets_keys.written(targets_keys.sealed_plan(document)) or b""


@each("text", ["\ud800", "ü", "\U0001f600"])
def test_signed_documents_whose_inner_text_is_not_ascii_are_refused(text: str) -> None:
    _refused(RosterError, lambda: SignedPlan.from_json(_signed_plan({"plan": text})))
    for key in ("plan", "roster"):
        notice = json.dumps(json.loads(targets_keys.notice().to_json()) | {key: text}).encode()
        _refused(RosterError, partial(Notice.from_json, notice))
    invitation = json.loads(targets_keys.invitation().to_json()) | {"notice": text}
    _refused(RosterError, lambda: Invitation.from_json(json.dumps(invitation).encode()))


@each("name", ["\x1b[2J", "\ud800", "", "é" * 5000])
def test_a_plan_of_a_federation_with_no_possible_name_is_refused(name: str) -> None:
    _refused(RosterError, lambda: SignedPlan.from_json(_signed_plan({"federation": name})))


@each("platform", ["\ud800", "", "\x1b[2J", "é"])
def test_a_pass_of_no_possible_platform_is_refused(platform: str) -> None:
    document = targets_keys._made_pass()._document() | {"platform": platform}
    raw = targets_keys.written(targets_keys._sealed_pass(document)) or b""
    _refused(RosterError, lambda: NodePass.from_header(base64.b64encode(raw).decode()))


def test_a_pass_in_another_base64_of_the_same_bytes_is_refused() -> None:
    made = targets_keys._made_pass()
    headers = (replace(made, platform="A" * count).to_header() for count in (1, 2, 3))
    text = next(header for header in headers if header.endswith("=="))
    other = f"{text[:-3]}{chr(ord(text[-3]) + 1)}=="
    assert base64.b64decode(text) == base64.b64decode(other)
    NodePass.from_header(text)
    _refused(RosterError, lambda: NodePass.from_header(other))


@each(
    "change",
    [{"ca": "a\u0301"}, {"ca": "\ud800"}, {"address": "ü.example:9092"}, {"address": "a:\u0661"}],
)
def test_an_invitation_that_can_not_be_kept_is_refused_before_it_is_accepted(
    tmp_path: Path, change: dict[str, str]
) -> None:
    document = json.loads(targets_keys.invitation().to_json()) | change
    path = tmp_path / "A.invitation"
    path.write_bytes(targets_keys.written(targets_keys.sealed_all(document)) or b"")

    def accept() -> None:
        accept_invitation(
            tmp_path,
            "A",
            path,
            ask=lambda _lines, _question: True,
            explain=lambda *_: [],
            allow_two=False,
        )

    _refused(ConfigError, accept)
    assert not (tmp_path / "plan.json").exists()


@each(
    "address",
    [
        *(
            "a\0b:1",
            "a b:1",
            "a\n:1",
            "a@b:1",
            "a/b:1",
            "a[b:1",
            f"a:{LONG}",
            "a:\u0661",
            ":1",
            "a:0",
        ),
        *("a:65536", f"{'a.' * 200}:1", f"{'ü' * 100_000}:1", "\ud800:1", "a\u202e:1"),
    ],
)
def test_addresses_that_no_resolver_may_get_are_refused(address: str) -> None:
    _refused(ConfigError, lambda: Endpoint(address=address, insecure=True))


@each(
    "description",
    [
        DEEP,
        "null",
        '{"format":2,"plan":{},"round":1e999}',
        '{"format":2,"split":{"validation":1,"test":2,"end":3},"plan":{},"run":"","round":1e999}',
    ],
)
def test_a_platforms_file_with_a_strange_description_is_damaged(
    tmp_path: Path, description: str
) -> None:
    for name in targets_platform._STATES:
        first = targets_platform._STATES[name][0]
        raw = targets_platform._described(first, description.encode())
        (tmp_path / name).write_bytes(raw or b"")
        folder = targets_platform.PlatformFolder(tmp_path)
        _refused(CrossrecError, folder.load_received if "rec" in name else folder.load_trained)
        (tmp_path / name).unlink()


def test_a_mixture_of_components_without_names_is_damage(tmp_path: Path) -> None:
    name = targets_platform.MODEL
    first, text = targets_platform._state_seeds(name)
    document = json.loads(text)
    count = len(document["mixtures"]["local"]["names"])
    document["mixtures"]["local"]["names"] = [[1.0]] * count
    raw = targets_platform._described(first, json.dumps(document).encode())
    (tmp_path / name).write_bytes(raw or b"")
    _refused(CrossrecError, targets_platform.PlatformFolder(tmp_path).load_trained)


@each(
    "change",
    [
        *({"run": "00"}, {"round": "2"}, {"round": -1}, {"round": True}, {"history": [1]}),
        *({"history": 5}, {"optimizer": []}, {"plan": []}, {"round": 1e999}),
    ],
)
@each("where", ["whole", "record"])
def test_a_checkpoint_with_a_strange_document_is_damaged(
    tmp_path: Path, change: dict[str, Any], where: str
) -> None:
    raw, tensors = targets_coordinator._saved("fedadam")
    document = json.loads(raw)
    if where == "whole":
        document |= change
    else:
        odd = ({"platforms": [2]}, {"platforms": ["\x1b"]}, {"training": ","}, {"seconds": "x"})
        document["history"][0] |= odd[len(str(change)) % 4]
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "round-000002.safetensors").write_bytes(tensors)
    (folder / "round-000002.json").write_text(json.dumps(document), encoding="utf-8")
    _refused(FederationError, CheckpointStore(tmp_path).latest)
    (folder / "round-000002.json").write_text(DEEP, encoding="utf-8")
    _refused(FederationError, CheckpointStore(tmp_path).latest)


@each("bad", [np.nan, np.inf])
def test_a_checkpoint_whose_model_is_not_finite_or_flat_is_damaged(
    tmp_path: Path, bad: float
) -> None:
    from safetensors.numpy import save

    whole = np.ones(6, dtype=np.float32)
    holed = whole.copy()
    holed[3] = bad
    for parameters in (holed, whole.reshape(2, 3), whole.astype(np.float64)):
        moments = {f"optimizer.{n}": parameters for n in ("mean", "square")}
        raw = save({"parameters": parameters, **moments})
        with pytest.raises(FederationError, match="is damaged"):
            targets_coordinator._tensors(tmp_path)(raw)


@each(
    "openings",
    [DEEP, f'{{"run":"{RUN.hex()}","openings":{{"TRAIN":{{"round":1e999,"platforms":[]}}}}}}'],
)
def test_openings_that_are_too_deep_or_large_are_damaged(tmp_path: Path, openings: str) -> None:
    (tmp_path / "openings.json").write_text(openings, encoding="utf-8")
    _refused(FederationError, lambda: Openings(RUN, tmp_path / "openings.json"))


def test_a_database_with_values_of_other_types_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    clock = lambda: datetime(2026, 1, 1, tzinfo=UTC)  # noqa: E731
    for statement in (
        "UPDATE rounds SET seconds = 'x'",
        "UPDATE runs SET sequence = 'x'",
        "UPDATE runs SET sequence = 9e999",
    ):
        path.write_bytes(targets_coordinator._database()[0])
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()
        with Store.open(f"sqlite:///{path}", clock=clock) as store:
            work = (
                store.status
                if "rounds" in statement
                else lambda s=store: s.begin_run(bytes(16), b"")
            )
            _refused(FederationError, work)


def test_a_database_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    _refused(FederationError, lambda: Database.open(f"sqlite:///{path}"))


def test_certificates_that_are_none_are_refused(tmp_path: Path) -> None:
    make_certificates(tmp_path, [], keep_authority=True)
    files = TlsFiles.in_folder(tmp_path)
    files.certificate.write_bytes(b"no certificate")
    _refused(ConfigError, lambda: files.expiry_warning(datetime.now(UTC)))
    files.ca.write_bytes(b"no certificate")
    _refused(ConfigError, lambda: renew_certificate(tmp_path, []))


def test_a_request_of_a_length_of_thousands_of_digits_is_refused() -> None:
    headers = [(b"content-length", LONG.encode())]
    scope = {"type": "http", "path": "/health", "headers": headers, "client": None}
    gate = Gate(targets_coordinator._inner)
    assert asyncio.run(targets_coordinator._asked(gate, scope, [b""])) == 413


@each(
    "change",
    [{"value": 10**400}, {"value": float("nan")}, {"command": "\ud800"}, {"figure": [[[]]] * 999}],
)
def test_figures_that_can_not_be_written_are_refused(change: dict[str, Any]) -> None:
    whole = {"figure": "a.b", "value": 1.0, "goal": ">=1", "command": "python x.py"}
    _refused(ConfigError, lambda: Figure(**(whole | change)))


@each(
    "change",
    [{"users": "x"}, {"items": -1}, {"source": "\x1b"}, {"tables": [{"table": "a", "read": 1.5}]}],
)
def test_a_summary_with_other_types_is_damaged(change: dict[str, Any]) -> None:
    whole = json.loads(targets_data._folder()["summary.json"])
    _refused(DataError, lambda: CleaningSummary.from_json(json.dumps(whole | change)))
    _refused(DataError, lambda: CleaningSummary.from_json(DEEP))


@each("table", ["interactions", "catalogue", "users"])
@each("damage", ["PAR1", "cut", "other"])
def test_a_damaged_prepared_table_is_told(tmp_path: Path, table: str, damage: str) -> None:
    files = targets_data._folder()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    whole = files[f"{table}.parquet"]
    other = files["users.parquet" if table != "users" else "catalogue.parquet"]
    bad = {"PAR1": b"PAR1", "cut": whole[:-20], "other": other}[damage]
    (tmp_path / f"{table}.parquet").write_bytes(bad)

    def read() -> None:
        prepared = open_prepared(tmp_path)
        with prepared.reading():
            prepared.interactions().collect()
        prepared.catalogue()
        prepared.users()

    assert "prepare it again" in _refused(DataError, read)


def test_a_line_that_is_too_deep_is_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    depth = sys.getrecursionlimit() - 60
    path.write_text(
        f'{{"user_id": "u0"}}\n{{"user_id": {"[" * depth}{"]" * depth}}}\n{{"user_id": "u2"}}\n',
        encoding="utf-8",
    )
    read = read_jsonl(path, keys=["user_id"]).collect()
    assert read["source_fault"].to_list() == [False, True, False]
    assert read["user_id"].to_list() == ["u0", None, "u2"]


def test_a_parquet_file_that_ends_its_reader_is_refused(tmp_path: Path) -> None:
    raw = zlib.decompress(base64.b85decode(PARQUET))
    for name in ("users", "interactions"):
        (tmp_path / f"{name}.parquet").write_bytes(raw)
    text = targets_data._DESCRIPTION.replace("users.csv", "*.parquet")
    (tmp_path / "crossrec.toml").write_text(text, encoding="utf-8")
    message = _refused(DataError, lambda: open_source(str(tmp_path), "A").users())
    assert "interactions.parquet can't be read as Parquet" in message
    whole = tmp_path / "whole.parquet"
    whole.write_bytes(targets_data._file("users", "parquet"))
    broken = tmp_path / "users.parquet"
    assert first_broken([whole, broken, whole]) == broken
    assert first_broken([whole, tmp_path / "missing.parquet"]) is None
    assert first_broken([]) is None


def test_a_spend_beyond_all_numbers_is_bounded(tmp_path: Path) -> None:
    for name, text in targets_data._CSV.items():
        (tmp_path / f"{name}.csv").write_text(text.replace(",1,1.5,", ",1e300,1e300,"), "utf-8")
    (tmp_path / "crossrec.toml").write_text(targets_data._DESCRIPTION, encoding="utf-8")
    prepared = targets_data._prepared(str(tmp_path), tmp_path / "prepared")
    items = item_table(prepared.catalogue(), targets_platform.SMALL.model)
    spend = read_histories(prepared.interactions(), items, 32).spend
    assert np.isfinite(spend).all()
    assert spend.max() == np.float32(1e12)


def test_a_prepared_table_that_was_changed_is_told(tmp_path: Path) -> None:
    for name, content in targets_data._folder().items():
        (tmp_path / name).write_bytes(content)
    open_prepared(tmp_path)
    path = tmp_path / "users.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"2")
    assert "checksum" in _refused(DataError, lambda: open_prepared(tmp_path))
    (tmp_path / "checksums.json").write_text(DEEP, encoding="utf-8")
    assert "checksum" in _refused(DataError, lambda: open_prepared(tmp_path))


def test_an_sqlite_file_with_a_column_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    raw = targets_data._sqlite().replace(b"event", b"\xf6vent")
    check = targets_data._database(tmp_path)
    with pytest.raises(DataError):
        check(b"\0" + raw)


@each("setting", ["name", "interactions.files", "catalogue.quote"])
def test_a_description_with_huge_numbers_is_refused(tmp_path: Path, setting: str) -> None:
    section, _, key = setting.rpartition(".")
    text = f"[{section}]\n{key} = {HEX}\n" if section else f"{key} = {HEX}\n"
    (tmp_path / "crossrec.toml").write_text(text, encoding="utf-8")
    _refused(DataError, lambda: open_source(str(tmp_path), "A"))


def test_a_plan_of_very_many_steps_is_priced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> float:
        raise AssertionError("minutes of convolutions")

    monkeypatch.setattr(pricing, "_loss_epsilon", never)
    events = (SampledGaussian(multiplier=1e6, rate=0.5, steps=10**7), GaussianRelease(multiplier=9))
    assert 0 < pricing.epsilon(events, 1e-5) < 10
