"""Saving and loading values: one zip file each, JSON and plain arrays, nothing that is executed.

``value.json`` holds the fields, ``arrays/*.npy`` the arrays. A file is written to a temporary
name and moved into place, so that an interrupted run leaves the old file or none. Arrays are
read without pickle, and every member is checked against the sizes that the zip declares.

Arrays from 1 MiB on (score tables of many samples) are stored as they are and begin at a multiple of 64
bytes. Loading checks their checksums and maps them from the file: pages are read when they are looked at, and
nothing is copied. Save in place of a mapped file (``save`` moves the new one there), never write into it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import types
import typing
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue, StorageError
from portend.io.files import KINDS, kind_of, wrong_file
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.measurement import Measurement
from portend.values.profile import Profile

__all__ = [
    "FORMAT_VERSION",
    "atomic_path",
    "from_plain",
    "load",
    "load_measurement",
    "load_profile",
    "load_profile_or_device",
    "save",
    "to_plain",
    "write_json",
    "write_text",
]

FORMAT_VERSION: Final = 2
"""2: ranges and losses of codecs; scores by criterion; large arrays stored to be mapped."""
_KINDS: Final[dict[str, type]] = {kind.__name__: kind for kind in (Profile, DeviceProfile, Measurement)}
_NAMES: Final[dict[type, str]] = {Profile: "profile", DeviceProfile: "device", Measurement: "run"}
_LARGEST: Final = 4 << 30
_MAPPED: Final = 1 << 20
"""Bytes from which an array is stored as it is, and mapped."""
_ALIGNED: Final = 64
_LOCAL_HEADER: Final = struct.Struct("<4s5H3L2H")
"""Of a zip member: its last two numbers are the lengths of its name and of its extra field (APPNOTE.TXT, 4.3.7)."""
_PADDING: Final = 0xD935
"""Id of the extra field that Android's zipalign pads with; readers skip it."""
_DAMAGE: Final = (
    KeyError, TypeError, ValueError, AttributeError, MemoryError, OverflowError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_V = TypeVar("_V")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that replaces ``path`` when the block succeeds.

    The folder is made where it is missing; on any failure the temporary file is removed.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder")
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise StorageError(
            f"cannot write {target} ({error}); check that its folder may be written and has room"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON values atomically, readable by a person."""
    write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def save(value: Profile | DeviceProfile | Measurement, path: str | Path) -> None:
    """Save a value as one file, atomically.

    Example:
        >>> pt.save(profile, "profile.zip")
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    document = {
        "format": "portend",
        "version": FORMAT_VERSION,
        "kind": type(value).__name__,
        "value": _pack(value, arrays, "value"),
    }
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr("value.json", json.dumps(document, indent=1, ensure_ascii=False))
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"arrays/{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            member.file_size = array.nbytes  # by which the zip decides on 64-bit sizes
            if array.nbytes >= _MAPPED:
                member.compress_type = zipfile.ZIP_STORED
                member.extra = _padding(file.tell() + _LOCAL_HEADER.size + len(member.filename.encode()))
            with archive.open(member, "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _padding(start: int) -> bytes:
    """Return the extra field after which what begins at ``start`` without it is aligned."""
    length = -(start + 4) % _ALIGNED
    return struct.pack("<2H", _PADDING, length) + bytes(length)


def to_plain(value: Any) -> Any:
    """Return a value that holds no arrays as JSON values; ``from_plain`` reads them."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    plain = _pack(value, arrays, "value")
    if arrays:
        raise TypeError(f"a {type(value).__name__} holds arrays; save it to a file")
    return plain


def from_plain(kind: type[_V], data: Any) -> _V:
    """Rebuild a value of which ``to_plain`` made JSON values; whatever does not fit raises TypeError or ValueError."""
    return typing.cast(_V, _unpack(kind, data, None))


def load(path: str | Path, kind: type[_V]) -> _V:
    """Load a value that ``save`` wrote.

    Raises:
        StorageError: the file is missing, corrupt, of another kind, or from a newer version.
    """
    try:
        with Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            return _load(archive, Path(path), kind)
    except FileNotFoundError:
        raise StorageError(f"there is no file {path}; check the name, or make it: {KINDS[_NAMES[kind]][1]}") from None
    except IsADirectoryError:
        raise StorageError(f"{path} is a folder; name the file in it") from None
    except PermissionError:
        raise StorageError(f"{path} may not be read; check its permissions") from None
    except (*_DAMAGE, EOFError, OSError) as error:
        if kind_of(path) not in (None, _NAMES[kind]):
            raise StorageError(wrong_file(path, _NAMES[kind])) from None
        raise StorageError(f"{path} is no file of Portend, or damaged ({error}); make it again") from None


def load_profile(path: str | Path) -> Profile:
    """Load a profile; StorageError names what is wrong with the file.

    Example:
        >>> profile = pt.load_profile("profiles/resnet20-digits.zip")
    """
    return load(path, Profile)


def load_profile_or_device(path: str | Path) -> Profile | DeviceProfile:
    """Load a profile, or what ``portend profile --device-only`` wrote; StorageError names what is wrong."""
    return load(path, DeviceProfile) if kind_of(path) == "device" else load(path, Profile)


def load_measurement(path: str | Path) -> Measurement:
    """Load a measurement; StorageError names what is wrong with the file.

    Example:
        >>> pt.load_measurement("runs/digits/run.zip").mean_s
    """
    return load(path, Measurement)


def _load(archive: zipfile.ZipFile, path: Path, kind: type[_V]) -> _V:
    declared = sum(member.file_size for member in archive.infolist())
    if declared > _LARGEST:
        raise StorageError(f"{path} declares {declared} bytes, more than the {_LARGEST} that a Portend file may hold")
    try:
        document = json.loads(archive.read("value.json"))
        if document.get("format") != "portend":
            raise StorageError(wrong_file(path, _NAMES[kind]))
        version, found = document["version"], document["kind"]
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise StorageError(
                f"{path} has format version {version}, but this Portend reads up to {FORMAT_VERSION}; upgrade Portend"
            )
        if found != kind.__name__ or found not in _KINDS:
            raise StorageError(wrong_file(path, _NAMES[kind]))
        return typing.cast(_V, _unpack(kind, document["value"], archive))
    except StorageError:
        raise
    except _DAMAGE as error:
        if kind_of(path) not in (None, _NAMES[kind]):
            raise StorageError(wrong_file(path, _NAMES[kind])) from None
        detail = str(error) if isinstance(error, InvalidValue) else f"{type(error).__name__}: {error}"
        raise StorageError(f"{path} is damaged ({detail}); make it again") from None


def _pack(value: Any, arrays: dict[str, np.ndarray[Any, Any]], name: str) -> Any:
    if isinstance(value, np.ndarray):
        while name in arrays:
            name += "_"
        arrays[name] = value
        return {"array": name}
    if is_dataclass(value):
        packed = {
            field.name: _pack(getattr(value, field.name), arrays, f"{name}.{field.name}") for field in fields(value)
        }
        return packed | {"type": type(value).__name__} if isinstance(value, SampleExits | TabulatedExits) else packed
    if isinstance(value, Mapping):
        return {str(key): _pack(item, arrays, f"{name}.{key}".replace("/", "_")) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_pack(item, arrays, f"{name}.{index}") for index, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def _unpack(hint: Any, data: Any, archive: zipfile.ZipFile | None) -> Any:
    """Rebuild a value of the hinted type; whatever does not fit raises TypeError or ValueError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is np.ndarray:
        if archive is None:
            raise TypeError("an array needs a file")
        return _read_array(archive, f"arrays/{data['array']}.npy")
    if origin in (typing.Union, types.UnionType):
        return _unpack_union(arguments, data, archive)
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        if hint is SampleExits and "score" in data:
            return _unpack_one_criterion(data, archive)
        required = {f.name for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING}
        given = [f for f in fields(hint) if f.name in data or f.name in required]  # older files lack newer fields
        return hint(**{field.name: _unpack(hints[field.name], data[field.name], archive) for field in given})
    if origin is tuple:
        inner = arguments[0]
        return tuple(_unpack(inner, item, archive) for item in _expect(data, list))
    if origin is Literal:
        return data
    if origin is not None and issubclass(origin, Mapping):
        return {arguments[0](key): _unpack(arguments[1], item, archive) for key, item in _expect(data, dict).items()}
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return _expect(data, hint)


def _unpack_one_criterion(data: Any, archive: zipfile.ZipFile | None) -> SampleExits:
    """Exits of a version 1 file: one criterion, in float64, rounded here as agents and profiles now round scores."""
    criterion = _expect(data.get("criterion", "entropy"), str)
    rest = {key: item for key, item in data.items() if key != "score"}
    exits: SampleExits = _unpack(SampleExits, rest | {"scores": {criterion: data["score"]}}, archive)
    return replace(exits, scores={criterion: exits.score.astype(np.float32)})


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array of the file; a large one that is stored as it is, is checked and then mapped."""
    member = archive.getinfo(name)
    with archive.open(member) as stream:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size < _MAPPED:
            return np.lib.format.read_array(io.BytesIO(stream.read()), allow_pickle=False)
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise StorageError(f"{name} has version {version} of the npy format, but Portend writes (1, 0)")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject:
            raise StorageError("Object arrays cannot be loaded, for they would be executed")
        begin = stream.tell()
        while stream.read(1 << 20):  # to the end, where the checksum is compared
            pass
    file = archive.fp
    assert file is not None
    file.seek(member.header_offset)
    *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    offset = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes + begin
    if begin + dtype.itemsize * math.prod(shape) != member.file_size:
        raise ValueError(f"{name} does not have the size that its shape {shape} asks for")
    mapped = np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if by_columns else "C")
    return mapped.view(np.ndarray)


def _unpack_union(options: tuple[Any, ...], data: Any, archive: zipfile.ZipFile | None) -> Any:
    if data is None and type(None) in options:
        return None
    named = [option for option in options if isinstance(data, dict) and data.get("type") == option.__name__]
    candidates = named or [option for option in options if option is not type(None)]
    return _unpack(candidates[0], data, archive)


def _expect(data: Any, kind: type) -> Any:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise TypeError(f"expected {kind.__name__}, got {type(data).__name__}")
    return data
