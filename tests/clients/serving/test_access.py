"""API keys and limits: kept as hashes, revoked at once, refused in the interface's own words."""

from __future__ import annotations

import asyncio
import json
import ssl
from datetime import UTC, datetime
from pathlib import Path

import grpc
import httpx
import pytest
from serving_process import running, stub_of

from clients.platform import main
from clients.serving import access
from clients.serving.access import Doorkeeper, KeyFileError, make_key, read_keys, revoke_key
from clients.serving.calls import Code, RefusedCallError
from clients.serving.desk import Caller, Desk
from clients.serving.limits import MOST_CALLERS, RateLimit
from clients.serving.metrics import Metrics
from clients.serving.process import ServeSettings
from clients.serving.proto import recommender_pb2 as pb
from clients.state import PlatformFolder
from crossrec_model.errors import ConfigError
from server.tls import make_certificates

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_a_key_is_known_and_not_on_the_disk(tmp_path: Path) -> None:
    key = make_key(tmp_path, "shop", NOW)
    file = tmp_path / "api-keys.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert key.startswith("crk_shop_")
    assert key.removeprefix("crk_shop_") not in file.read_text()
    door = Doorkeeper(tmp_path)
    assert door.known(key) is None
    assert door.proven(key) == "shop"
    assert door.known(key) == "shop"


@pytest.mark.parametrize(
    "wrong",
    ["", "crk_", "crk_shop_", "crk_shop_x", "crk_other_x", "CRK_shop_x", "\ud800", "_" * 99],
)
def test_another_key_is_not_known(tmp_path: Path, wrong: str) -> None:
    make_key(tmp_path, "shop", NOW)
    door = Doorkeeper(tmp_path)
    assert door.proven(wrong) is None
    assert door.known(wrong) is None


def test_a_changed_secret_is_not_known(tmp_path: Path) -> None:
    key = make_key(tmp_path, "shop", NOW)
    door = Doorkeeper(tmp_path)
    assert door.proven(key[:-1] + ("A" if key[-1] != "A" else "B")) is None
    assert door.proven(key + "A") is None


def test_a_revoked_key_is_out_at_once(tmp_path: Path) -> None:
    key, other = make_key(tmp_path, "shop", NOW), make_key(tmp_path, "app", NOW)
    door = Doorkeeper(tmp_path)
    assert (door.proven(key), door.proven(other)) == ("shop", "app")
    revoke_key(tmp_path, "shop")
    assert door.known(key) is None
    assert door.proven(key) is None
    assert door.proven(other) == "app"


def test_two_keys_are_salted_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_key(tmp_path, name, NOW)
    kept = read_keys(tmp_path)
    assert kept["a"].salt != kept["b"].salt
    assert kept["a"].hash != kept["b"].hash


def test_names_are_checked(tmp_path: Path) -> None:
    make_key(tmp_path, "shop", NOW)
    for name in ("shop", "", "A", "a_b", "a" * 41, "../x"):
        with pytest.raises(ConfigError):
            make_key(tmp_path, name, NOW)
    with pytest.raises(ConfigError, match="there are: shop"):
        revoke_key(tmp_path, "nobody")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2, "keys": {}}', '{"format": 1, "keys": {"a": {"salt": "x"}}}'],
)
def test_a_damaged_file_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "api-keys.json").write_text(content)
    with pytest.raises(KeyFileError, match="can't be used"):
        Doorkeeper(tmp_path)


def test_the_cost_is_not_lowered_unnoticed() -> None:
    assert access._COST == {"n": 2**14, "r": 8, "p": 1, "length": 32}


