"""Whatever a courier does in whatever order, both sides come to the right end or a named error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sides import connect, digests, exchange

from crossrec_model.errors import WireError
from crossrec_model.linkage import blinding, intersection, messages
from crossrec_model.linkage.errors import LinkageError
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.intersection import Counters, Exchanging

CORES = Cores(1)
ONE, TWO = digests(range(70)), digests(range(40, 130))


class Courier(RuleBasedStateMachine):
    """Frames lie in one box a direction; the courier hands over any of them, changed or not."""

    sides: tuple[Exchanging, Exchanging]

    @initialize()
    def begin(self) -> None:
        self.sides = connect(ONE, TWO)
        self.boxes: tuple[list[bytes], list[bytes]] = ([], [])
        self.handed = [0, 0]
        self.before = (Counters(), Counters())

    @rule(who=st.sampled_from([0, 1]))
    def send(self, who: int) -> None:
        frame = self.sides[who].next_block(CORES)
        if frame is not None:
            self.boxes[who].append(frame)

    @precondition(lambda self: any(self.boxes))
    @rule(who=st.sampled_from([0, 1]))
    def hand_over_in_turn(self, who: int) -> None:
        if self.handed[who] < len(self.boxes[who]):
            frame = self.boxes[who][self.handed[who]]
            self.handed[who] += 1
            answer = self.sides[1 - who].receive(frame, CORES)
            if answer is not None:
                self.boxes[1 - who].append(answer)

    @precondition(lambda self: any(self.boxes))
    @rule(who=st.sampled_from([0, 1]), data=st.data())
    def hand_over_wrongly(self, who: int, data: st.DataObject) -> None:
        frames = [f for box in self.boxes for f in box]
        frame = bytearray(data.draw(st.sampled_from(frames)))
        due = self.boxes[1 - who][self.handed[1 - who] :][:1]
        change = data.draw(st.sampled_from(["no", "flip", "cut"]))
        if change == "flip":
            frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
        elif change == "cut":
            del frame[data.draw(st.integers(0, len(frame) - 1)) :]
        elif [bytes(frame)] == due:
            return
        state = self.sides[who]
        before, own, theirs = state.counters, state.own.copy(), state.theirs.copy()
        late = [f for f in self.boxes[1 - who] if f == bytes(frame)]
        try:
            answer = state.receive(bytes(frame), CORES)
        except (LinkageError, WireError):
            assert state.counters == before
            assert (state.own == own).all()
            assert (state.theirs == theirs).all()
        else:
            # One stream may overtake the other; each is in order and nothing was changed.
            assert late
            self.boxes[1 - who].remove(bytes(frame))
            self.boxes[1 - who].insert(self.handed[1 - who], bytes(frame))
            self.handed[1 - who] += 1
            if answer is not None:
                self.boxes[who].append(answer)

    @rule(who=st.sampled_from([0, 1]))
    def stop_and_go_on(self, who: int) -> None:
        """A process that is started again has what it was made of, its arrays and its counters."""
        old = self.sides[who]
        kept = {"own": old.own, "theirs": old.theirs}
        new = Exchanging.begin(
            replace(old.channel),
            old.blinding,
            old.their_size,
            lambda name, _rows: kept[name],
            old.counters,
        )
        self.sides = (new, self.sides[1]) if who == 0 else (self.sides[0], new)

    @invariant()
    def counters_only_grow(self) -> None:
        if not hasattr(self, "sides"):
            return
        now = (self.sides[0].counters, self.sides[1].counters)
        for earlier, later in zip(self.before, now, strict=True):
            assert earlier.sent <= later.sent
            assert earlier.taken <= later.taken
            assert earlier.returned <= later.returned <= later.sent
        self.before = now

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        for who in (0, 1, 0, 1, 0, 1):
            while self.handed[who] < len(self.boxes[who]):
                self.hand_over_in_turn(who)
        exchange(*self.sides, CORES)
        a, b = (side.compare() for side in self.sides)
        assert sorted(a.elements.tolist()) == list(range(40, 70))
        assert sorted(b.elements.tolist()) == list(range(30))


def test_any_courier(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blinding, intersection, messages):
        monkeypatch.setattr(module, "BLOCK", 64)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Courier,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
