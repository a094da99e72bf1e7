"""From a sample's own encoding to the network's input; shared by training, profiling and the first tier.

The first tier decodes bytes that come by message, so every decoder checks sizes before it allocates.
Imports no torch. Axes: C channels, H height, W width; audio: T frames, M mel bands.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, Protocol, final, get_args

import numpy as np
from numpy.typing import NDArray

from portend.data import headers
from portend.errors import DataError, InvalidValue, choice

__all__ = [
    *("AudioDecoder", "ImageDecoder", "InputDecoder", "NumberType", "TensorDecoder", "decoder_from_dict"),
    *("check_depth", "is_gray", "is_sound", "upright"),
]

Interpolation = Literal["bilinear", "bicubic"]
Patch = Literal["first", "center"]
NumberType = Literal["float32", "int64"]

_MODES: Final = MappingProxyType({1: "L", 3: "RGB"})
_DEEP_MODES: Final = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # converting to 8 bits would clip them
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_MAX_PIXELS: Final = 50_000_000  # a small file can claim a huge image
_MAX_SIDE: Final = 4096
_ORIENTATION: Final = 0x0112  # tag of EXIF; what turns each of its values upright
_TURNS: Final = MappingProxyType(
    {
        **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"},
        **{6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
    }
)

_SOUNDS: Final = ("WAV", "FLAC", "OGG")
_MAX_CHANNELS: Final = 32
_MAX_SAMPLES: Final = 20_000_000  # of all channels: 10 minutes of mono at 32 kHz
_RATES: Final = (1_000, 384_000)
_WAVES: Final = (b"RIFF", b"RF64", b"BW64")
_UNKNOWN_SIZES: Final = (0, 0x7FFF_F000, 0x7FFF_FF00, 0x8000_0000, 0xFFFF_FFFF, (1 << 64) - 1)
"""What writers of streams put in place of the data's size: GStreamer, SoX, arecord (two), FFmpeg; the last in RF64."""
_WINDOW_S, _HOP_S, _LOG_OFFSET = 0.025, 0.010, 0.01

_MAX_VALUES: Final = 50_000_000
_STORED: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType({"float32": np.dtype("<f4"), "int64": np.dtype("<i8")})


class InputDecoder(Protocol):
    """Turns a sample's own bytes into the tensor that a network takes; travels as JSON values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a decoded sample, such as (C, H, W)."""

    @property
    def dtype(self) -> NumberType:
        """Type of its numbers."""

    def decode(self, encoded: bytes) -> NDArray[Any]:
        """Return the network's input, ``dtype`` of ``shape``, in memory of its own.

        Raises:
            DataError: the bytes are not a complete sample in a known format.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the decoder as JSON values with its ``kind``; ``decoder_from_dict`` reads them."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDecoder:
    """Turns an encoded image into a tensor [C, size, size]; turned upright first where its EXIF says so.

    Attributes:
        channels: 1 (gray) or 3 (RGB); size: pixels per side.
        mean, std: one per channel, on the scale 0–1; ``(0,)`` and ``(1,)`` change nothing.
        crop: the shorter side is resized to ``floor(size / crop)`` pixels and the middle size x size cut out
            (0.875 is the usual evaluation on ImageNet); None: resized to size x size whatever the proportions.
        interpolation: how an image of another size is resized; smoothed where it shrinks.
    """

    kind: ClassVar[str] = "image"
    dtype: ClassVar[NumberType] = "float32"

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in _MODES:
            raise InvalidValue(f"an image has 1 or 3 channels, but got {self.channels}")
        if not 1 <= self.size <= _MAX_SIDE:
            raise InvalidValue(f"an image is 1–{_MAX_SIDE} pixels wide, but got size {self.size}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not np.all(np.isfinite(values)):
                raise InvalidValue(
                    f"{name} is one finite number for each of {self.channels} channels, but got {values}"
                )
        if min(self.std) <= 0:
            raise InvalidValue(f"std is positive, but got {self.std}; 1 leaves the values as they are")
        if self.crop is not None and not 0.1 <= self.crop <= 1:
            raise InvalidValue(f"crop is the share of the shorter side that is kept, 0.1–1, but got {self.crop}")
        choice("interpolation", self.interpolation, get_args(Interpolation))

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
        """Return the image, uint8 [C, size, size]; resized only if its size differs.

        Raises:
            DataError: the bytes are not a complete image in a known format.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
                if max(math.prod(image.size), math.prod(self._resized(*image.size))) > _MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels are more than {_MAX_PIXELS}, or would be")
                if (said := headers.pixels(encoded)) not in (None, math.prod(image.size)):
                    raise ValueError(f"its header says {said} pixels, but it has {image.width}x{image.height}")
                check_depth(image.mode)
                plain = upright(image, image.convert(_MODES[self.channels]))
                box = self._resized(*plain.size)
        except Exception as error:  # Pillow's plugins raise an open set of types on hostile bytes
            why = "they begin like none" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"cannot decode {len(encoded)} bytes as an image ({why}); "
                f"send a complete image file in one of {', '.join(_FORMATS)}"
            ) from error
        if plain.size != box:
            plain = plain.resize(box, Image.Resampling[self.interpolation.upper()])
        if box != (self.size, self.size):
            left, top = (round((side - self.size) / 2) for side in box)
            plain = plain.crop((left, top, left + self.size, top + self.size))
        return np.asarray(plain, dtype=np.uint8).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Size of the whole image (width, height) from which the middle is cut out."""
        if self.crop is None:
            return self.size, self.size
        short = math.floor(self.size / self.crop)
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (pixels / 255 - mean) / std as float32, for pixels [..., C, H, W] (new memory, C order)."""
        values = np.divide(pixels, np.float32(255), dtype=np.float32, order="C")
        values -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        values /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the decoder as JSON values."""
        return _to_dict(self)


def check_depth(mode: str) -> None:
    """Raise ValueError for modes of Pillow whose values 8 bits would clip."""
    if mode in _DEEP_MODES:
        raise ValueError(
            f"an image has 8 bits per channel, but this one has the mode {mode}; scale its values to 0–255, or give "
            "them as tensors"
        )


def upright(image: Any, pixels: Any) -> Any:
    """Return ``pixels``, an image of Pillow's, turned as the EXIF of ``image`` says (all eight orientations).

    An orientation that cannot be read counts as none.
    """
    from PIL import Image

    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # what Pillow raises on damaged EXIF is an open set of types
        turn = None
    return pixels if turn is None else pixels.transpose(Image.Transpose[turn])


def is_gray(encoded: bytes) -> bool:
    """Return whether the bytes are an image with one channel; only its header is read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            return image.mode in ("1", "L", "LA", *_DEEP_MODES)
    except Exception:  # as above
        return False


