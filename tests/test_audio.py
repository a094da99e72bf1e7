"""The log-mel front end of VGGish, and clips that must not be trusted."""

from __future__ import annotations

import cmath
import io
import json
import math
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from portend.data.dataset import make_splits
from portend.data.decoding import AudioDecoder, decoder_from_dict
from portend.data.sources import load_dataset
from portend.errors import DataError, InvalidValue
from portend.networks.checkpoint import save_checkpoint
from portend.networks.zoo import build
from portend.testbed.deployment import Deployment
from portend.values.plan import Plan
from test_models import shared_data
from test_runtime import chain

VGGISH = AudioDecoder()


def tone(hz: float, seconds: float, rate: int = 16_000, level: float = 0.5) -> Any:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def wav(samples: Any, rate: int, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype=subtype, format=kind)
    return buffer.getvalue()


# --- the published formulas ---------------------------------------------------------------------


def published_frame(samples: list[float]) -> list[float]:
    """One frame as the AudioSet release computes it (mel_features.py), with nothing but loops."""
    windowed = [x * (0.5 - 0.5 * math.cos(2 * math.pi * n / 400)) for n, x in enumerate(samples)]
    turn = [cmath.exp(-2j * math.pi * n / 512) for n in range(512)]
    magnitude = [abs(sum(x * turn[k * n % 512] for n, x in enumerate(windowed))) for k in range(257)]

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    step = (mel(7500.0) - mel(125.0)) / 65
    bands = []
    for band in range(64):
        low, center, high = (mel(125.0) + (band + i) * step for i in range(3))
        total = 0.0
        for k in range(1, 257):
            at = mel(k * 8000.0 / 256)
            total += magnitude[k] * max(0.0, min((at - low) / (center - low), (high - at) / (high - center)))
        bands.append(math.log(total + 0.01))
    return bands


def test_log_mel_is_the_published_one() -> None:
    rng = np.random.default_rng(3)
    clip = tone(440, 1.0) + 0.2 * tone(3_000, 1.0) + 0.01 * rng.standard_normal(16_000)
    decoded = VGGISH.decode(wav(clip, 16_000, "FLOAT"))
    assert decoded.shape == VGGISH.shape == (1, 96, 64)
    assert decoded.dtype == np.float32
    stored = np.asarray(clip, dtype=np.float32).tolist()
    for frame in (0, 1, 95):
        expected = published_frame(stored[160 * frame : 160 * frame + 400])
        assert decoded[0, frame] == pytest.approx(expected, abs=2e-5)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    edges = np.linspace(1127 * np.log1p(125 / 700), 1127 * np.log1p(7500 / 700), 66)
    for hz in (300, 1_000, 4_000):
        band = int(np.abs(edges[1:-1] - 1127 * np.log1p(hz / 700)).argmin())
        assert VGGISH.decode(wav(tone(hz, 1.0), 16_000))[0].argmax(axis=1).tolist() == [band] * 96


def test_silence_is_the_logarithm_of_the_offset() -> None:
    assert VGGISH.decode(wav(np.zeros(10), 16_000)) == pytest.approx(math.log(0.01))


def test_a_clip_is_padded_or_cut() -> None:
    silent, loud = np.zeros(8_000), tone(1_000, 0.975)
    short = tone(1_000, 0.16)
    centered = AudioDecoder(patch="center")
    energy = [d.decode(wav(short, 16_000))[0].max(axis=1) > 0 for d in (VGGISH, centered)]
    assert [np.flatnonzero(e)[[0, -1]].tolist() for e in energy] == [[0, 15], [39, 56]]
    long = wav(np.concatenate([silent, loud, silent]), 16_000)
    assert (centered.decode(long)[0].max(axis=1) > 0).all()
    assert (VGGISH.decode(long)[0, :47].max(axis=1) < 0).all()
    assert np.array_equal(centered.decode(long), VGGISH.decode(wav(loud, 16_000)))


def test_channels_are_averaged() -> None:
    left, right = tone(500, 1.0), tone(2_000, 1.0, level=0.25)
    stereo = VGGISH.decode(wav(np.stack([left, right], axis=1), 16_000, "DOUBLE"))
    assert stereo == pytest.approx(VGGISH.decode(wav((left + right) / 2, 16_000, "DOUBLE")), abs=1e-4)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_other_rates_are_resampled(rate: int) -> None:
    resampled = VGGISH.decode(wav(tone(1_000, 1.2, rate), rate, "FLOAT"))
    direct = VGGISH.decode(wav(tone(1_000, 1.2), 16_000, "FLOAT"))
    loud = direct[0, 2:-2] > 0
    assert resampled[0, 2:-2][loud] == pytest.approx(direct[0, 2:-2][loud], abs=0.01)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAVEX", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
    ],
)
def test_the_usual_encodings_are_read(kind: str, subtype: str) -> None:
    expected = VGGISH.decode(wav(tone(700, 1.0), 16_000, "FLOAT"))[0]
    decoded = VGGISH.decode(wav(tone(700, 1.0), 16_000, subtype, kind))[0]
    assert decoded[5:-5].max(axis=1) == pytest.approx(expected[5:-5].max(axis=1), abs=0.05)


