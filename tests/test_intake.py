"""The source's book: every accepted sample is answered once or reported failed, whatever happens on the way."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from portend.service.intake import Answer, Intake, digest
from portend.service.release import Limits

LIMITS = Limits(window=3, waiting=4, retry_s=5, deadline_s=30, attempts=3)


def book(**limits: float) -> tuple[Intake, list[Answer]]:
    return Intake(Limits(**({"window": 2, "waiting": 2} | limits)), 1000), []  # type: ignore[arg-type]


def send(intake: Intake, now: float, way: object = "way") -> int:
    entry = intake.next()
    assert entry is not None
    ticket = intake.sent(entry, 256, way)
    intake.handed_over(ticket, now)
    return ticket


def test_an_answer_finds_its_sample_and_gives_the_credit_back() -> None:
    intake, got = book(window=1)
    for name in "ab":
        assert intake.offer(name, b"x", 0.0, 0, got.append) == "accepted"
    ticket = send(intake, 0.0)
    assert intake.next() is None  # no credit is left
    answer = intake.answered(ticket, 256, 2.0, label=7, exit_index=1, score=0.25)
    assert answer == got[0] == Answer(id="a", label=7, exit_index=1, score=0.25, plan=256, attempts=1, latency_s=2.0)
    assert send(intake, 2.0) == ticket + 1


def test_what_comes_beyond_the_window_and_the_queue_is_refused() -> None:
    intake, got = book()
    assert [intake.offer(name, b"x", 0.0, 0, got.append) for name in "abcde"] == ["accepted"] * 4 + ["full"]
    assert (intake.refused, intake.waiting) == (1, 4)


def test_the_same_id_again_is_one_sample_and_gets_the_same_answer() -> None:
    intake, first = book()
    later: list[Answer] = []
    intake.offer("a", b"x", 0.0, "first", first.append)
    assert intake.offer("a", b"x", 0.0, "later", later.append) == "known"
    ticket = send(intake, 0.0)
    intake.answered(ticket, 256, 1.0, label=1, exit_index=0, score=0.0)
    assert first == later
    assert intake.offer("a", b"x", 5.0, "third", later.append) == "known"
    assert later == first * 2
    assert intake.under_way == intake.waiting == 0


def test_an_id_stands_for_the_bytes_that_came_with_it_first() -> None:
    intake, got = book()
    intake.offer("a", b"x", 0.0, "first", got.append)
    assert intake.offer("a", b"y", 0.0, "other", got.append) == "other"
    assert not intake.wants("a", digest(b"y"), "other", got.append)
    intake.answered(send(intake, 0.0), 256, 1.0, label=1, exit_index=0, score=0.0)
    assert len(got) == 1  # whoever sent other bytes gets no answer of these
    assert intake.offer("a", b"y", 2.0, "other", got.append) == "other"
    assert not intake.wants("a", digest(b"y"), "other", got.append)
    assert len(got) == 1


def test_a_sample_that_failed_is_tried_again_with_any_bytes() -> None:
    intake, got = book(deadline_s=30)
    intake.offer("a", b"x", 0.0, 0, got.append)
    intake.expire(30.0, "")
    assert intake.wants("a", digest(b"x"), 0, got.append)  # whoever missed that it failed is told
    assert [answer.failed for answer in got] == ["deadline"] * 2
    assert intake.offer("a", b"y", 31.0, 0, got.append) == "accepted"
    assert intake.offer("a", b"x", 31.0, 0, got.append) == "other"
    intake.answered(send(intake, 31.0), 256, 32.0, label=1, exit_index=0, score=0.0)
    assert (got[-1].failed, got[-1].label) == ("", 1)


def test_an_answer_names_the_plan_that_gave_it() -> None:
    intake, got = book()
    intake.offer("a", b"x", 0.0, 0, got.append)
    ticket = send(intake, 0.0)
    intake.broken(lambda entry: True, 1.0)
    entry = intake.next()
    assert entry is not None
    again = intake.sent(entry, 257, "way")
    assert intake.answered(again, 256, 1.5, label=2, exit_index=0, score=0.0) is None  # it went by another plan
    intake.answered(ticket, 256, 2.0, label=1, exit_index=0, score=0.0)
    assert [(answer.plan, answer.label, answer.attempts) for answer in got] == [(256, 1, 2)]


def test_a_second_answer_to_a_sample_is_counted_and_dropped() -> None:
    intake, got = book()
    intake.offer("a", b"x", 0.0, 0, got.append)
    ticket = send(intake, 0.0)
    intake.broken(lambda entry: True, 1.0)
    again = send(intake, 1.0)
    assert (
        intake.answered(ticket, 256, 2.0, label=1, exit_index=0, score=0.0) is not None
    )  # the first sending was not lost
    assert intake.answered(again, 256, 3.0, label=1, exit_index=0, score=0.0) is None
    assert intake.answered(77, 256, 3.0, label=1, exit_index=0, score=0.0) is None
    assert (len(got), intake.late, intake.sent_again) == (1, 2, 1)


def test_only_what_went_by_a_broken_way_is_sent_again_and_first() -> None:
    intake, got = book(window=2, waiting=2)
    for name in "abc":
        intake.offer(name, b"x", 0.0, 0, got.append)
    send(intake, 0.0, "good")
    send(intake, 0.0, "bad")
    intake.broken(lambda entry: entry.way == "bad", 1.0)
    entry = intake.next()
    assert entry is not None
    assert (entry.id, entry.attempts, intake.under_way) == ("b", 1, 1)


def test_silence_is_answered_by_sending_again_until_it_was_tried_often_enough() -> None:
    intake, got = book(retry_s=5, attempts=2, deadline_s=100)
    intake.offer("a", b"x", 0.0, 0, got.append)
    send(intake, 0.0)
    assert intake.expire(4.9, "") == []
    assert intake.under_way == 1
    assert intake.expire(5.0, "") == []
    send(intake, 5.0)
    assert intake.expire(14.9, "") == []  # twice as long as before
    (failed,) = intake.expire(15.0, "")
    assert got == [failed]
    assert failed.failed == "timeout"
    assert "sent 2 times, and no answer came within 10 s after the last had left" in failed.reason


def test_what_is_still_here_or_on_its_way_is_not_sent_again() -> None:
    intake, _ = book(retry_s=5, deadline_s=100)
    intake.offer("a", b"x", 0.0, 0, lambda _: None)
    entry = intake.next()
    assert entry is not None
    ticket = intake.sent(entry, 256, "way")
    intake.expire(60.0, "")
    assert (intake.under_way, intake.sent_again) == (1, 0)
    intake.handed_over(ticket, 60.0)
    intake.expire(64.9, "")
    assert intake.sent_again == 0
    intake.expire(65.0, "")
    assert intake.sent_again == 1
    assert "slowest" not in intake.expire(100.0, "")[0].reason


def test_a_sample_is_waited_for_twice_as_long_as_the_slowest_took() -> None:
    """A window of samples that a tier runs one after the other, 1 s each, sent at once: the last takes 8 s."""
    intake, got = book(window=8, waiting=8, retry_s=5, deadline_s=100)
    for name in "abcdefgh":
        intake.offer(name, b"x", 0.0, 0, got.append)
    tickets = [send(intake, 0.0) for _ in range(8)]
    for second, ticket in enumerate(tickets, start=1):
        assert intake.expire(1.06 * second, "") == []
        intake.answered(ticket, 256, 1.06 * second, label=1, exit_index=0, score=0.0)
    assert [answer.attempts for answer in got] == [1] * 8
    assert intake.patience_s(1) == 2 * 1.06 * 8


def test_limits_that_do_not_go_together_are_told() -> None:
    limits = Limits(window=8, deadline_s=5)
    assert "8.48 s with 8 under way, but fails after 5 s" in limits.too_tight(1.06)
    assert not limits.too_tight(0.6)


def test_no_time_left_is_a_failure_that_says_what_was_waited_for() -> None:
    intake, got = book(deadline_s=30)
    intake.offer("a", b"x", 0.0, 0, got.append)
    (failed,) = intake.expire(30.0, "no plan can be used: cloud is away")
    assert (failed.failed, got) == ("deadline", [failed])
    assert "cloud is away" in failed.reason


def test_stopping_fails_everything_that_has_no_answer() -> None:
    intake, got = book()
    intake.offer("a", b"x", 0.0, 0, got.append)
    intake.offer("b", b"x", 0.0, 0, got.append)
    send(intake, 0.0)
    assert intake.stop(1.0) == got
    assert {answer.failed for answer in got} == {"stopped"}


class Book(RuleBasedStateMachine):
    """Offers, sendings, answers that come twice, late or never, broken ways and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.intake = Intake(LIMITS, 1)
        self.now = 0.0
        self.tickets: list[int] = []
        self.accepted: dict[str, bytes] = {}  # its bytes, by id
        self.failed: set[str] = set()
        self.answers: Counter[str] = Counter()
        self.count = 0

    def deliver(self, answer: Answer) -> None:
        self.answers[answer.id] += 1
        if answer.failed:
            self.failed.add(answer.id)

    @rule()
    def offer(self) -> None:
        self.count += 1
        name = str(self.count)
        full = self.intake.full
        found = self.intake.offer(name, b"x", self.now, name, self.deliver)
        assert found == ("full" if full else "accepted")
        if not full:
            self.accepted[name] = b"x"

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), body=st.sampled_from([b"x", b"y"]))
    def offer_again(self, data: st.DataObject, body: bytes) -> None:
        name = data.draw(st.sampled_from(sorted(self.accepted)))
        before, full = self.answers[name], self.intake.full
        found = self.intake.offer(name, body, self.now, name, self.deliver)
        if name in self.failed and not full:
            assert found == "accepted"  # it is tried again, and due another answer
            self.failed.remove(name)
            self.accepted[name], self.answers[name] = body, 0
            return
        usual = "known" if body == self.accepted[name] else "other"
        assert found == ("full" if name in self.failed else usual)
        assert self.answers[name] <= before + (found == "known")
        self.answers[name] = before  # the same answer, delivered to who asks again

    @rule(way=st.integers(0, 1))
    def send(self, way: int) -> None:
        entry = self.intake.next()
        if entry is not None:
            self.tickets.append(self.intake.sent(entry, 256, way))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        self.intake.handed_over(data.draw(st.sampled_from(self.tickets)), self.now)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), failed=st.sampled_from(["", "sample"]))
    def answer(self, data: st.DataObject, failed: str) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))  # any ever given out, so answers come late and twice
        self.intake.answered(ticket, 256, self.now, label=1, exit_index=0, score=0.5, failed=failed)

    @rule(way=st.integers(0, 1))
    def break_a_way(self, way: int) -> None:
        self.intake.broken(lambda entry: entry.way == way, self.now)

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.intake.expire(self.now, "")

    @invariant()
    def nothing_is_lost_doubled_or_without_bounds(self) -> None:
        intake = self.intake
        assert intake.under_way <= LIMITS.window
        assert intake.under_way + intake.waiting <= LIMITS.window + LIMITS.waiting
        assert all(self.answers[name] <= 1 for name in self.accepted)
        open_ones = sum(self.answers[name] == 0 for name in self.accepted)
        assert open_ones == intake.under_way + intake.waiting

    def teardown(self) -> None:
        self.intake.stop(self.now)
        assert all(self.answers[name] == 1 for name in self.accepted)


TestBook = Book.TestCase
TestBook.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
