"""Codecs: what comes back, what is refused, what is copied, and what they do to a network's answers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import lz4.block
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from portend.data.dataset import Dataset
from portend.data.decoding import TensorDecoder
from portend.data.sources import load_dataset
from portend.errors import InvalidValue, MessageError, MismatchError
from portend.networks.backbone import Backbone
from portend.networks.evaluators import TorchEvaluator
from portend.networks.zoo import build
from portend.profiling.losses import profile_losses, profile_ranges
from portend.runtime.codecs import Codec, Sample, make_codec, make_numbers
from portend.values.backbone import channel_axis
from portend.values.codecs import CodecLoss, ValueRange
from portend.values.plan import CODECS, LOSSY, NUMBERS, codec_parts

Tensor = NDArray[np.float32]
SHAPE = (3, 4, 5)
DECODER = TensorDecoder(shape=SHAPE)
LIMITS = ValueRange(tensor=np.array([-2.0, 3.0]), channels=np.array([[-1.0, -2.0, 0.0], [1.0, 2.0, 3.0]]))
WRITTEN = [name for name in CODECS if name != "encoded"]

any_tensor = hnp.arrays(np.float32, SHAPE, elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


def codec(name: str, shape: tuple[int, ...] = SHAPE, limits: ValueRange | None = LIMITS) -> Codec:
    return make_codec(name, DECODER, shape, limits)


def back(name: str, tensor: Tensor) -> Tensor:
    """The tensor as its receiver gets it."""
    one = codec(name, tensor.shape)
    return one.decode(bytes(one.encode(tensor)), tensor.shape)


def ends(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high end of int8's range, broadcast to the shape."""
    if name.startswith("int8-channel"):
        low, high = (np.broadcast_to(e[:, None, None], SHAPE) for e in LIMITS.channels)
    else:
        low, high = (np.broadcast_to(e, SHAPE) for e in LIMITS.tensor)
    return low, high


# -- names -----------------------------------------------------------------------------------------


def test_the_names_are_numbers_with_or_without_a_compressor() -> None:
    assert codec_parts("float32") == ("float32", "")
    assert codec_parts("int8-channel+zstd") == ("int8-channel", "zstd")
    assert len(set(CODECS)) == len(CODECS) == 1 + 3 * len(NUMBERS)
    for name in WRITTEN:
        assert codec(name).name == name


