"""Files that once ended in a traceback, a hang or an unclear refusal."""

from __future__ import annotations

import base64
import json
import sqlite3
import sys
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import targets_coordinator
import targets_data
import targets_database
import targets_platform
import targets_state
from refusals import DEEP, HEX, each, refused
from targets_coordinator import RUN

from clients.adapters import open_source
from clients.adapters.readers import read_jsonl
from clients.adapters.trial import first_broken
from crossrec_model.data.histories import read_histories
from crossrec_model.data.items import item_table
from crossrec_model.data.prepared import open_prepared
from crossrec_model.data.summary import CleaningSummary
from crossrec_model.errors import ConfigError, CrossrecError, DataError, FederationError
from server.checkpoint import CheckpointStore
from server.database import Database
from server.handover import Handover
from server.openings import Openings
from server.store import Store
from server.tls import TlsFiles, make_certificates, renew_certificate

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
    for name in targets_state._STATES:
        first = targets_state._STATES[name][0]
        raw = targets_state._described(first, description.encode())
        (tmp_path / name).write_bytes(raw or b"")
        folder = targets_state.PlatformFolder(tmp_path)
        refused(CrossrecError, folder.load_received if "rec" in name else folder.load_trained)
        (tmp_path / name).unlink()


def test_a_mixture_of_components_without_names_is_damage(tmp_path: Path) -> None:
    name = targets_state.MODEL
    first, text = targets_state._state_seeds(name)
    document = json.loads(text)
    count = len(document["mixtures"]["local"]["names"])
    document["mixtures"]["local"]["names"] = [[1.0]] * count
    raw = targets_state._described(first, json.dumps(document).encode())
    (tmp_path / name).write_bytes(raw or b"")
    refused(CrossrecError, targets_state.PlatformFolder(tmp_path).load_trained)


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
    refused(FederationError, CheckpointStore(tmp_path).latest)
    (folder / "round-000002.json").write_text(DEEP, encoding="utf-8")
    refused(FederationError, CheckpointStore(tmp_path).latest)


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
    refused(FederationError, lambda: Openings(RUN, tmp_path / "openings.json"))


@each("document", [DEEP, "[]", '{"run":"","platforms":5}', "null"])
def test_a_list_of_who_has_the_model_that_is_none_is_damaged(tmp_path: Path, document: str) -> None:
    (tmp_path / "handed-out.json").write_text(document, encoding="utf-8")
    refused(FederationError, lambda: Handover(RUN, tmp_path))


def test_a_database_with_values_of_other_types_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    clock = lambda: datetime(2026, 1, 1, tzinfo=UTC)  # noqa: E731
    for statement in (
        "UPDATE rounds SET seconds = 'x'",
        "UPDATE runs SET sequence = 'x'",
        "UPDATE runs SET sequence = 9e999",
    ):
        path.write_bytes(targets_database._database()[0])
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()
        with Store.open(f"sqlite:///{path}", clock=clock) as store:
            work = (
                store.status
                if "rounds" in statement
                else lambda s=store: s.begin_run(bytes(16), b"")
            )
            refused(FederationError, work)


def test_a_database_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    refused(FederationError, lambda: Database.open(f"sqlite:///{path}"))


def test_certificates_that_are_none_are_refused(tmp_path: Path) -> None:
    make_certificates(tmp_path, [], keep_authority=True)
    files = TlsFiles.in_folder(tmp_path)
    files.certificate.write_bytes(b"no certificate")
    refused(ConfigError, lambda: files.expiry_warning(datetime.now(UTC)))
    files.ca.write_bytes(b"no certificate")
    refused(ConfigError, lambda: renew_certificate(tmp_path, []))


@each(
    "change",
    [{"users": "x"}, {"items": -1}, {"source": "\x1b"}, {"tables": [{"table": "a", "read": 1.5}]}],
)
def test_a_summary_with_other_types_is_damaged(change: dict[str, Any]) -> None:
    whole = json.loads(targets_data._folder()["summary.json"])
    refused(DataError, lambda: CleaningSummary.from_json(json.dumps(whole | change)))
    refused(DataError, lambda: CleaningSummary.from_json(DEEP))


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

    assert "prepare it again" in refused(DataError, read)


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
    message = refused(DataError, lambda: open_source(str(tmp_path), "A").users())
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
    assert "checksum" in refused(DataError, lambda: open_prepared(tmp_path))
    (tmp_path / "checksums.json").write_text(DEEP, encoding="utf-8")
    assert "checksum" in refused(DataError, lambda: open_prepared(tmp_path))


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
    refused(DataError, lambda: open_source(str(tmp_path), "A"))
