"""From a sample's own encoding to the network's input; shared by training, profiling and the first tier.

Imports no torch. Axes: C channels, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portend.errors import DataError, InvalidValue

__all__ = ["InputDecoder"]

_MODES = {1: "L", 3: "RGB"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_MAX_PIXELS = 50_000_000  # a small file can claim a huge image


@dataclass(frozen=True, kw_only=True, slots=True)
class InputDecoder:
    """Turns an encoded image into the tensor [C, size, size] that a network takes.

    Attributes:
        channels: 1 (gray) or 3 (RGB); size: pixels per side.
        mean, std: one per channel, on the scale 0–1; ``(0,)`` and ``(1,)`` change nothing.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.channels not in _MODES:
            raise InvalidValue(f"an image has 1 or 3 channels, but got {self.channels}")
        if self.size < 1:
            raise InvalidValue(f"an image is at least 1 pixel wide, but got size {self.size}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not np.all(np.isfinite(values)):
                raise InvalidValue(
                    f"{name} is one finite number for each of {self.channels} channels, but got {values}"
                )
        if min(self.std) <= 0:
            raise InvalidValue(f"std is positive, but got {self.std}; 1 leaves the values as they are")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a decoded sample."""
        return (self.channels, self.size, self.size)

    def decode(self, encoded: bytes) -> NDArray[np.float32]:
        """Return the network's input, float32 [C, size, size].

        Raises:
            DataError: the bytes are not a complete image in a known format.
        """
        return self.normalize(self.pixels(encoded))

    def pixels(self, encoded: bytes) -> NDArray[np.uint8]:
        """Return the image, uint8 [C, size, size]; resized (bilinear) only if its size differs.

        Raises:
            DataError: the bytes are not a complete image in a known format.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _MAX_PIXELS:
                    raise ValueError(f"{width}x{height} pixels are more than {_MAX_PIXELS}")
                plain = image.convert(_MODES[self.channels])
        except Exception as error:  # Pillow's plugins raise an open set of types on hostile bytes
            raise DataError(
                f"cannot decode {len(encoded)} bytes as an image ({error}); "
                f"send a complete image file in one of {', '.join(_FORMATS)}"
            ) from error
        if plain.size != (self.size, self.size):
            plain = plain.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(plain, dtype=np.uint8).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (pixels / 255 - mean) / std as float32, for pixels [..., C, H, W] (new memory, C order)."""
        values = np.divide(pixels, np.float32(255), dtype=np.float32, order="C")
        values -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        values /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the decoder as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputDecoder:
        """Return the decoder of ``to_dict``.

        Raises:
            InvalidValue: a field is missing, unknown or out of its range.
        """
        fields = {"channels", "size", "mean", "std"}
        if set(values) != fields:
            raise InvalidValue(f"a decoder has the fields {', '.join(sorted(fields))}, but got {sorted(values)}")
        try:
            mean, std = (tuple(float(v) for v in values[name]) for name in ("mean", "std"))
            return cls(channels=int(values["channels"]), size=int(values["size"]), mean=mean, std=std)
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"a decoder cannot be read from {dict(values)}: {error}") from error
