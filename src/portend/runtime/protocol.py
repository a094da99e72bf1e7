"""What crosses the network: a small msgpack header and raw frames. Nothing is ever unpickled.

A data message is ``[header, payload]`` (a tensor on its way to a partition), or ``[header]`` (a
result, a credit). Shapes and types are not sent: the receiver knows them from the plan and
refuses a payload of another size. Labels of the data set are never sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgpack

from portend.errors import MessageError

__all__ = [
    "PROTOCOL_VERSION",
    "Header",
    "pack_control",
    "pack_header",
    "unpack_control",
    "unpack_header",
    "wire_bytes",
]

PROTOCOL_VERSION: Final = 3
_KINDS: Final = ("tensor", "result", "credit", "probe")
_HEADER_LIMIT: Final = 256
_WHOLE: Final = 7
"""Whole numbers in a header, between the version and the score."""


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a data message.

    Attributes:
        kind: ``tensor`` for a partition, ``result`` for the destination, ``credit`` for the source,
            ``probe`` to measure what a message costs.
        run: number of the run it belongs to; messages of an earlier run are dropped.
        request: number of the sample within the run; step: partition it is for (L for a result).
        sent_ns: sender's monotonic clock when it was handed to the socket.
        exit_index, label: where a result left and what it says; -1 elsewhere.
        score: of the exit, NaN elsewhere.
    """

    kind: Literal["tensor", "result", "credit", "probe"]
    run: int
    request: int
    step: int
    sent_ns: int
    exit_index: int = -1
    label: int = -1
    score: float = float("nan")


def pack_header(header: Header) -> bytes:
    """Return the header as a msgpack array, the protocol version first."""
    h = header
    whole = (_KINDS.index(h.kind), h.run, h.request, h.step, h.sent_ns, h.exit_index, h.label)
    return bytes(msgpack.packb((PROTOCOL_VERSION, *whole, h.score)))


def unpack_header(data: bytes) -> Header:
    """Return the header in ``data``.

    Raises:
        MessageError: it is too long, malformed, or of another protocol version.
    """
    values = _unpack(data, limit=_HEADER_LIMIT)
    if not isinstance(values, list) or not values or type(values[0]) is not int:
        raise MessageError("a header is an array that starts with the protocol version, but got something else")
    if values[0] != PROTOCOL_VERSION:
        raise MessageError(
            f"this agent speaks protocol {PROTOCOL_VERSION}, but got {values[0]}; use one version everywhere"
        )
    whole = values[1:-1]
    if len(whole) != _WHOLE:
        raise MessageError(f"a header has {_WHOLE} whole numbers and a score, but got {values!r:.80}")
    for value in whole:
        if type(value) is not int or not -1 <= value < 1 << 63:
            raise MessageError(f"a header has {_WHOLE} whole numbers and a score, but got {values!r:.80}")
    if not 0 <= whole[0] < len(_KINDS) or type(values[-1]) is not float:
        raise MessageError(f"a header has a known kind and a score, but got {values!r:.80}")
    kind, run, request, step, sent_ns, exit_index, label = whole
    return Header(_KINDS[kind], run, request, step, sent_ns, exit_index, label, values[-1])


def wire_bytes(frames: Sequence[int]) -> int:
    """Bytes on the wire of a message whose frames have these lengths (ZMTP 3: flags and length before each)."""
    return sum(length + (2 if length < 256 else 9) for length in frames)


def pack_control(command: str, **values: Any) -> bytes:
    """Return a control message: a command and its arguments as a msgpack map."""
    return bytes(msgpack.packb({"version": PROTOCOL_VERSION, "command": command, **values}))


def unpack_control(data: bytes) -> dict[str, Any]:
    """Return a control message as a map with at least ``command``; MessageError if it is not one."""
    values = _unpack(data, limit=1 << 24)
    if not isinstance(values, dict) or not isinstance(values.get("command"), str):
        raise MessageError("a control message is a map with a command, but got something else")
    if values.get("version") != PROTOCOL_VERSION:
        raise MessageError(f"this side speaks protocol {PROTOCOL_VERSION}, but got {values.get('version')}")
    return values


def _unpack(data: bytes, *, limit: int) -> Any:
    if len(data) > limit:
        raise MessageError(f"a header holds at most {limit} bytes, but got {len(data)}")
    try:
        return msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise MessageError(f"a header is msgpack, but got {len(data)} other bytes ({error})") from None
