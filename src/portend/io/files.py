"""What a file is, told by its content; and the message for a file that is not what was asked for.

Nothing in a file is executed, and of a large one only the beginning is read.
"""

from __future__ import annotations

import codecs
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

__all__ = ["BINARY", "KINDS", "check_yaml", "encoding_of", "kind_of", "what_is", "wrong_file"]

KINDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "profile": ("a profile", "portend profile NETWORK --out PROFILE.zip"),
        "device": ("a profile of a device only", "portend profile NETWORK --device-only --out DEVICE.zip"),
        "run": ("what a run measured", "portend run PLAN --network NETWORK --topology TOPOLOGY --out RUN.zip"),
        "plan": ("a plan", "portend plan PROFILE --topology TOPOLOGY --out PLAN.json"),
        "checkpoint": ("a checkpoint (a network's weights)", "portend train EXPERIMENT --out FOLDER"),
        "exported": ("an exported network (ONNX)", "portend export CHECKPOINT --out NETWORK.onnx"),
        "topology": ("a topology", "YAML with tiers and links (docs/yaml.md)"),
        "experiment": ("an experiment", "YAML with network, data and training (docs/yaml.md)"),
        "training": ("a refinement's training", "YAML with training (docs/yaml.md)"),
        "campaign": ("a campaign", "YAML with plans, samples and hints (docs/yaml.md)"),
        "problem": ("a planning problem", "YAML with minimize, subject_to and hints (docs/yaml.md)"),
        "trace": ("a trace of bandwidth", "lines of seconds and Mbit/s (docs/testbed.md)"),
    }
)
"""What Portend reads: what it is called, and how it is made."""

_PLACES: Final = {
    "checkpoint": ("NETWORK", "CHECKPOINT"),
    "exported": ("NETWORK",),
    "experiment": ("EXPERIMENT",),
    "profile": ("PROFILE",),
    "topology": ("TOPOLOGY",),
    "plan": ("PLAN",),
}
"""Words for which a file of a kind stands in how others are made."""
_MARKS: Final = {  # that begin a text; the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BINARY: Final = "binary data of no kind that Portend knows"
_OTHERS: Final = {
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a sound or a picture",
    b"fLaC": "a sound",
    b"PAR1": "a data set (parquet)",
    b"\x80\x02": "a Python pickle, which Portend never reads",
    b"\x80\x04": "a Python pickle, which Portend never reads",
    b"\x1f\x8b": "compressed (gzip)",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
_SAVED: Final = {"Profile": "profile", "DeviceProfile": "device", "Measurement": "run"}
_BY_KEYS: Final = {
    "topology": {"tiers", "links"},
    "experiment": {"network", "data", "options"},
    "training": {"training"},
    "campaign": {"plans", "turns", "population", "front", "repeats"},
    "problem": {"minimize", "maximize", "subject_to", "arrival_rate"},
}
"""Keys that tell what a YAML file is; the first that fits."""
_MOST: Final = 1 << 18
"""Bytes of a text that are looked at."""


def kind_of(path: str | Path) -> str | None:
    """Return which of ``KINDS`` a file is, or in words what else it is, or None where that cannot be told.

    A pipe is not looked into, for it can be read only once.
    """
    place = Path(path)
    try:
        if place.is_dir():
            return "a folder"
        if not place.is_file():
            return None
        with place.open("rb") as file:
            return _kind(file, place.stat().st_size)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return None  # damaged, or not to be read: who reads it says so


def what_is(path: str | Path) -> str:
    """Return in words what a file is."""
    kind = kind_of(path)
    return "no file of Portend, or damaged" if kind is None else KINDS[kind][0] if kind in KINDS else kind


def wrong_file(path: str | Path, *wanted: str, taker: str = "", place: str = "") -> str:
    """Return the message for a file that is none of the kinds ``wanted``: what it is, and how to make what is.

    ``taker``: the command that was given the file, in its option or argument ``place``.
    """
    names = " or ".join(KINDS[kind][0] for kind in wanted)
    where = f"`{taker}` takes {names} as {place}" if taker else f"{names} is needed here"
    made = KINDS[wanted[0]][1]
    for word in _PLACES.get(kind_of(path) or "", ()):
        made = made.replace(f" {word} ", f" {path} ", 1)
    return f"{path} is {what_is(path)}, but {where}: {made}"


def check_yaml(path: str | Path, wanted: str) -> str | None:
    """Return the message where a file is of another kind than the YAML that is ``wanted``, else None."""
    kind = kind_of(path)
    return None if kind is None or kind == wanted else wrong_file(path, wanted)


def _kind(file: Any, size: int) -> str | None:
    head: bytes = file.read(16)
    if not head:
        return "empty"
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(file)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            return what
    if len(head) > 8 and head[8:9] == b"{" and (length := struct.unpack("<Q", head[:8])[0]) + 8 <= size:
        return _of_tensors(file, length)
    if head[0] == 8 and len(head) > 2 and head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A):
        return "exported"  # a protocol buffer that begins with ONNX's ir_version
    file.seek(0)
    begin: bytes = file.read(_MOST)
    try:
        text = begin.decode(encoding_of(begin))
    except UnicodeDecodeError as error:
        if size <= _MOST or error.start < len(begin) - 4:
            return BINARY
        text = begin[: error.start].decode(encoding_of(begin))
    return BINARY if "\x00" in text else _of_text(text)


def encoding_of(data: bytes) -> str:
    """Return the encoding of a text: what its byte order mark says, as Windows' programs write it, or UTF-8."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")


def _of_zip(file: Any) -> str | None:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return "a file of torch.save (a Python pickle), which Portend never reads"
        if "value.json" not in names:
            return "a zip file of another program"
        with archive.open("value.json") as member:
            begin = member.read(4096).decode("utf-8", "replace")
        if '"format": "portend"' not in begin:
            return "a zip file of another program"
    return next((kind for name, kind in _SAVED.items() if f'"kind": "{name}"' in begin), None)


def _of_tensors(file: Any, length: int) -> str:
    file.seek(8)
    metadata = json.loads(file.read(min(length, 64 << 20))).get("__metadata__", {})
    document = json.loads(metadata.get("portend", "null"))
    if not isinstance(document, dict):
        return "weights of another program (safetensors)"
    return "checkpoint" if document.get("kind") == "checkpoint" else "the state of an unfinished training"


def _of_text(text: str) -> str | None:
    if not text.strip():
        return "empty"
    if text.lstrip()[0] == "{" and '"plan"' in text[:4096]:
        return "plan"
    if text.startswith('{"') and '"sample"' in text.partition("\n")[0] and '"label"' in text.partition("\n")[0]:
        return "a journal of answers"
    lines = [words for line in text.splitlines()[:50] if (words := line.partition("#")[0].split())]
    if lines and all(len(words) <= 2 and all(map(_is_number, words)) for words in lines):
        return "trace"
    if "CURVE" in text[:400] and "public-key" in text:
        return "a key"
    try:
        document = yaml.safe_load(text) if len(text) < _MOST // 4 else None
    except (yaml.YAMLError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    keys = {str(key) for key in document}
    if {"cuts", "placement"} <= keys:
        return "plan"
    if keys & {"traceEvents", "resourceSpans"}:
        return "a trace for other programs"
    if keys & {"comparisons", "planned", "rounds"}:
        return "a summary"
    return next((kind for kind, some in _BY_KEYS.items() if keys & some), None)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