def test_keys_on_the_command_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "A").mkdir()
    place = ["--id", "A", "--state", str(tmp_path)]
    assert main(["api-keys", "make", "shop", *place]) == 0
    key = capsys.readouterr().out.strip()
    assert Doorkeeper(tmp_path / "A").proven(key) == "shop"
    assert main(["api-keys", "list", *place]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("shop  made 20")
    assert key not in listed
    assert main(["api-keys", "revoke", "shop", *place]) == 0
    assert main(["api-keys", "revoke", *place]) == 2
    assert main(["api-keys", "make", "shop", "--id", "B", "--state", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_bucket_fills_at_its_rate() -> None:
    now = 0.0
    limit = RateLimit(2.0, 3.0, clock=lambda: now)
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b")
    now = 0.5
    assert [limit.allows("a") for _ in range(2)] == [True, False]
    now = 100.0
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]


def test_callers_without_end_do_not_fill_the_memory() -> None:
    limit = RateLimit(1.0, 1.0, clock=lambda: 0.0)
    for number in range(MOST_CALLERS + 100):
        limit.allows(str(number))
    assert len(limit._left) == MOST_CALLERS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "is not loopback: give --tls-cert"),
        ({"host": "shop.example"}, "is not loopback"),
        ({"tls_cert": Path("x")}, "go together"),
        ({"grpc_port": 70000}, "outside"),
        ({"rate": 0.0}, "--rate"),
        ({"burst": float("nan")}, "--burst"),
    ],
)
def test_unsafe_settings_are_refused(tmp_path: Path, options, words) -> None:
    with pytest.raises(ConfigError, match=words):
        ServeSettings(platform="A", folder=PlatformFolder(tmp_path / "A"), **options)


def test_beyond_loopback_keys_are_asked_for(tmp_path: Path) -> None:
    folder, file = PlatformFolder(tmp_path / "A"), tmp_path / "x"
    assert ServeSettings(
        platform="A", folder=folder, host="10.0.0.1", tls_cert=file, tls_key=file
    ).keyed
    assert not ServeSettings(platform="A", folder=folder, host="::1").keyed


@pytest.mark.processes
def test_tls_keys_and_rates_of_a_real_service(home: Path, tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "tls", [])
    key = make_key(home / "A", "shop", NOW)
    options = ("--tls-cert", str(tls.certificate), "--tls-key", str(tls.key), "--require-keys")
    with running(home, *options, "--rate", "1", "--burst", "3") as process:
        credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes())
        request = pb.RecommendRequest(user_id="u1", k=2)
        shown = (("authorization", f"Bearer {key}"),)
        with stub_of(process.grpc, credentials) as stub:
            assert len(stub.Recommend(request, timeout=20, metadata=shown).items) == 2
            for metadata in ((), (("authorization", "Bearer crk_shop_x"),)):
                with pytest.raises(grpc.RpcError) as refused:
                    stub.Recommend(request, timeout=20, metadata=metadata)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            codes = set()
            for _ in range(6):
                found = stub.Recommend.future(request, timeout=20, metadata=shown)
                codes.add(found.code())
            assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        assert process.http.startswith("https://")
        context = ssl.create_default_context(cafile=tls.ca)
        with httpx.Client(base_url=process.http, verify=context, timeout=20) as web:
            body = {"user_id": "u1", "k": 2}
            assert web.get("/health").status_code == 200
            refusal = web.post("/v1/recommend", json=body)
            assert refusal.status_code == 401
            assert refusal.headers["WWW-Authenticate"] == "Bearer"
            assert web.get("/metrics").status_code == 401
            headers = {"Authorization": f"Bearer {key}"}
            codes = {
                web.post("/v1/recommend", json=body, headers=headers).status_code for _ in "12345"
            }
            assert 429 in codes
            revoke_key(home / "A", "shop")
            assert web.post("/v1/recommend", json=body, headers=headers).status_code == 401
        log = (home / "A" / "serving.log").read_text(encoding="utf-8")
        assert json.loads(log.splitlines()[-1])["code"] == "unauthenticated"
        assert key not in log


def test_a_damaged_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    key = make_key(tmp_path, "shop", NOW)
    desk = Desk(
        *(None, None, Metrics()),  # type: ignore[arg-type]
        doorkeeper=Doorkeeper(tmp_path),
        limit=RateLimit(1e6, 1e6),
    )
    caller = Caller(address="here", key=key)
    asyncio.run(desk.admit(caller))
    (tmp_path / "api-keys.json").write_text("{")
    with pytest.raises(RefusedCallError) as refused:
        asyncio.run(desk.admit(caller))
    assert refused.value.code is Code.UNAVAILABLE