# --- clips that must not be trusted -------------------------------------------------------------

GOOD = wav(tone(440, 0.5), 16_000)


def size(data: bytes) -> str:
    """A test's name: libsndfile writes the time into files of floats, so their bytes never are the same."""
    return f"{len(data)} bytes"


def patched(offset: int, layout: str, *values: int) -> bytes:
    data = bytearray(GOOD)
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"not a sound at all, but long enough to be one" * 3,
        GOOD[:30],
        GOOD[: len(GOOD) // 2],
        patched(40, "<I", 0xFFFFFFFF),  # data chunk: 4 GiB
        patched(16, "<I", 0x7FFFFFFF),  # format chunk: 2 GiB
        patched(22, "<H", 0),  # no channels
        patched(22, "<H", 65_535),
        patched(24, "<I", 0),  # rate
        patched(24, "<I", 1),
        patched(24, "<I", 0xFFFFFFFF),
        patched(20, "<H", 0x0055),  # MP3 inside
        patched(34, "<H", 0),  # bits
        patched(12, "<4s", b"junk"),  # type: ignore[arg-type]
        patched(40, "<I", 0),
        wav(np.zeros(0), 16_000),
        wav([0.1, float("nan")], 16_000, "FLOAT"),
        wav([0.1, float("inf")], 16_000, "FLOAT"),
        wav([1e300, -1e300], 16_000, "DOUBLE"),
    ],
    ids=size,
)
def test_a_malformed_clip_is_a_data_error_at_once(data: bytes) -> None:
    VGGISH.decode(GOOD)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(DataError):
        VGGISH.decode(data)
    assert time.process_time() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def container(
    size: int, *, kind: bytes = b"RIFF", before: bytes = b"", after: bytes = b"", whole: int | None = None
) -> bytes:
    """The good clip with the given size of its data (and of the file), and with chunks before and after the data."""
    at = GOOD.index(b"data")
    rest = before + b"data" + struct.pack("<I", size) + GOOD[at + 8 :] + after
    return kind + struct.pack("<I", size if whole is None else whole) + GOOD[8:at] + rest


def ds64(size: int) -> bytes:
    return b"ds64" + struct.pack("<IQQQI", 28, size, size, 0, 0)


DATA = len(GOOD) - GOOD.index(b"data") - 8
STREAMED = [
    *(container(size) for size in (0xFFFFFFFF, 0, 0x7FFFF000, 0x7FFFFF00, 0x80000000)),
    container(0xFFFFFFFF, before=b"LIST" + struct.pack("<I", 5) + b"hello\0"),
    container(0, whole=36),
    container(0, whole=0xFFFFFFFF),
    container(0xFFFFFFFF, kind=b"RF64", before=ds64(DATA)),
    container(0xFFFFFFFF, kind=b"RF64", before=ds64(0)),
    container(0xFFFFFFFF, kind=b"BW64", before=ds64((1 << 64) - 1)),
    container(DATA, before=b"note" + struct.pack("<I", 5) + b"hello", whole=len(GOOD) + 5),  # no padding
    container(DATA, before=b"note" + struct.pack("<I", 5) + b"hello\0", whole=len(GOOD) + 6),
    container(DATA, after=b"LIST" + struct.pack("<I", 4) + b"INFO", whole=len(GOOD) + 4),
    container(0xFFFFFFFF, kind=b"RF64", before=ds64(DATA), after=b"LIST" + struct.pack("<I", 4) + b"INFO"),
]


@pytest.mark.parametrize("data", STREAMED, ids=size)
def test_a_clip_from_a_pipe_is_read_to_its_end(data: bytes) -> None:
    assert np.array_equal(VGGISH.decode(data), VGGISH.decode(GOOD))


@pytest.mark.parametrize(
    "data",
    [
        container(DATA + 2, whole=len(GOOD)),
        container(0x10000000),
        *(container(size, whole=size + 36) for size in (0x7FFF1000, 0x7FFFF400, 0x90000000, 0xFFFFFF00)),  # over 2 GiB
        container(0xFFFFFFFF, kind=b"RF64", before=ds64(1 << 63)),
        container(0xFFFFFFFF, kind=b"RF64", before=ds64(DATA + 2)),
        container(0xFFFFFFFF, kind=b"RF64", before=ds64(1 << 40)),
        container(0xFFFFFFFF)[:44],
        container(0xFFFFFFFF)[:40],
        container(0xFFFFFFFF).replace(b"RIFF", b"RIFX"),
    ],
    ids=size,
)
def test_a_clip_that_is_cut_short_is_still_noticed(data: bytes) -> None:
    with pytest.raises(DataError, match="cannot decode"):
        VGGISH.decode(data)


