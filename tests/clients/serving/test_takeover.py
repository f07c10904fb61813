"""A new model is taken over while the earlier one answers; a broken one is left alone."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_process import Running, running, stub_of
from serving_stage import make_trained

from clients.platform import main
from clients.serving.calls import RecommendCall
from clients.serving.model import load_model, version_on_disk
from clients.serving.proto import recommender_pb2 as pb
from clients.serving.service import Service
from clients.serving.watch import read_out_of_stock
from clients.state import PlatformFolder
from crossrec_model.errors import DataError

TIMEOUT = 20.0


def wait_for(what: Any, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def lines(state: Path) -> list[dict[str, Any]]:
    log = state / "A" / "serving.log"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_what_was_shown_stays_known(home: Path, model) -> None:
    service = Service(model, [], np.random.default_rng(1))
    shown = service.recommend(RecommendCall(user_id="u1", k=9)).items
    service.take_over(load_model(PlatformFolder(home / "A"), "A"))
    fresh = service.recommend(RecommendCall(user_id="u2", k=9, explore=1.0)).items
    assert not {item.item_id for item in shown} & {
        item.item_id for item in fresh if item.source == "explored"
    }


@pytest.mark.processes
def test_no_call_fails_while_models_change(tmp_path: Path) -> None:
    make_trained(tmp_path, "A")
    folder = PlatformFolder(tmp_path / "A")
    with running(tmp_path) as process, stub_of(process.grpc) as stub:
        versions, failures, stop = set(), [], threading.Event()

        def call() -> None:
            while not stop.is_set():
                request = pb.RecommendRequest(user_id="u1", k=5)
                try:
                    versions.add(stub.Recommend(request, timeout=TIMEOUT).model)
                except Exception as error:
                    failures.append(error)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        try:
            for seed in (11, 12):
                make_trained(tmp_path, "A", seed=seed, run=bytes([seed]))
                wanted = version_on_disk(folder)
                wait_for(lambda wanted=wanted: wanted in versions)
        finally:
            stop.set()
            for caller in callers:
                caller.join(30)
        assert not failures
        assert len(versions) >= 3
        assert process.stop() == 128 + signal.SIGTERM


@pytest.mark.processes
def test_a_broken_model_is_left_alone_and_told_once(tmp_path: Path) -> None:
    make_trained(tmp_path, "A")
    path = tmp_path / "A" / "model.safetensors"
    whole = path.read_bytes()
    with running(tmp_path) as process, stub_of(process.grpc) as stub:
        request = pb.RecommendRequest(user_id="u1", k=5)
        before = stub.Recommend(request, timeout=TIMEOUT)
        path.write_bytes(whole[:-10])
        wait_for(
            lambda: any("earlier model goes on" in line["message"] for line in lines(tmp_path))
        )
        time.sleep(2.5)
        assert sum("earlier model" in line["message"] for line in lines(tmp_path)) == 1
        assert stub.Recommend(request, timeout=TIMEOUT) == before
        path.write_bytes(whole)
        wait_for(lambda: stub.Recommend(request, timeout=TIMEOUT).model != before.model)
        best = before.items[0].item_id
        (tmp_path / "A" / "out-of-stock.txt").write_text(f"{best}\n\n", encoding="utf-8")
        wait_for(lambda: stub.Recommend(request, timeout=TIMEOUT).items[0].item_id != best)


@pytest.mark.processes
def test_a_port_in_use_and_a_missing_model_are_one_line(tmp_path: Path, home: Path, capsys) -> None:
    assert main(["serve", "--id", "Z", "--state", str(tmp_path)]) == 2
    assert "platform Z is unknown" in capsys.readouterr().err
    assert main(["serve", "--id", "A", "--state", str(home), "--host", "0.0.0.0"]) == 2
    assert "is not loopback" in capsys.readouterr().err
    with running(home) as process:
        for option, address in (("--grpc-port", process.grpc), ("--http-port", process.http)):
            other = Running(home, option, address.rpartition(":")[2])
            try:
                assert other.child.wait(60) == 2
            finally:
                other.end()
            last = other.output.strip().splitlines()[-1]
            assert last.startswith("error: ")
            assert "can't be used" in last
        assert process.child.poll() is None


def test_the_list_of_what_is_out_of_stock(tmp_path: Path) -> None:
    path = tmp_path / "out-of-stock.txt"
    assert read_out_of_stock(path) == []
    path.write_text(" a \n\nb\n", encoding="utf-8")
    assert read_out_of_stock(path) == ["a", "b"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_out_of_stock(path)