def is_sound(encoded: bytes) -> bool:
    """Return whether the bytes begin like a file of sounds."""
    return encoded[:4] in (b"fLaC", b"OggS") or (encoded[:4] in _WAVES and encoded[8:12] == b"WAVE")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AudioDecoder:
    """Turns an encoded clip into a log-mel patch [1, T, M]; the defaults are VGGish's published front end.

    The mean of all channels is resampled to ``rate``; windows of 25 ms, 10 ms apart, under a periodic Hann
    window give magnitude spectra (FFT of the next power of two), M triangular bands on the HTK mel scale, and
    log(band + 0.01). Source: Hershey et al. 2017, "CNN architectures for large-scale audio classification", with
    the parameters of the AudioSet release (``vggish_params``, ``mel_features``).

    Attributes:
        rate: samples per second; bands: M; low_hz, high_hz: edges of the lowest and highest band.
        frames: T, 96 are 0.975 s. A shorter clip is padded with silence.
        patch: which frames of a longer clip, and where a shorter one lies: ``first`` or ``center``.
    """

    kind: ClassVar[str] = "audio"
    dtype: ClassVar[NumberType] = "float32"

    rate: int = 16_000
    bands: int = 64
    low_hz: float = 125.0
    high_hz: float = 7_500.0
    frames: int = 96
    patch: Patch = "first"

    def __post_init__(self) -> None:
        if not 8_000 <= self.rate <= 96_000:
            raise InvalidValue(f"the rate of a front end is 8,000–96,000 samples per second, but got {self.rate}")
        if not 0 <= self.low_hz < self.high_hz <= self.rate / 2:
            raise InvalidValue(
                f"mel bands lie within 0–{self.rate / 2} Hz at this rate, but got {self.low_hz}–{self.high_hz} Hz; "
                "lower high_hz, or raise the rate"
            )
        if not (1 <= self.bands <= 512 and 1 <= self.frames <= 10_000):
            raise InvalidValue(
                f"a patch has 1–512 bands and 1–10,000 frames, but got {self.bands} bands and {self.frames} frames"
            )
        choice("patch", self.patch, get_args(Patch))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (1, T, M) of a decoded sample."""
        return (1, self.frames, self.bands)

    def decode(self, encoded: bytes) -> NDArray[np.float32]:
        """Return the network's input, float32 [1, T, M].

        Raises:
            DataError: the bytes are not a complete clip in a known format, or hold values that are not finite.
        """
        clip, rate = _clip(encoded, self.rate)
        if rate != self.rate:
            import soxr

            clip = soxr.resample(clip, rate, self.rate)
        return self.log_mel(self._cut_out(clip))

    def _cut_out(self, clip: NDArray[np.float64]) -> NDArray[np.float64]:
        """The samples that T frames cover."""
        needed = (self.frames - 1) * round(_HOP_S * self.rate) + round(_WINDOW_S * self.rate)
        spare = clip.size - needed
        start = 0 if self.patch == "first" else abs(spare) // 2
        if spare >= 0:
            return clip[start : start + needed]
        return np.pad(clip, (start, needed - clip.size - start))

    def log_mel(self, clip: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return log-mel frames, float32 [1, frames, M], of mono samples (within -1 to 1, at ``rate``)."""
        window = round(_WINDOW_S * self.rate)
        size = 1 << (window - 1).bit_length()
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        framed = np.lib.stride_tricks.sliding_window_view(clip, window)[:: round(_HOP_S * self.rate)]
        with np.errstate(over="ignore", invalid="ignore"):
            spectra = np.abs(np.fft.rfft(framed * hann, size))
            mel = spectra @ _mel_bank(self.rate, size, self.bands, self.low_hz, self.high_hz)
            values = np.log(mel + _LOG_OFFSET).astype(np.float32)[None]
        if not np.isfinite(values).all():
            raise DataError("a clip has finite samples within -1 to 1, but this one has others; write it again")
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the decoder as JSON values."""
        return _to_dict(self)


@cache
def _mel_bank(rate: int, size: int, bands: int, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Triangles [size / 2 + 1, M], straight on the mel scale (not in Hz as in other banks); no band hears 0 Hz."""

    def mel(hz: Any) -> Any:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    edges = np.linspace(mel(low_hz), mel(high_hz), bands + 2)
    bins = mel(np.linspace(0.0, rate / 2, size // 2 + 1))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0.0, np.minimum(rising, falling))
    bank[0] = 0.0
    bank.setflags(write=False)
    return np.asarray(bank)


def _clip(encoded: bytes, rate_out: int) -> tuple[NDArray[np.float64], int]:
    """The mean of all channels [samples] and their rate; sizes are checked before anything is read."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(_plain(encoded))) as file:
            count, channels, rate = file.frames, file.channels, file.samplerate
            if not _RATES[0] <= rate <= _RATES[1]:
                raise ValueError(f"the rate is {_RATES[0]}–{_RATES[1]} samples per second, but it says {rate}")
            if not (1 <= channels <= _MAX_CHANNELS and count >= 1):
                raise ValueError(
                    f"it says {count} samples of {channels} channels; there are 1–{_MAX_CHANNELS} channels"
                )
            if max(count * channels, count * rate_out / rate) > _MAX_SAMPLES:
                raise ValueError(f"{count} samples of {channels} channels are more than {_MAX_SAMPLES}, or would be")
            read = file.read(dtype="float32", always_2d=True)
        if len(read) != count:
            raise ValueError(f"it says {count} samples, but has {len(read)}")
    except Exception as error:  # what the library raises on hostile bytes is an open set of types
        raise DataError(
            f"cannot decode {len(encoded)} bytes as audio ({error}); "
            f"send a complete file in one of {', '.join(_SOUNDS)}"
        ) from error
    clip = read.mean(axis=1, dtype=np.float64)
    if not np.isfinite(clip).all():
        raise DataError("a clip has finite samples within -1 to 1, but this one has others; write it again")
    return clip, rate


def _plain(encoded: bytes) -> bytes:
    """Return the file as libsndfile reads it to its end; ValueError if it is of another format, or cut short.

    Streams (``ffmpeg -f wav -``, ``arecord``, ``sox``) come with one of a few sizes of their data that stand for "not
    known" (SoX rounds to whole frames): the data reaches to the end. Any other size is meant. Those, RF64 (sizes of 64
    bits, EBU Tech 3306) and files with chunks of odd size that are not padded are written anew, as RIFF with the same
    format and data.
    """
    if not is_sound(encoded):
        raise ValueError("it does not begin like one of them")
    if encoded[:4] not in _WAVES:
        return encoded
    position, kept, long, frame, usual = 12, b"", 0, 1, encoded[:4] == b"RIFF"
    while position + 8 <= len(encoded):
        name, size = encoded[position : position + 4], int.from_bytes(encoded[position + 4 : position + 8], "little")
        position += 8
        left = len(encoded) - position
        if name == b"data":
            size = long if size == 0xFFFF_FFFF and long else size
            known = usual and position < int.from_bytes(encoded[4:8], "little") + 8 <= len(encoded)
            if not known and any(size in (some, some - some % frame) for some in _UNKNOWN_SIZES):
                size, usual = left, False
        if size > left:
            raise ValueError(f"chunk {name!r} says {size} bytes, but {left} are left")
        if name == b"data":
            if usual:
                return encoded
            whole = kept + name + size.to_bytes(4, "little")
            return b"RIFF" + (4 + len(whole) + size).to_bytes(4, "little") + b"WAVE" + whole + encoded[position:][:size]
        if name == b"ds64":
            long = int.from_bytes(encoded[position + 8 : position + 16], "little") or 0xFFFF_FFFF
        if name == b"fmt ":
            frame = int.from_bytes(encoded[position + 12 : position + 14], "little") or 1
            kept += name + size.to_bytes(4, "little") + encoded[position : position + size] + bytes(size % 2)
        if size % 2 and encoded[position + size : position + size + 1] not in (b"", b"\0"):
            usual = False  # no padding: the next chunk begins here
        else:
            size += size % 2
        position += size
    raise ValueError("it has no data chunk")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TensorDecoder:
    """Takes the tensor's own bytes, little-endian in C order; for samples that are network inputs already.

    Attributes:
        shape: of a sample, such as (C, H, W); dtype: of its numbers, ``int64`` for tokens.
    """

    kind: ClassVar[str] = "tensor"

    shape: tuple[int, ...]
    dtype: NumberType = "float32"

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or math.prod(self.shape) > _MAX_VALUES:
            raise InvalidValue(
                f"a tensor has at least one axis and 1–{_MAX_VALUES} values, but got the shape {self.shape}"
            )
        choice("dtype", self.dtype, get_args(NumberType))

    @property
    def stored(self) -> np.dtype[Any]:
        """Type of the numbers in a sample's bytes."""
        return _STORED[self.dtype]

    def decode(self, encoded: bytes) -> NDArray[Any]:
        """Return the network's input, ``dtype`` of ``shape``.

        Raises:
            DataError: there are more or fewer bytes than the shape has, or values that are not finite.
        """
        expected = self.stored.itemsize * math.prod(self.shape)
        if len(encoded) != expected:
            raise DataError(
                f"a sample of shape {self.shape} has {expected} bytes ({self.dtype}), but got {len(encoded)}"
            )
        values = np.frombuffer(encoded, dtype=self.stored).reshape(self.shape).astype(self.dtype, copy=True)
        if not np.isfinite(values).all():
            raise DataError("a tensor has finite values, but this one has others")
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the decoder as JSON values."""
        return _to_dict(self)


_Any = ImageDecoder | AudioDecoder | TensorDecoder
_CLASSES: Final[Mapping[str, type[_Any]]] = MappingProxyType(
    {kind.kind: kind for kind in (ImageDecoder, AudioDecoder, TensorDecoder)}
)


def _to_dict(decoder: _Any) -> dict[str, Any]:
    values = {item.name: getattr(decoder, item.name) for item in fields(decoder)}
    return {"kind": decoder.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def decoder_from_dict(values: Mapping[str, Any]) -> InputDecoder:
    """Return the decoder of ``to_dict``; without a ``kind`` it is an image's, as in older checkpoints.

    Raises:
        InvalidValue: the kind or a field is missing, unknown or out of its range.
    """
    kind = values.get("kind", ImageDecoder.kind)
    choice("a decoder", kind, _CLASSES)
    chosen = _CLASSES[kind]
    known = {item.name for item in fields(chosen)}
    needed = {"image": {"channels", "size", "mean", "std"}, "audio": known, "tensor": {"shape"}}[kind]
    given = {name: value for name, value in values.items() if name != "kind"}
    if not needed <= given.keys() <= known:
        raise InvalidValue(
            f"the decoder of an {kind} has the fields {', '.join(sorted(known))}, but got {sorted(given)}"
        )
    try:
        return chosen(**{name: _READ[name](value) for name, value in given.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValue(f"a decoder cannot be read from {dict(values)}: {error}") from error


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


_READ: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **dict.fromkeys(("channels", "size", "rate", "bands", "frames"), int),
        **dict.fromkeys(("mean", "std"), _numbers),
        **dict.fromkeys(("low_hz", "high_hz"), float),
        **dict.fromkeys(("interpolation", "patch", "dtype"), str),
        "crop": lambda value: None if value is None else float(value),
        "shape": lambda value: tuple(int(side) for side in value),
    }
)
