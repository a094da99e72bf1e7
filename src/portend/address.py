"""Addresses as people write them, read in one way everywhere.

A host is a name (``edge.example``), an IPv4 address, or an IPv6 address with or without brackets. With a port it is
``HOST:PORT``, an IPv6 host in brackets: ``[::1]:7100``. A URL is neither; only ``tcp://`` may stand before a port.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from portend.errors import InvalidValue

__all__ = ["Address", "is_loopback", "read_address", "read_host"]

_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


class Address(NamedTuple):
    """A host, without brackets, and a port; as text an IPv6 host has brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_host(text: str) -> str:
    """Return a host without brackets; InvalidValue if the text is none.

    Examples:
        >>> read_host("[::1]"), read_host("edge.example")
        ('::1', 'edge.example')
    """
    if "://" in text:
        rest = text.partition("://")[2].partition("/")[0]
        raise InvalidValue(f"a host is a name or an address, but got the URL {text!r}; write {rest or 'the host'!r}")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare:
        try:
            ipaddress.IPv6Address(bare)
        except ValueError:
            raise InvalidValue(
                f"a host is a name or an address, but got {text!r}; a port is stated by itself"
            ) from None
        return bare
    if bare != text or len(text) > 253 or not _NAME.fullmatch(text):
        raise InvalidValue(f"a host is a name such as edge.example, an IPv4 or an IPv6 address, but got {text!r:.80}")
    return text


def read_address(text: str, *, least_port: int = 0) -> Address:
    """Return host and port of ``HOST:PORT`` or ``tcp://HOST:PORT``; InvalidValue if the text is neither.

    Examples:
        >>> read_address("tcp://[::1]:7100")
        Address(host='::1', port=7100)
    """
    scheme, there, rest = text.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if there and scheme != "tcp":
        raise InvalidValue(f"an address is HOST:PORT, but got the URL {text!r}; write {rest.rstrip('/')!r}")
    if not colon or not (port.isascii() and port.isdecimal()) or not least_port <= int(port) < 1 << 16:
        raise InvalidValue(f"an address is HOST:PORT such as 10.0.0.5:7100 or [::1]:7100, but got {text!r:.80}")
    if ":" in host and not host.startswith("["):
        raise InvalidValue(f"an IPv6 address before a port has brackets, but got {text!r:.80}; write [{host}]:{port}")
    return Address(read_host(host), int(port))


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches a host; brackets do not matter."""
    bare = host.strip("[]")
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare == "localhost"
