"""How a tensor becomes bytes for a hop, and back.

A codec is named ``numbers`` or ``numbers+compressor`` (``plan.codec_parts``) and does no more than it must:
``float32`` encodes without a copy and decodes with one. Before a compressor the bytes of equal significance are
brought together, because signs and exponents repeat and the last bits do not. ``encoded`` sends the sample's own
bytes (PNG, JPEG, WAV): decoding and preprocessing then belong to the receiver, and only cut 0 can use it.

Axes: C channels.
"""

from __future__ import annotations

import math
from typing import Any, Final, Protocol

import lz4.block
import numpy as np
import zstandard
from numpy.typing import NDArray

from portend.data.decoding import InputDecoder
from portend.errors import InvalidValue, MessageError
from portend.values.backbone import channel_axis
from portend.values.codecs import ValueRange
from portend.values.plan import codec_parts

__all__ = ["FLOAT32", "Codec", "Encoded", "Numbers", "Sample", "TensorCodec", "make_codec", "make_numbers"]

Tensor = NDArray[np.float32]
Payload = memoryview | bytes

_HALF_MAX: Final = float(np.finfo(np.float16).max)
_STEPS: Final = 254  # the codes 0–254 are numbers, 255 is NaN
_NAN: Final = 255


class Sample:
    """A sample at its source: its own encoding and its decoded tensor [C, H, W]."""

    __slots__ = ("encoded", "tensor")

    def __init__(self, encoded: bytes, tensor: Tensor) -> None:
        self.encoded = encoded
        self.tensor = tensor


