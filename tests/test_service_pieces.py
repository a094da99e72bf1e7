"""Messages in pieces: what is put in comes out, whole and in order, with few bytes on the way on any link."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portend.errors import MessageError
from portend.service.pieces import Ack, Assembly, Outbox, is_piece

_EXTRA = 120  # bytes of encryption, framing, TCP and IP of a small message


class Wire:
    """A simulated link: bytes pass one after the other at a rate, then take a delay; acknowledgments come back.

    Attributes:
        got: (second, header, payload) of the messages that arrived. round_trips: of life signs, by second.
    """

    def __init__(self, rate_bps: float | Callable[[float], float], delay_s: float, beat_s: float = 0.2) -> None:
        self._rate = rate_bps if callable(rate_bps) else lambda _: rate_bps
        self._delay_s, self._beat_s = delay_s, beat_s
        self.outbox, self.now = Outbox(), 0.0
        self._assembly = Assembly(64 << 20)
        self._free_at = 0.0
        self._events: list[tuple[float, int, str, list[bytes]]] = []
        self._count = 0
        self._beaten = True
        self.got: list[tuple[float, bytes, bytes]] = []
        self.round_trips: list[tuple[float, float]] = []
        self.silent = 0
        self._put(0.0, "beat", [])

    def _put(self, at: float, what: str, frames: list[bytes]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, what, frames))

    def _pump(self) -> None:
        while (frames := self.outbox.next(self.now)) is not None:
            sent = [bytes(frame) for frame in frames]
            size = _EXTRA + sum(map(len, sent))
            self._free_at = max(self._free_at, self.now) + 8 * size / self._rate(self.now)
            self._put(self._free_at + self._delay_s, "piece", sent)

    def _beat(self) -> None:
        if self._beaten:
            self._beaten, began = False, self.now

            def arrived() -> None:
                self._beaten = True
                self.round_trips.append((began, self.now - began))

            self.outbox.put(b"beat", done=arrived)
        self._put(self.now + max(self._beat_s, 4 * (self.outbox.round_trip_s or 0.0)), "beat", [])

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now, _, what, frames = heapq.heappop(self._events)
            self.silent += self.outbox.round_trip_s is not None and self.outbox.silent(self.now)
            if what == "beat":
                self._beat()
            elif what == "piece":
                number, end, whole = self._assembly.add("edge", b"1", frames)
                if whole is not None and bytes(whole[0]) != b"beat":
                    self.got.append((self.now, bytes(whole[0]), bytes(whole[1])))
                ack_s = 8 * (_EXTRA + 25) / self._rate(self.now) + self._delay_s
                self._put(self.now + ack_s, "ack", [Ack(number, end, 7, 1).packed()])
            else:
                self.outbox.acked(Ack.read(frames[0]), self.now)
            self._pump()
        self.now = until_s


LINKS = [(25e3, 0.05), (3e6, 0.02), (1e7, 0.01), (1e9, 1e-4), (1e8, 0.05)]


@pytest.mark.parametrize(("rate_bps", "delay_s"), LINKS)
def test_life_signs_wait_behind_little_of_what_is_due_and_the_link_is_used(rate_bps: float, delay_s: float) -> None:
    wire = Wire(rate_bps, delay_s)
    wire.run(2.0)
    alone_s = max(took for _, took in wire.round_trips)
    size = int(rate_bps / 8)  # a second of data in four messages, four times over
    for number in range(16):
        wire.outbox.put(b"%d" % number, bytes(size // 4))
    wire.run(30.0)
    assert [int(head) for _, head, _ in wire.got] == list(range(16))
    assert {len(payload) for *_, payload in wire.got} == {size // 4}
    took_s = wire.got[-1][0] - 2.0
    overhead = 1.13 if rate_bps < 1e5 else 1.03
    assert took_s < 4.0 * overhead + 14 * (alone_s + 0.02)  # some round trips until the rate is known
    waited = [took - alone_s for began, took in wire.round_trips if began > 3.0]
    assert max(waited) < (1.2 if rate_bps < 1e5 else 0.25)
    assert not wire.silent


@pytest.mark.parametrize("rate_bps", [2.4e3, 1e4])
def test_the_slowest_links_are_not_taken_for_dead(rate_bps: float) -> None:
    wire = Wire(rate_bps, 0.05)
    wire.run(20.0)
    wire.outbox.put(b"1", bytes(3000))
    wire.run(20 + 2.2 * 8 * 3000 / rate_bps)
    assert len(wire.got) == 1
    assert not wire.silent


def test_a_warm_link_carries_a_tensor_at_once() -> None:
    """No round trips are lost between pieces: a tensor of 65 kB takes as long as one message does."""
    wire = Wire(1e7, 0.02)
    wire.run(1.0)
    for number in range(40):
        wire.outbox.put(b"x", bytes(65_536))
        wire.run(2.0 + number)
    last = wire.got[-1][0] - 40.0
    assert last == pytest.approx(8 * 65_536 / 1e7 + 0.02, rel=0.05)


def test_a_link_that_gets_ten_times_slower_and_back_is_never_taken_for_dead() -> None:
    wire = Wire(lambda now: 1e6 if 10 < now < 20 else 1e7, 0.01)
    wire.run(1.0)
    for second in range(1, 40):
        for _ in range(3):
            wire.outbox.put(b"x", bytes(30_000))
        wire.run(1.0 + second)
    assert len(wire.got) == 3 * 39
    assert not wire.silent


def test_what_is_not_acknowledged_is_silence_after_what_it_may_take() -> None:
    box = Outbox(silence_s=1.0)
    assert not box.silent(100.0)
    box.put(b"beat")
    assert box.next(0.0) is not None
    assert not box.silent(1.0)
    assert box.silent(1.01)
    box.excuse(5.0)
    assert not box.silent(5.9)
    box.clear()
    assert (box.flight, box.silent(100.0), box.next(100.0)) == (0, False, None)


def test_messages_without_a_payload_go_before_the_others() -> None:
    box = Outbox()
    box.put(b"data", bytes(10_000))
    box.put(b"beat")
    first = box.next(0.0)
    assert first is not None
    assert first[0].endswith(b"beat")


def test_done_is_called_once_all_of_a_message_arrived_also_where_acknowledgments_were_lost() -> None:
    box, done = Outbox(), []
    box.put(b"a", b"1" * 300, lambda: done.append("a"))
    box.put(b"b", b"2", lambda: done.append("b"))
    pieces = []
    while (frames := box.next(0.0)) is not None:
        pieces.append(frames)
    assembly = Assembly(1 << 20)
    ends = [assembly.add("x", b"1", [bytes(f) for f in frames])[:2] for frames in pieces]
    assert box.acked(Ack(99, 0, 1, 1), 0.1) is None
    assert done == []
    assert box.acked(Ack(*ends[-1], 1, 1), 0.1) == 0.0
    assert done == ["a", "b"][: len(done)]
    while (frames := box.next(0.2)) is not None:
        box.acked(Ack(*assembly.add("x", b"1", [bytes(f) for f in frames])[:2], 1, 1), 0.2)
    assert done == ["a", "b"]


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.none() | st.binary(max_size=5000)), max_size=8))
def test_what_is_put_in_comes_out(messages: list[tuple[bytes, bytes | None]]) -> None:
    box, assembly, got = Outbox(), Assembly(5000), []
    for head, payload in messages:
        box.put(head, payload)
    now = 0.0
    while (frames := box.next(now)) is not None:
        assert is_piece(frames[0])
        number, end, whole = assembly.add("a", b"", [bytes(frame) for frame in frames])
        if whole is not None:
            got.append((bytes(whole[0]), bytes(whole[1]) if len(whole) > 1 else None))
        now += 0.01
        box.acked(Ack(number, end, 1, 1), now)
    small, large = ([m for m in messages if (m[1] is None) is first] for first in (True, False))
    assert got == [*small, *large]


@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=3), max_size=5), st.data())
def test_no_pieces_break_the_assembly_or_make_it_hold_more_than_came(
    rest: list[list[bytes]], data: st.DataObject
) -> None:
    assembly, whole_numbers = Assembly(1000), st.integers(0, 50) | st.integers(0, 2**32 - 1)
    for frames in rest:
        first = b"\xc1" + b"".join(data.draw(whole_numbers).to_bytes(4, "big") for _ in range(3))
        try:
            assembly.add(
                data.draw(st.sampled_from("ab")), data.draw(st.sampled_from([b"1", b"2", b"3"])), [first, *frames]
            )
        except MessageError:
            continue
    held = sum(len(one.payload) for begun in assembly._begun.values() for one in begun.values())
    assert held <= sum(len(frame) for frames in rest for frame in frames)
    assert all(len(begun) <= 2 for begun in assembly._begun.values())


def test_an_acknowledgment_is_read_back_or_refused() -> None:
    ack = Ack(1, 2, 3, -4)
    assert Ack.read(ack.packed()) == ack
    for wrong in (b"", ack.packed()[:-1], b"\x00" + ack.packed()[1:]):
        with pytest.raises(MessageError):
            Ack.read(wrong)
