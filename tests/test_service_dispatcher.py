"""What a message may say came of a sample."""

from __future__ import annotations

import pytest

from portend.errors import MessageError
from portend.runtime.protocol import Header
from portend.service.dispatcher import read_result
from portend.service.source import Result


def result(exit_index: int, label: int, payload: object = None) -> Result:
    header = Header("result", 768, 5, 2, 0, exit_index=exit_index, label=label, score=0.25)
    return read_result(header, payload, exits=2, classes=10)


def test_a_result_has_an_exit_and_a_label_that_exist() -> None:
    assert result(1, 9) == Result(exit_index=1, label=9, score=0.25)
    for exit_index, label in ((2, 9), (-1, 9), (1, 10), (1, -1)):
        with pytest.raises(MessageError, match=f"no exit {exit_index + 1} with a label {label}"):
            result(exit_index, label)


def test_a_failure_is_of_a_known_kind_and_not_long() -> None:
    failed = result(-1, -1, memoryview(b"sample:no picture"))
    assert (failed.exit_index, failed.label, failed.failure) == (-1, -1, "sample:no picture")
    assert result(-1, -1, b"error:" + b"x" * 5000).failure == "error:" + "x" * 1994
    assert result(-1, -1, b"error:\xff").failure == "error:\ufffd"
    for reason in (b"timeout:late", b"deadline:", b"", b"anything"):  # the source alone says these, or nobody
        with pytest.raises(MessageError, match="says why a sample failed"):
            result(-1, -1, reason)