@pytest.mark.parametrize("name", ["gzip", "float32+", "+lz4", "float32+gzip", "encoded+lz4", "int8 + lz4", "INT8", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"a codec that writes numbers is one of float32, float32\+lz4"):
        codec(name)


# -- what comes back -------------------------------------------------------------------------------


@settings(max_examples=60)
@given(any_tensor, st.sampled_from([n for n in WRITTEN if n.startswith("float32")]))
def test_float32_keeps_every_bit(tensor: Tensor, name: str) -> None:
    assert back(name, tensor).tobytes() == tensor.tobytes()


@settings(max_examples=60)
@given(any_tensor, st.sampled_from([n for n in WRITTEN if n.startswith("float16")]))
def test_float16_gives_the_nearest_half_and_saturates(tensor: Tensor, name: str) -> None:
    got = back(name, tensor)
    finite = np.isfinite(tensor)
    assert np.array_equal(got[~finite], tensor[~finite], equal_nan=True)
    inside = finite & (np.abs(tensor) <= 65504)
    error = np.abs(got[inside].astype(np.float64) - tensor[inside])
    assert np.all(error <= np.maximum(2.0**-11 * np.abs(tensor[inside]), 2.0**-25))
    assert np.array_equal(got[finite & ~inside], np.copysign(np.float32(65504), tensor[finite & ~inside]))


@settings(max_examples=100)
@given(any_tensor, st.sampled_from([n for n in WRITTEN if n.startswith("int8")]))
def test_int8_is_within_half_a_step_saturates_and_keeps_nan(tensor: Tensor, name: str) -> None:
    got = back(name, tensor)
    assert np.array_equal(np.isnan(got), np.isnan(tensor))
    low, high = ends(name)
    expected = np.clip(tensor.astype(np.float64), low, high)
    known = ~np.isnan(tensor)
    assert np.all(np.abs(got - expected)[known] <= ((high - low) / 254 * (0.5 + 1e-4) + 1e-6)[known])


def test_int8_by_hand() -> None:
    """Range 0–254: the step is 1, and each number is rounded to the nearest one, its half upward."""
    limits = ValueRange(tensor=np.array([0.0, 254.0]), channels=np.array([[0.0], [254.0]]))
    values = np.array([[0.0, 0.49, 0.5, 1.0, 253.6, 254.0, 255.0, -3.0, np.inf, -np.inf, np.nan]], np.float32)
    one = make_codec("int8", DECODER, values.shape, limits)
    assert list(bytes(one.encode(values))) == [0, 0, 1, 1, 254, 254, 254, 0, 254, 0, 255]
    expected = [0, 0, 1, 1, 254, 254, 254, 0, 254, 0, np.nan]
    assert np.array_equal(one.decode(one.encode(values), values.shape)[0], expected, equal_nan=True)


def test_a_constant_channel_comes_back_as_it_is() -> None:
    limits = ValueRange(tensor=np.array([0.0, 5.0]), channels=np.array([[5.0, 0.0], [5.0, 0.0]]))
    tensor = np.array([5.0, 0.0], dtype=np.float32).reshape(2, 1, 1)
    one = make_codec("int8-channel", DECODER, (2, 1, 1), limits)
    assert np.array_equal(one.decode(one.encode(tensor), (2, 1, 1)), tensor)
    beyond = np.array([np.inf, -7.0], dtype=np.float32).reshape(2, 1, 1)
    assert np.array_equal(one.decode(one.encode(beyond), (2, 1, 1)), tensor)


@pytest.mark.parametrize(("shape", "axis"), [((4, 2, 3), 0), ((2, 4), 1), ((4,), 0)])
def test_channels_lie_where_channel_axis_says(shape: tuple[int, ...], axis: int) -> None:
    """Each channel k holds the values 10k and 10k+1, which its own range keeps exactly."""
    assert channel_axis(shape) == axis
    base = 10.0 * np.arange(4)
    limits = ValueRange(tensor=np.array([0.0, 31.0]), channels=np.array([base, base + 1]))
    along = [-1 if place == axis else 1 for place in range(len(shape))]
    tensor = np.broadcast_to(base.reshape(along), shape).astype(np.float32)
    tensor[(0,) * len(shape)] += 1
    one = make_codec("int8-channel", DECODER, shape, limits)
    assert np.array_equal(one.decode(one.encode(tensor), shape), tensor)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_tensor_in_another_memory_order_is_sent_in_order(name: str) -> None:
    tensor = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    turned = np.asfortranarray(tensor)
    assert bytes(codec(name).encode(turned)) == bytes(codec(name).encode(tensor))
    assert bytes(codec(name).encode(Sample(b"", turned))) == bytes(codec(name).encode(tensor))


def test_splitting_the_bytes_lets_activations_compress() -> None:
    """Values of like size share their exponent's byte, which alone repeats."""
    values = np.random.default_rng(0).uniform(1, 2, 5000).astype(np.float32)
    plain = len(zstandard.ZstdCompressor(level=1).compress(values.tobytes()))
    one = make_codec("float32+zstd", DECODER, (5000,))
    assert len(one.encode(values)) < 0.8 * 4 * 5000 < plain


def test_float32_is_encoded_without_a_copy_and_decoded_with_one() -> None:
    tensor = np.arange(60, dtype=np.float32).reshape(SHAPE)
    payload = codec("float32").encode(tensor)
    assert np.shares_memory(np.frombuffer(payload, np.uint8), tensor)
    message = bytearray(payload)
    got = codec("float32").decode(memoryview(message), SHAPE)
    assert not np.shares_memory(got, np.frombuffer(message, np.uint8))
    assert got.flags.owndata
    for name in WRITTEN:
        assert back(name, tensor).flags.writeable


# -- what is refused -------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.binary(max_size=400), st.sampled_from(WRITTEN))
def test_no_bytes_break_a_decoder(data: bytes, name: str) -> None:
    try:
        tensor = codec(name).decode(data, SHAPE)
    except MessageError:
        return
    assert tensor.shape == SHAPE
    assert tensor.dtype == np.float32


@settings(max_examples=150)
@given(st.data(), st.sampled_from([n for n in WRITTEN if "+" in n]))
def test_a_damaged_payload_is_refused_or_gives_a_tensor(data: st.DataObject, name: str) -> None:
    tensor = np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)
    payload = bytearray(codec(name).encode(tensor))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(1, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut]), bytes(payload) + b"\0" * 7):
        try:
            assert codec(name).decode(damaged, SHAPE).shape == SHAPE
        except MessageError:
            continue