def test_a_stream_may_say_whole_frames() -> None:
    """SoX writes 0x7FFFF000, less what is no whole frame."""
    whole = wav(np.stack([tone(440, 0.5), tone(880, 0.5)], axis=1), 16_000, "PCM_24")
    at = whole.index(b"data") + 4
    streamed, cut = (
        whole[:at] + struct.pack("<I", size) + whole[at + 4 :]
        for size in (0x7FFFF000 - 0x7FFFF000 % 6, 0x7FFFF000 - 0x7FFFF000 % 6 - 6)
    )
    whole, streamed, cut = (b"RIFF" + bytes(4) + data[8:] for data in (whole, streamed, cut))
    assert np.array_equal(VGGISH.decode(streamed), VGGISH.decode(whole))
    with pytest.raises(DataError, match="cannot decode"):
        VGGISH.decode(cut)


def test_a_small_file_cannot_claim_hours() -> None:
    quiet = wav(np.zeros(21_000_000, dtype=np.int16), 48_000, kind="FLAC")
    assert len(quiet) < 200_000
    with pytest.raises(DataError, match="more than 20000000"):
        VGGISH.decode(quiet)
    slow = wav(np.zeros(2_000_000, dtype=np.int16), 1_000)
    with pytest.raises(DataError, match="or would be"):
        VGGISH.decode(slow)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_hostile_bytes_never_raise_anything_else(kind: str) -> None:
    rng = np.random.default_rng(9)
    good = wav(tone(440, 0.05), 16_000, "VORBIS" if kind == "OGG" else "PCM_16", kind)
    for _ in range(80):
        bad = bytearray(good)
        for position in rng.integers(0, min(len(bad), 120), 4):
            bad[position] = rng.integers(256)
        try:
            decoded = VGGISH.decode(bytes(bad))
        except DataError:
            continue
        assert decoded.shape == VGGISH.shape
        assert np.isfinite(decoded).all()


def test_an_audio_decoder_survives_json() -> None:
    decoder = AudioDecoder(rate=8_000, high_hz=3_800, bands=40, frames=50, patch="center")
    assert decoder_from_dict(json.loads(json.dumps(decoder.to_dict()))) == decoder


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": 0},
        {"rate": 8_000},
        {"bands": 0},
        {"frames": 10**9},
        {"low_hz": 8_000},
        {"high_hz": float("nan")},
        {"patch": "last"},
        {"patch": None},
        {"more": 1},
    ],
)
def test_a_wrong_audio_decoder_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        decoder_from_dict(VGGISH.to_dict() | changes)


# --- over a hop ---------------------------------------------------------------------------------


def test_a_tier_takes_recordings_in_their_own_encoding(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    decoder = AudioDecoder(bands=32, frames=32)
    clips = [wav(tone(rng.uniform(200, 3_000), 0.4, 8_000), 8_000) for _ in range(6)]
    backbone = build("resnet8", in_channels=1, input_size=32)
    checkpoint = tmp_path / "net.safetensors"
    save_checkpoint(backbone, checkpoint)
    with torch.no_grad():
        answers = backbone.eval()(torch.from_numpy(np.stack([decoder.decode(clip) for clip in clips])))[-1].argmax(1)
    right = np.arange(6) % 2 == 0
    labels = np.where(right, answers, (answers + 1) % 10)
    with Deployment(chain(1.0, 1.0, delay_s=0.0), checkpoint, decoder) as running:
        running.load_samples(clips, labels)
        for codec in ("encoded", "float32"):
            running.deploy(Plan(cuts=(4,), placement=(1,), codecs=(codec,)))
            measured = running.run(warmup=0)
            assert measured.correct.tolist() == right.tolist()


# --- real recordings ----------------------------------------------------------------------------


def test_spoken_digits() -> None:
    folder = shared_data("spoken_digits")
    dataset = load_dataset(f"parquet:{folder}")
    assert (len(dataset), dataset.num_classes, dataset.decoder.shape) == (3_000, 10, (1, 96, 64))
    assert dataset.own_test is not None
    assert dataset.own_test.size == 300
    patches = dataset.tensors(range(0, 3_000, 100))
    assert np.isfinite(patches).all()
    assert patches.min() >= np.float32(math.log(0.01))
    assert patches[:, :, :10].mean() > -4.4  # someone speaks
    assert np.array_equal(patches[3], dataset.decoder.decode(dataset.encoded[300]))
    splits = make_splits(dataset)
    assert np.bincount(dataset.labels[splits.profiling]).tolist() == [15] * 10


def test_spoken_digits_of_unheard_speakers() -> None:
    dataset = load_dataset(f"parquet:{shared_data('spoken_digits')}:group=speaker")
    assert dataset.groups is not None
    splits = make_splits(dataset, seed=2)
    speakers = [set(dataset.groups[part].tolist()) for part in (splits.train, splits.profiling, splits.test)]
    assert [len(part) for part in speakers] == [4, 1, 1]
    assert set.union(*speakers) == set(range(6))
