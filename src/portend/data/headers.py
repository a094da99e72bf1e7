"""How much a picture or sound unpacks to, by its header alone: a small file can stand for hundreds of megabytes.

Nothing is allocated or unpacked, so this may be asked of any bytes at any time. Sources: PNG (ISO/IEC 15948, 11.2.2),
GIF89a (18), JPEG (ITU T.81, B.2.2), WebP (RFC 9649), BMP (BITMAPINFOHEADER), FLAC (RFC 9639, 8.2).
"""

from __future__ import annotations

from typing import Final

__all__ = ["Buffer", "pixels", "values"]

Buffer = bytes | bytearray | memoryview

_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # JPEG's markers that begin a frame
_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})  # those without a length


def pixels(encoded: Buffer) -> int | None:
    """Return width x height as the header of a PNG, GIF, JPEG, WebP or BMP file says; None if it says none."""
    head = bytes(encoded[:32])
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
        return _product(head[16:20], head[20:24], "big")
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _product(head[6:8], head[8:10], "little")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    if head[:2] == b"BM":
        if head[14:18] == b"\x0c\0\0\0":
            return _product(head[18:20], head[20:22], "little")
        height = int.from_bytes(head[22:26], "little", signed=True)  # negative: from top to bottom
        return int.from_bytes(head[18:22], "little") * abs(height) or None
    return _jpeg(encoded) if head[:2] == b"\xff\xd8" else None


def values(encoded: Buffer) -> int | None:
    """Return how many pixels, or samples of all channels, a file unpacks to at most; None if its header says none."""
    head = bytes(encoded[:26])
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return 2 * len(encoded)  # at least four bits each
    if head[:4] == b"fLaC" and len(head) == 26:
        packed = int.from_bytes(head[18:26], "big")
        return (packed & ((1 << 36) - 1)) * ((packed >> 41 & 7) + 1) or None
    return pixels(encoded)


def _product(width: bytes, height: bytes, order: str) -> int | None:
    return int.from_bytes(width, order) * int.from_bytes(height, order) or None  # type: ignore[arg-type]


def _webp(head: bytes) -> int | None:
    kind, data = head[12:16], head[20:]
    if kind == b"VP8X":
        return (int.from_bytes(data[4:7], "little") + 1) * (int.from_bytes(data[7:10], "little") + 1)
    if kind == b"VP8 ":
        return (int.from_bytes(data[6:8], "little") & 0x3FFF) * (int.from_bytes(data[8:10], "little") & 0x3FFF) or None
    if kind == b"VP8L":
        packed = int.from_bytes(data[1:5], "little")
        return ((packed & 0x3FFF) + 1) * ((packed >> 14 & 0x3FFF) + 1)
    return None


def _jpeg(encoded: Buffer) -> int | None:
    at, end = 2, len(encoded)
    while at + 9 <= end and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in _FRAMES:
            return _product(bytes(encoded[at + 7 : at + 9]), bytes(encoded[at + 5 : at + 7]), "big")
        if marker == 0xFF:  # a byte that fills
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(bytes(encoded[at + 2 : at + 4]), "big")
    return None