@pytest.mark.parametrize("name", WRITTEN)
def test_a_payload_of_another_tensor_is_refused(name: str) -> None:
    payload = bytes(codec(name).encode(np.zeros(SHAPE, np.float32)))
    with pytest.raises(MessageError, match=r"tensor of shape \(3, 4, 6\) has \d+ bytes, but got"):
        codec(name, (3, 4, 6)).decode(payload, (3, 4, 6))


def test_what_would_grow_beyond_the_tensor_is_refused_before_it_does() -> None:
    """A megabyte of zeros in a few bytes: lz4 stops at the tensor's size, zstd's stated size is read first."""
    bomb = np.zeros(1 << 24, np.uint8)
    with pytest.raises(MessageError, match="not an LZ4 block of at most 240 bytes"):
        codec("float32+lz4").decode(lz4.block.compress(bomb, store_size=False), SHAPE)
    compressor = zstandard.ZstdCompressor(level=1)
    with pytest.raises(MessageError, match="a Zstandard frame that states 16777216 bytes"):
        codec("float32+zstd").decode(compressor.compress(bomb.data), SHAPE)
    silent = zstandard.ZstdCompressor(level=1, write_content_size=False)
    with pytest.raises(MessageError, match="a Zstandard frame that states"):
        codec("float32+zstd").decode(silent.compress(bomb.data), SHAPE)
    lying = bytearray(compressor.compress(np.zeros(240, np.uint8).data))
    frames = bytes(lying) + compressor.compress(bomb.data)
    with pytest.raises(MessageError):
        codec("float32+zstd").decode(frames, SHAPE)


def test_int8_needs_a_range_that_fits() -> None:
    with pytest.raises(InvalidValue, match="int8 needs the range of values"):
        codec("int8", limits=None)
    with pytest.raises(InvalidValue, match=r"shape \(4, 4, 5\) has 4 channels, but got ranges of 3"):
        codec("int8-channel", (4, 4, 5))


@pytest.mark.parametrize(
    "data",
    [
        {},
        [1],
        {"tensor": [0, 1]},
        {"tensor": [1, 0], "channels": [[0], [1]]},
        {"tensor": [0, math.inf], "channels": [[0], [1]]},
        {"tensor": [0, math.nan], "channels": [[0], [1]]},
        {"tensor": [0, 1, 2], "channels": [[0], [1]]},
        {"tensor": [0, 1], "channels": [[0], [1], [2]]},
        {"tensor": [0, 1], "channels": [[], []]},
        {"tensor": [0, 1], "channels": [[0], [1, 2]]},
        {"tensor": ["a", 1], "channels": [[0], [1]]},
        {"tensor": [0, 1], "channels": {"a": 1}},
    ],
)
def test_what_is_no_range_is_refused(data: Any) -> None:
    with pytest.raises(InvalidValue):
        ValueRange.from_dict(data)


def test_a_range_survives_as_json_values() -> None:
    again = ValueRange.from_dict(LIMITS.to_dict())
    assert np.array_equal(again.tensor, LIMITS.tensor)
    assert np.array_equal(again.channels, LIMITS.channels)


# -- what a network's answers lose -----------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits:size=16")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return build("resnet8", in_channels=1, num_classes=10, input_size=16)


def test_a_batch_is_written_as_its_samples_are() -> None:
    batch = np.random.default_rng(0).uniform(-3, 3, (7, *SHAPE)).astype(np.float32)
    for name in LOSSY:
        numbers, one = make_numbers(name, SHAPE, LIMITS), codec(name)
        whole = numbers.unpack(numbers.pack(batch))
        assert np.array_equal(whole, np.stack([one.decode(one.encode(sample), SHAPE) for sample in batch]))


