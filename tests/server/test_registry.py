"""One seat an id; a dead holder gives way, a living one does not."""

from __future__ import annotations

from server.courier import NodeId
from server.registry import Registry, Verdict

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def test_the_first_claim_and_its_repetition_are_admitted() -> None:
    registry, verdict = Registry().claim("A", ONE, {ONE: 1.0})
    assert verdict is Verdict.ADMITTED
    assert registry.claim("A", ONE, {ONE: 2.0})[1] is Verdict.ADMITTED
    assert registry.seated({ONE: 2.0}) == {"A": ONE}


def test_a_second_claim_waits_and_is_refused_once_the_holder_is_heard() -> None:
    registry, _ = Registry().claim("A", ONE, {ONE: 1.0})
    registry, verdict = registry.claim("A", TWO, {ONE: 1.0, TWO: 5.0})
    assert verdict is Verdict.WAITING
    registry, verdict = registry.claim("A", TWO, {ONE: 1.0, TWO: 6.0})
    assert verdict is Verdict.WAITING
    assert registry.strangers({ONE: 1.0, TWO: 6.0}) == [TWO]
    registry, verdict = registry.claim("A", TWO, {ONE: 1.5, TWO: 7.0})
    assert verdict is Verdict.REFUSED
    assert registry.strangers({ONE: 2.0, TWO: 7.0}) == []
    assert registry.seated({ONE: 2.0, TWO: 7.0}) == {"A": ONE}


def test_a_holder_that_is_heard_after_the_clock_was_set_back_is_alive() -> None:
    registry, _ = Registry().claim("A", ONE, {ONE: 100.0})
    registry, _ = registry.claim("A", TWO, {ONE: 100.0, TWO: 101.0})
    assert registry.claim("A", TWO, {ONE: 7.0, TWO: 8.0})[1] is Verdict.REFUSED


def test_a_second_claim_gets_the_seat_once_the_holder_is_gone() -> None:
    registry, _ = Registry().claim("A", ONE, {ONE: 1.0})
    registry, _ = registry.claim("A", TWO, {ONE: 1.0, TWO: 1.0})
    registry, verdict = registry.claim("A", TWO, {TWO: 2.0})
    assert verdict is Verdict.ADMITTED
    assert registry.seated({ONE: 9.0, TWO: 2.0}) == {"A": TWO}
    assert registry.waiting == {}


def test_two_that_wait_for_one_seat_are_told_apart() -> None:
    registry, _ = Registry().claim("A", ONE, {ONE: 1.0})
    registry, _ = registry.claim("A", TWO, {ONE: 1.0})
    registry, _ = registry.claim("A", THREE, {ONE: 1.0})
    registry, second = registry.claim("A", TWO, {TWO: 1.0, THREE: 1.0})
    registry, third = registry.claim("A", THREE, {TWO: 1.0, THREE: 1.0})
    assert (second, third) == (Verdict.ADMITTED, Verdict.WAITING)


def test_seats_come_in_sorted_order_and_can_be_vacated() -> None:
    registry = Registry()
    marks = {ONE: 1.0, TWO: 1.0, THREE: 1.0}
    for platform, node in (("C", ONE), ("A", TWO), ("B", THREE)):
        registry, _ = registry.claim(platform, node, marks)
    assert list(registry.seated(marks)) == ["A", "B", "C"]
    assert list(registry.seated({ONE: 1.0})) == ["C"]
    assert list(registry.vacate("B").seated(marks)) == ["A", "C"]


def test_a_doubted_node_is_left_out_until_it_is_heard_again() -> None:
    registry, _ = Registry().claim("A", ONE, {ONE: 1.0})
    doubted = registry.doubt(ONE, 1.0)
    assert doubted.seated({ONE: 1.0}) == {}
    assert doubted.seated({ONE: 1.1}) == {"A": ONE}
    # The wall clock was set back, so that later marks are smaller.
    assert doubted.seated({ONE: 0.9}) == {"A": ONE}
    assert registry.seated({ONE: 1.0}) == {"A": ONE}
