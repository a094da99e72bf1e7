"""How a tensor becomes bytes for a hop, and back.

A codec is stateless and does no more than it must: ``float32`` costs at most one memory copy.
``encoded`` sends the sample's own bytes (PNG, JPEG, WAV): decoding and preprocessing then belong to
the receiver, and only cut 0 can use it.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from portend.errors import InvalidValue, MessageError
from portend.models.decoding import InputDecoder

__all__ = ["CODECS", "Codec", "Encoded", "Float32", "Sample", "make_codec"]

Tensor = NDArray[np.float32]


class Sample:
    """A sample at its source: its own encoding and its decoded tensor [C, H, W]."""

    __slots__ = ("encoded", "tensor")

    def __init__(self, encoded: bytes, tensor: Tensor) -> None:
        self.encoded = encoded
        self.tensor = tensor


class Codec(Protocol):
    """Turns a value into one payload and back."""

    name: str

    def encode(self, value: Tensor | Sample) -> memoryview | bytes:
        """Return the payload of a tensor, or of a sample at cut 0."""

    def decode(self, payload: memoryview | bytes, shape: tuple[int, ...]) -> Tensor:
        """Return the writable tensor of ``shape``; MessageError if the payload cannot be one."""


class Float32:
    """The tensor's bytes as they are, little-endian."""

    name = "float32"

    def encode(self, value: Tensor | Sample) -> memoryview | bytes:
        tensor = value.tensor if isinstance(value, Sample) else value
        return np.ascontiguousarray(tensor, dtype="<f4").data.cast("B")

    def decode(self, payload: memoryview | bytes, shape: tuple[int, ...]) -> Tensor:
        expected = 4 * int(np.prod(shape))
        if len(payload) != expected:
            raise MessageError(f"a float32 tensor of shape {shape} has {expected} bytes, but got {len(payload)}")
        return np.frombuffer(payload, dtype="<f4").reshape(shape).astype(np.float32, copy=True)


class Encoded:
    """The sample's own encoding; the receiver decodes and preprocesses it."""

    name = "encoded"

    def __init__(self, decoder: InputDecoder) -> None:
        self.decoder = decoder

    def encode(self, value: Tensor | Sample) -> memoryview | bytes:
        if not isinstance(value, Sample):
            raise InvalidValue("only a sample at cut 0 has an encoding of its own; use 'float32' after a block")
        return value.encoded

    def decode(self, payload: memoryview | bytes, shape: tuple[int, ...]) -> Tensor:
        tensor = self.decoder.decode(bytes(payload))
        if tensor.shape != shape:
            raise MessageError(f"the network takes samples of shape {shape}, but got {tensor.shape}")
        return tensor


CODECS: Final = ("float32", "encoded")


def make_codec(name: str, decoder: InputDecoder) -> Codec:
    """Return the codec called ``name``; InvalidValue if there is none."""
    if name == "float32":
        return Float32()
    if name == "encoded":
        return Encoded(decoder)
    raise InvalidValue(f"the codecs are {', '.join(CODECS)}, but got {name!r}")
