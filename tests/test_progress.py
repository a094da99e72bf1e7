"""Progress where there is no terminal."""

from __future__ import annotations

from portend.progress import Log


def test_a_log_has_a_line_a_minute_with_the_time_left() -> None:
    lines: list[str] = []
    now = 0.0
    log = Log(lines.append, lambda: now)
    for step in range(101):  # a step of the first stage takes 10 s
        now = 10.0 * step
        log.tell("train", 1000 + step, 1100)
    assert lines[0] == "train: 1,006 of 1,100, 16 min left", "94 steps of 10 s"
    assert lines[-1] == "train: 1,096 of 1,100, 1 min left"
    assert len(lines) == 16
    log.tell("profile", 0, 10)
    now += 70.0
    log.tell("profile", 0, 10)
    assert len(lines) == 16, "of a stage that has not moved nothing is known"
    now += 2000.0
    log.tell("profile", 1, 10)
    assert lines[-1] == "profile: 1 of 10, 5 h 10 min left"
    now += 70.0
    log.tell("profile", 10, 10)
    assert len(lines) == 17, "of what is done nothing is left to say"


def test_a_stage_that_comes_once_more_begins_anew() -> None:
    lines: list[str] = []
    now = 0.0
    log = Log(lines.append, lambda: now)
    for _ in range(2):  # 100 steps of 1 s each
        for step in range(101):
            now += 1.0
            log.tell("run", step, 100)
    assert lines == ["run: 60 of 100, 1 min left"] * 2
