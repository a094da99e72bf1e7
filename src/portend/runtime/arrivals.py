"""When bytes arrived at a socket: by the kernel's word where it gives it, so that waiting for a core does not count."""

from __future__ import annotations

import socket
import struct
import sys
import time
from time import monotonic
from typing import Any, Final

__all__ = ["receive", "stamp"]

_SO_TIMESTAMPNS: Final = 35 if sys.platform == "linux" else None


def stamp(sock: socket.socket) -> None:
    """Let the kernel stamp what arrives, where it can."""
    if _SO_TIMESTAMPNS is not None:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def receive(sock: socket.socket, buffer: bytearray | memoryview) -> tuple[int, float, Any]:
    """Return bytes received, the moment on the monotonic clock at which the last of them came, and who sent them."""
    got, ancillary, _, sender = sock.recvmsg_into([buffer], socket.CMSG_SPACE(16))
    ahead = time.time() - monotonic()
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("=qq", data)
            return got, seconds - ahead + 1e-9 * nanoseconds, sender
    return got, monotonic(), sender