class Codec(Protocol):
    """Turns a value into one payload and back."""

    name: str

    def encode(self, value: Tensor | Sample) -> Payload:
        """Return the payload of a tensor, or of a sample at cut 0."""

    def decode(self, payload: Payload, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor of ``shape``, writable and in memory of its own; MessageError if the payload is none."""


# -- numbers ---------------------------------------------------------------------------------------


class Numbers(Protocol):
    """Writes float32 values as numbers of another type and reads them back; any axes may stand before a sample's."""

    dtype: np.dtype[Any]

    def pack(self, tensor: Tensor) -> NDArray[Any]:
        """Return the tensor as contiguous numbers of ``dtype``."""

    def unpack(self, values: NDArray[Any]) -> Tensor:
        """Return the float32 tensor, in memory of its own."""


class _Float32:
    dtype: np.dtype[Any] = np.dtype("<f4")

    def pack(self, tensor: Tensor) -> NDArray[Any]:
        return np.ascontiguousarray(tensor, dtype=self.dtype)

    def unpack(self, values: NDArray[Any]) -> Tensor:
        return values.astype(np.float32)


class _Float16:
    """Nearest half; finite values beyond ±65,504 become that, infinities and NaN stay what they are."""

    dtype: np.dtype[Any] = np.dtype("<f2")

    def pack(self, tensor: Tensor) -> NDArray[Any]:
        try:
            with np.errstate(over="raise"):
                return tensor.astype(self.dtype, order="C")
        except FloatingPointError:
            limited = np.clip(tensor, -_HALF_MAX, _HALF_MAX)
            return np.where(np.isinf(tensor), tensor, limited).astype(self.dtype, order="C")

    def unpack(self, values: NDArray[Any]) -> Tensor:
        return values.astype(np.float32)


class _Int8:
    """254 equal steps from ``low`` to ``high``; what lies beyond, even infinite, becomes the nearer end; NaN stays NaN.

    ``low`` and ``high`` broadcast to a sample: one number for the tensor, or [C] along its channel axis.
    """

    dtype: np.dtype[Any] = np.dtype("u1")

    def __init__(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        step = np.maximum((high - low) / _STEPS, np.finfo(np.float32).tiny)  # a constant channel has no width
        self._low, self._step = low.astype(np.float32), step.astype(np.float32)
        self._start, self._per_step = (low - step / 2).astype(np.float32), (1 / step).astype(np.float32)

    def pack(self, tensor: Tensor) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is beyond the range
            codes = np.subtract(tensor, self._start, dtype=np.float32, order="C", casting="unsafe")
            codes *= self._per_step
            np.clip(codes, 0, _STEPS + 0.5, out=codes)
            np.fmin(codes, _NAN, out=codes)  # NaN alone is not below it
        return codes.astype(self.dtype)

    def unpack(self, values: NDArray[Any]) -> Tensor:
        tensor: Tensor = np.multiply(values, self._step, dtype=np.float32)
        tensor += self._low
        if values.size and values.max() == _NAN:
            tensor[values == _NAN] = np.nan
        return tensor


def make_numbers(name: str, shape: tuple[int, ...], limits: ValueRange | None) -> Numbers:
    """Return the way ``name`` (one of ``plan.NUMBERS``) to write tensors of ``shape``; int8 lies within ``limits``.

    Raises:
        InvalidValue: int8 without limits, or with another number of channels.
    """
    if name == "float32":
        return _Float32()
    if name == "float16":
        return _Float16()
    if limits is None:
        raise InvalidValue(
            f"{name} needs the range of values at its cut, but there is none; profile with this codec, and give the "
            "deployment the profile's ranges"
        )
    if name == "int8":
        return _Int8(*limits.tensor)
    axis = channel_axis(shape)
    if limits.channels.shape[1] != shape[axis]:
        raise InvalidValue(
            f"a tensor of shape {shape} has {shape[axis]} channels, but got ranges of {limits.channels.shape[1]}; "
            "take those of this network's profile"
        )
    along = tuple(-1 if place == axis else 1 for place in range(len(shape)))
    return _Int8(*(ends.reshape(along) for ends in limits.channels))


# -- compressors -----------------------------------------------------------------------------------


class _Compressor(Protocol):
    def compress(self, data: NDArray[np.uint8]) -> bytes: ...

    def decompress(self, payload: Payload, size: int) -> bytes:
        """Return the data, ``size`` bytes; ValueError if it is anything else. Never makes more than that."""


class _Lz4:
    """One LZ4 block without a frame: the receiver knows the size."""

    def compress(self, data: NDArray[np.uint8]) -> bytes:
        return bytes(lz4.block.compress(data, store_size=False))

    def decompress(self, payload: Payload, size: int) -> bytes:
        try:
            data: bytes = lz4.block.decompress(payload, uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(f"not an LZ4 block of at most {size} bytes: {error}") from None
        return data


class _Zstd:
    """One Zstandard frame of level 1, which states its size."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, data: NDArray[np.uint8]) -> bytes:
        return self._compressor.compress(data.data)

    def decompress(self, payload: Payload, size: int) -> bytes:
        try:
            stated = zstandard.get_frame_parameters(payload).content_size  # what would be allocated
            if stated != size:
                raise ValueError(f"a Zstandard frame that states {stated} bytes")
            return self._decompressor.decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"not a Zstandard frame: {error}") from None


def _split(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of the numbers, those of equal significance together, [itemsize, n]."""
    rows = values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize)
    planes = np.empty(rows.shape[::-1], dtype=np.uint8)
    for place, plane in enumerate(planes):
        plane[:] = rows[:, place]
    return planes


def _joined(data: Payload, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers [n] whose bytes ``_split`` brought together."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(dtype.itemsize, -1)
    rows: NDArray[Any] = np.empty(planes.shape[::-1], dtype=np.uint8)
    for place, plane in enumerate(planes):
        rows[:, place] = plane
    return rows.reshape(-1).view(dtype)


# -- codecs ----------------------------------------------------------------------------------------


class TensorCodec:
    """A tensor's numbers in C order, little-endian; compressed or as they are."""

    def __init__(self, name: str, numbers: Numbers, compressor: _Compressor | None = None) -> None:
        self.name = name
        self._numbers, self._compressor = numbers, compressor

    def encode(self, value: Tensor | Sample) -> Payload:
        values = self._numbers.pack(value.tensor if isinstance(value, Sample) else value)
        if self._compressor is None:
            return values.reshape(-1).view(np.uint8).data
        return self._compressor.compress(_split(values))

    def decode(self, payload: Payload, shape: tuple[int, ...]) -> Tensor:
        dtype = self._numbers.dtype
        size = dtype.itemsize * math.prod(shape)
        data = payload
        if self._compressor is not None:
            try:
                data = self._compressor.decompress(payload, size)
            except ValueError as error:
                raise MessageError(f"a {self.name} tensor of shape {shape} has {size} bytes, but got {error}") from None
        if len(data) != size:
            raise MessageError(f"a {self.name} tensor of shape {shape} has {size} bytes, but got {len(data)}")
        values = np.frombuffer(data, dtype=dtype) if self._compressor is None else _joined(data, dtype)
        return self._numbers.unpack(values.reshape(shape))


class Encoded:
    """The sample's own encoding; the receiver decodes and preprocesses it."""

    name = "encoded"

    def __init__(self, decoder: InputDecoder) -> None:
        self.decoder = decoder

    def encode(self, value: Tensor | Sample) -> Payload:
        if not isinstance(value, Sample):
            raise InvalidValue("only a sample at cut 0 has an encoding of its own; use 'float32' after a block")
        return value.encoded

    def decode(self, payload: Payload, shape: tuple[int, ...]) -> Tensor:
        tensor = self.decoder.decode(bytes(payload))
        if tensor.shape != shape:
            raise MessageError(f"the network takes samples of shape {shape}, but got {tensor.shape}")
        return tensor


FLOAT32: Final = TensorCodec("float32", _Float32())


def make_codec(
    name: str, decoder: InputDecoder, shape: tuple[int, ...] = (), limits: ValueRange | None = None
) -> Codec:
    """Return the codec ``name`` for tensors of ``shape``, whose values lie within ``limits``.

    Raises:
        InvalidValue: there is no such codec, or int8 lacks its limits.
    """
    if name == "encoded":
        return Encoded(decoder)
    numbers, compressor = codec_parts(name)
    by: _Compressor | None = {"": None, "lz4": _Lz4(), "zstd": _Zstd()}[compressor]
    return TensorCodec(name, make_numbers(numbers, shape, limits), by)
