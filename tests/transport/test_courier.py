"""Answers in order of arrival: deadlines, departures, and what is never held."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

from server import courier
from server.courier import Loss, Lost, NodeId, Payload, arrivals

A, B, C = NodeId(1), NodeId(2), NodeId(3)


class Answers:
    """Waits that end when told to."""

    def __init__(self, *nodes: NodeId) -> None:
        self.online = set(nodes)
        self.stops: dict[NodeId, threading.Event] = {}
        self._answers: dict[NodeId, Payload | Lost] = {}
        self._came = threading.Condition()

    def give(self, node: NodeId, answer: Payload | Lost) -> None:
        with self._came:
            self._answers[node] = answer
            self._came.notify_all()

    def wait(self, node: NodeId, stop: threading.Event) -> Payload | Lost:
        self.stops[node] = stop
        with self._came:
            while node not in self._answers and not stop.is_set():
                self._came.wait(0.01)
            return self._answers.pop(node, Lost(Loss.FAILED))


def test_answers_come_in_order_of_arrival_and_every_node_once() -> None:
    answers = Answers(A, B, C)
    answers.give(B, b"b")
    coming = arrivals([A, B, C], answers.wait, lambda: answers.online, timeout_s=0.5)
    assert next(coming) == (B, b"b")
    answers.give(A, Lost(Loss.FAILED))
    assert next(coming) == (A, Lost(Loss.FAILED))
    assert list(coming) == [(C, Lost(Loss.LATE))]
    assert answers.stops[C].is_set()
    assert list(arrivals([], answers.wait, lambda: answers.online, timeout_s=0.5)) == []


def test_closing_ends_all_waiting() -> None:
    answers = Answers(A, B)
    answers.give(A, b"a")
    coming = arrivals([A, B], answers.wait, lambda: answers.online, timeout_s=60)
    assert next(coming) == (A, b"a")
    assert not answers.stops[B].is_set()
    coming.close()
    assert answers.stops[B].is_set()


def test_an_answer_in_time_counts_however_late_it_is_asked_for() -> None:
    answers = Answers(A, B, C)
    coming = arrivals([A, B, C], answers.wait, lambda: answers.online, timeout_s=0.2)
    answers.give(A, b"a")
    assert next(coming) == (A, b"a")
    answers.give(B, b"b")
    time.sleep(0.4)
    assert list(coming) == [(B, b"b"), (C, Lost(Loss.LATE))]


def test_a_node_that_leaves_is_gone_unless_its_answer_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(courier, "CHECK_ONLINE_S", 0.05)
    answers = Answers(A, B, C)
    coming = arrivals([A, B, C], answers.wait, lambda: answers.online, timeout_s=60)
    answers.give(A, b"a")
    assert next(coming) == (A, b"a")
    answers.give(B, b"b")
    answers.online.clear()
    time.sleep(0.2)
    assert list(coming) == [(B, b"b"), (C, Lost(Loss.GONE))]


def test_an_answer_handed_over_is_held_by_nobody_else() -> None:
    answers = Answers(A, B)
    coming = arrivals([A, B], answers.wait, lambda: answers.online, timeout_s=60)
    kept: Mapping[NodeId, weakref.ref[np.ndarray]] = {}
    for node in (A, B):
        vector = np.ones(8)
        kept = {**kept, node: weakref.ref(vector)}
        answers.give(node, vector.data.cast("B"))
        del vector
        came, answer = next(coming)
        assert (came, len(answer)) == (node, 64)  # type: ignore[arg-type]
        del answer
        end = time.monotonic() + 5
        while kept[node]() is not None and time.monotonic() < end:
            time.sleep(0.01)  # the waiting thread is about to end
        assert kept[node]() is None
    coming.close()