def test_ranges_are_least_and_largest_over_the_samples(digits: Dataset, backbone: Backbone) -> None:
    indices = np.arange(40)
    ranges = profile_ranges(TorchEvaluator(backbone), digits, indices)
    backbone.eval()
    with torch.inference_mode():
        x = torch.from_numpy(digits.tensors(indices))
        for limits, block in zip(ranges, backbone.blocks, strict=True):
            values = x.numpy()
            assert np.allclose(limits.tensor, [values.min(), values.max()])
            assert np.allclose(limits.channels[0], values.min(axis=(0, 2, 3)))
            assert np.allclose(limits.channels[1], values.max(axis=(0, 2, 3)))
            x = block(x)


def test_the_loss_is_that_of_sending_each_sample_by_the_codec(digits: Dataset, backbone: Backbone) -> None:
    """Against one sample at a time, through payloads, and a range so narrow that answers change."""
    indices = np.arange(100, 130)
    wide = profile_ranges(TorchEvaluator(backbone), digits, indices)
    narrow = tuple(ValueRange(tensor=r.tensor * 0.02, channels=r.channels * 0.02) for r in wide)
    seen: list[tuple[int, int]] = []
    found = profile_losses(TorchEvaluator(backbone), digits, indices, narrow, on_progress=lambda *at: seen.append(at))
    assert seen[-1] == (30 * 4, 30 * 4)
    assert all(a < b for (a, _), (b, _) in pairwise(seen))
    assert any(np.nansum(loss.lost) > 0 for loss in found.values())
    backbone.eval()
    blocks, labels = len(backbone.blocks), digits.labels[indices]

    def right(start: int, x: torch.Tensor, label: int) -> list[bool]:
        answers = []
        for block, branch in list(zip(backbone.blocks, backbone.branches, strict=True))[start:]:
            x = block(x)
            assert branch is not None
            answers.append(int(branch(x).argmax()) == label)
        return answers

    with torch.inference_mode():
        samples = [torch.from_numpy(digits.tensors([i])) for i in indices]
        for cut in range(blocks):
            for name in LOSSY:
                one = make_codec(name, digits.decoder, tuple(samples[0].shape[1:]), narrow[cut])
                lost, gained = np.zeros(blocks - cut), np.zeros(blocks - cut)
                for x, label in zip(samples, labels.tolist(), strict=True):
                    plain = np.array(right(cut, x, label))
                    sent = one.decode(bytes(one.encode(x[0].numpy())), tuple(x.shape[1:]))
                    coded = np.array(right(cut, torch.from_numpy(sent)[None], label))
                    lost += plain & ~coded
                    gained += coded & ~plain
                assert found[name].lost[cut, cut:].tolist() == lost.tolist()
                assert found[name].gained[cut, cut:].tolist() == gained.tolist()
                assert np.isnan(found[name].lost[cut, :cut]).all()
            samples = [backbone.blocks[cut](x) for x in samples]


def test_the_loss_at_a_cut_is_the_largest_of_the_exits_after_it() -> None:
    lost = [[2, 1, 5], [math.nan, 0, 1], [math.nan, math.nan, 3], [math.nan] * 3]
    gained = [[1, 0, 5], [math.nan, 4, 3], [math.nan, math.nan, 1], [math.nan] * 3]
    loss = CodecLoss(lost=np.array(lost), gained=np.array(gained), samples=100).loss
    assert loss[:3].tolist() == [0.01, 0.0, 0.02]
    assert math.isnan(loss[3])


def test_what_does_not_lose_is_not_measured_and_misfits_are_refused(digits: Dataset, backbone: Backbone) -> None:
    ranges = profile_ranges(TorchEvaluator(backbone), digits, np.arange(3))
    with pytest.raises(InvalidValue, match="loses accuracy is float16, int8, int8-channel"):
        profile_losses(TorchEvaluator(backbone), digits, np.arange(3), ranges, numbers=("float32",))
    with pytest.raises(MismatchError, match="takes samples of shape"):
        profile_ranges(TorchEvaluator(backbone), load_dataset("digits:size=8"), np.arange(3))
