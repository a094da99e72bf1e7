"""Datasets, their decoding and their splits."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from portend.data.dataset import Dataset, Splits, limited, make_splits
from portend.data.decoding import ImageDecoder, TensorDecoder, decoder_from_dict
from portend.data.encodings import png
from portend.data.sources import load_dataset
from portend.errors import DataError, InvalidValue

PLAIN_RGB = ImageDecoder(channels=3, size=4, mean=(0.0,) * 3, std=(1.0,) * 3)


def encode(pixels: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def tiny(classes: list[int], **changes: Any) -> Dataset:
    fields = {
        "name": "tiny",
        "encoded": [encode(np.full((4, 4, 3), i)) for i in range(len(classes))],
        "labels": np.array(classes, dtype=np.int64),
        "class_names": ("a", "b", "c"),
        "decoder": PLAIN_RGB,
    }
    return Dataset(**{**fields, **changes})


# --- decoder ----------------------------------------------------------------------------------


def test_decoder_scales_and_normalizes_each_channel() -> None:
    decoder = ImageDecoder(channels=3, size=2, mean=(0.0, 0.5, 0.2), std=(1.0, 0.5, 0.1))
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 1] = (255, 51, 102)
    decoded = decoder.decode(encode(pixels))
    assert decoded.dtype == np.float32
    assert decoded.flags.c_contiguous
    assert decoded[:, 0, 1] == pytest.approx([1.0, (0.2 - 0.5) / 0.5, 2.0], abs=1e-6)
    assert decoded[:, 1, 0] == pytest.approx([0.0, -1.0, -2.0], abs=1e-6)


def test_decoder_converts_colors_and_sizes() -> None:
    gray = ImageDecoder(channels=1, size=6, mean=(0.0,), std=(1.0,))
    assert gray.decode(encode(np.full((3, 9, 3), 255))) == pytest.approx(np.ones((1, 6, 6)))
    assert PLAIN_RGB.decode(encode(np.full((4, 4), 255), "JPEG")).shape == (3, 4, 4)


def test_decoder_enlarges_bilinearly() -> None:
    decoder = ImageDecoder(channels=1, size=4, mean=(0.0,), std=(1.0,))
    row = decoder.pixels(encode([[0, 200], [0, 200]]))[0, 0]
    assert row.tolist() == [0, 50, 150, 200]


def test_a_broken_image_is_a_data_error() -> None:
    good = encode(np.random.default_rng(0).integers(0, 256, (16, 16, 3)), "JPEG")
    for bad in (b"", b"not an image", good[: len(good) // 2], good[:20], bytes(1000)):
        with pytest.raises(DataError, match=f"cannot decode {len(bad)} bytes"):
            PLAIN_RGB.decode(bad)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_hostile_bytes_never_raise_anything_else(kind: str) -> None:
    rng = np.random.default_rng(7)
    good = encode(rng.integers(0, 256, (16, 16, 3)), kind)
    for _ in range(60):
        bad = bytearray(good)
        for position in rng.integers(0, len(bad), 8):
            bad[position] = rng.integers(256)
        try:
            decoded = PLAIN_RGB.decode(bytes(bad[: rng.integers(1, len(bad) + 1)]))
        except DataError:
            continue
        assert decoded.shape == PLAIN_RGB.shape


def test_a_small_file_cannot_claim_a_huge_image() -> None:
    huge = encode(np.zeros((1, 1), dtype=np.uint8), "BMP")
    claimed = huge[:18] + (40_000).to_bytes(4, "little") * 2 + huge[26:]
    with pytest.raises(DataError, match="pixels"):
        PLAIN_RGB.decode(claimed)


def test_decoder_survives_json() -> None:
    decoder = ImageDecoder(channels=1, size=16, mean=(0.3,), std=(0.4,))
    assert decoder_from_dict(json.loads(json.dumps(decoder.to_dict()))) == decoder


def test_a_decoder_of_an_older_checkpoint_is_an_images() -> None:
    older = {"channels": 1, "size": 32, "mean": [0.305], "std": [0.376]}
    assert decoder_from_dict(older) == ImageDecoder(channels=1, size=32, mean=(0.305,), std=(0.376,))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(50, 37), (37, 50), (20, 20), (9, 31), (16, 18)])
def test_cropping_is_what_torchvision_evaluates_with(width: int, height: int, interpolation: Any) -> None:
    from torchvision import transforms

    picture = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    decoder = ImageDecoder(
        channels=3, size=14, mean=(0.0,) * 3, std=(1.0,) * 3, crop=0.875, interpolation=interpolation
    )
    mode = transforms.InterpolationMode(interpolation)
    expected = transforms.CenterCrop(14)(transforms.Resize(16, interpolation=mode)(picture))
    assert np.array_equal(decoder.pixels(encode(np.asarray(picture))), np.asarray(expected).transpose(2, 0, 1))


def test_a_strip_cannot_be_enlarged_without_end() -> None:
    decoder = ImageDecoder(channels=1, size=224, mean=(0.0,), std=(1.0,), crop=1.0)
    with pytest.raises(DataError, match="pixels are more"):
        decoder.decode(encode(np.zeros((1, 20_000))))


def test_deeper_images_are_refused_instead_of_clipped() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(buffer, format="PNG")
    with pytest.raises(DataError, match="8 bits"):
        PLAIN_RGB.decode(buffer.getvalue())


def test_the_upper_8_bits_of_16_bit_colors_are_taken() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + np.tile(np.array([0x1234, 0xFF80, 0x00FF], dtype=">u2"), 4).tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    picture = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(4 * row)) + chunk(b"IEND", b"")
    assert PLAIN_RGB.pixels(picture)[:, 2, 1].tolist() == [0x12, 0xFF, 0x00]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert PLAIN_RGB.pixels(buffer.getvalue())[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deeper_pictures_are_refused_too(mode: str) -> None:
    with pytest.raises(DataError, match=f"mode {mode}"):
        png(Image.new(mode, (4, 4), 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_8_bits_keep_their_colors(mode: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    assert np.array_equal(
        PLAIN_RGB.pixels(png(picture)),
        np.asarray(picture.convert("RGB").resize((4, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1),
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    pixels = np.zeros((24, 40, 3), dtype=np.uint8)
    pixels[:8, :, 0] = pixels[:, :8, 1] = 255  # which way is up, and which side is left
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    decoder = ImageDecoder(channels=3, size=16, mean=(0.0,) * 3, std=(1.0,) * 3, crop=1.0)
    with Image.open(buffer) as photo:
        turned = encode(np.asarray(ImageOps.exif_transpose(photo).convert("RGB")))
    assert np.array_equal(decoder.decode(buffer.getvalue()), decoder.decode(turned))


def test_a_damaged_orientation_counts_as_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(4).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif.tobytes()[:9])
    assert np.array_equal(PLAIN_RGB.decode(buffer.getvalue()), PLAIN_RGB.decode(encode(pixels)))


@pytest.mark.parametrize("labels", [[0.7, 1.0], [float("nan"), 0.0], ["a", "b"], [None, 0], [2**70, 0]])
def test_labels_of_a_data_set_are_whole_numbers(labels: list[float]) -> None:
    with pytest.raises(DataError, match="whole numbers"):
        tiny([0, 1], labels=labels)


def test_whole_numbers_are_their_own_bytes() -> None:
    decoder = TensorDecoder(shape=(2, 2), dtype="int64")
    values = np.array([[2**62 + 1, -1], [0, 30_521]])
    decoded = decoder.decode(values.astype("<i8").tobytes())
    assert decoded.dtype == np.int64
    assert decoded.tolist() == values.tolist()
    assert decoder_from_dict(json.loads(json.dumps(decoder.to_dict()))) == decoder
    assert decoder_from_dict({"kind": "tensor", "shape": [3]}) == TensorDecoder(shape=(3,))  # as in older checkpoints
    with pytest.raises(DataError, match="32 bytes"):
        decoder.decode(bytes(16))


def test_a_tensor_is_finite() -> None:
    with pytest.raises(DataError, match="finite"):
        TensorDecoder(shape=(2,)).decode(np.array([1, np.nan], "<f4").tobytes())


def test_a_tensor_is_its_own_bytes() -> None:
    decoder = TensorDecoder(shape=(2, 3))
    values = np.arange(6, dtype="<f4").reshape(2, 3) - 2.5
    assert np.array_equal(decoder.decode(values.tobytes()), values)
    assert decoder_from_dict(json.loads(json.dumps(decoder.to_dict()))) == decoder
    for wrong in (b"", values.tobytes()[:-1], values.tobytes() + b"x"):
        with pytest.raises(DataError, match="24 bytes"):
            decoder.decode(wrong)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"channels": 1, "size": 8, "mean": [0], "std": [1], "more": 1},
        {"channels": 1, "size": 8, "mean": 0, "std": [1]},
        {"channels": 1, "size": "big", "mean": [0], "std": [1]},
        {"channels": 2, "size": 8, "mean": [0, 0], "std": [1, 1]},
        {"channels": 1, "size": 0, "mean": [0], "std": [1]},
        {"channels": 3, "size": 8, "mean": [0], "std": [1, 1, 1]},
        {"channels": 1, "size": 8, "mean": [0], "std": [0]},
        {"channels": 1, "size": 8, "mean": [float("nan")], "std": [1]},
        {"channels": 1, "size": 10**9, "mean": [0], "std": [1]},
        {"channels": 1, "size": 8, "mean": [0], "std": [1], "crop": 1e-9},
        {"channels": 1, "size": 8, "mean": [0], "std": [1], "interpolation": "sinc"},
        {"kind": "video", "channels": 1, "size": 8, "mean": [0], "std": [1]},
        {"kind": ["image"], "channels": 1, "size": 8, "mean": [0], "std": [1]},
        {"kind": "tensor", "shape": []},
        {"kind": "tensor", "shape": [0, 3]},
        {"kind": "tensor", "shape": [10**6, 10**6]},
        {"kind": "tensor"},
        {"kind": "tensor", "shape": [2], "dtype": "complex64"},
    ],
)
def test_a_wrong_decoder_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        decoder_from_dict(values)


# --- dataset ----------------------------------------------------------------------------------


def test_tensors_are_the_decoded_samples_bit_for_bit() -> None:
    dataset = load_dataset("digits:size=16")
    indices = [3, 1700, 3]
    expected = np.stack([dataset.decoder.decode(dataset.encoded[i]) for i in indices])
    assert np.array_equal(dataset.tensors(indices), expected)


def test_a_broken_sample_is_named() -> None:
    good = tiny([0, 1])
    with pytest.raises(DataError, match="sample 1 of tiny"):
        replace(good, encoded=[good.encoded[0], b"broken"]).tensors([0, 1])


def test_what_an_own_sequence_raises_is_a_data_error() -> None:
    class Lazy(list[bytes]):
        def __getitem__(self, index: Any) -> Any:
            raise OSError("no such card")

    with pytest.raises(
        DataError, match=r"sample 1 of tiny: it cannot be read: OSError: no such card \(test_data\.py, line"
    ):
        tiny([0, 1], encoded=Lazy([b"", b""])).tensors([1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoded": [], "labels": []}, "no samples"),
        ({"labels": [0]}, "one label"),
        ({"labels": [0, 3]}, "within 0–2"),
        ({"labels": [-1, 0]}, "within 0–2"),
    ],
)
def test_unusable_samples_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny([0, 1], **changes)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(InvalidValue, match="within 0–1"):
        tiny([0, 1]).tensors([0, index])


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert (len(dataset), dataset.num_classes, dataset.decoder.shape) == (1797, 10, (1, 32, 32))
    native = replace(dataset, decoder=ImageDecoder(channels=1, size=8, mean=(0.0,), std=(1.0,)))
    assert native.tensors([0, 9])[:, 0] * 16 == pytest.approx(load_digits().images[[0, 9]], abs=0.04)


# --- parquet ----------------------------------------------------------------------

NAMES = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}


def write_parquet(folder: Path, *, labels: Any = (0, 1), images: Any = None, names: Any = NAMES, **more: Any) -> None:
    for part in ("train", "test"):
        if images is None:
            images = [{"bytes": encode(np.full((32, 32, 3), 7 * i), "JPEG"), "path": "x"} for i in range(len(labels))]
        table = pa.table({"image": images, "label": list(labels), **more})
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), folder / f"{part}.parquet")


def test_parquet_keeps_the_files_bytes_and_marks_the_test_set(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    dataset = load_dataset(f"parquet:{tmp_path}:size=16")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 0, 1]
    assert dataset.own_test is not None
    assert dataset.own_test.tolist() == [2, 3]
    assert dataset.encoded[1][:2] == b"\xff\xd8"
    assert dataset.tensors([0]).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": (0, 2)}, "within 0–1"),
        ({"labels": (0, None)}, "sample 1 has NoneType"),
        ({"labels": (0.0, 0.5)}, r"sample 1 has float '0\.5'"),
        ({"labels": ([0], [1])}, "sample 0 has a list of 1"),
        ({"labels": ("cat", "eel")}, "'eel' is not one of the class names cat, dog"),
        ({"labels": ()}, "image"),
        ({"labels": (0, -1)}, "within 0–1"),
        ({"images": [1, 2]}, "struct with the field bytes, bytes, or lists of numbers, but is int64"),
        ({"images": ["some", "text"]}, "is string; give the numbers of the text's tokens"),
        ({"images": [["some"], ["text"]]}, "made of numbers"),
        ({"images": [{"bytes": None, "path": "x"}, {"bytes": b"a", "path": "y"}]}, "1 rows"),
        ({"images": [None, {"bytes": b"a", "path": "y"}]}, "1 rows"),
        ({"images": [None, b"a"]}, "1 rows"),
    ],
)
def test_a_wrong_parquet_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        load_dataset(f"parquet:{tmp_path}")


def hugging_face(folder: Path, features: Any = None, **columns: Any) -> str:
    folder.mkdir(exist_ok=True)
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return f"parquet:{folder}:size=4"


IMAGES = [{"bytes": encode(np.full((4, 4, 3), 7 * i)), "path": "x"} for i in range(4)]


def test_labels_of_parquet_may_be_names(tmp_path: Path) -> None:
    dataset = load_dataset(hugging_face(tmp_path, image=IMAGES, label=["dog", "ant", "dog", "cat"]))
    assert (dataset.class_names, dataset.labels.tolist()) == (("ant", "cat", "dog"), [2, 0, 2, 1])
    (tmp_path / "both").mkdir()
    write_parquet(tmp_path / "both", labels=("dog", "cat"))
    known = load_dataset(f"parquet:{tmp_path / 'both'}")
    assert (known.class_names, known.labels.tolist()) == (("cat", "dog"), [1, 0, 1, 0])  # as the schema orders them
    coded = pa.array(["b", "a", "b", "b"]).dictionary_encode()
    assert load_dataset(hugging_face(tmp_path / "coded", image=IMAGES, label=coded)).labels.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("sample", "label", "options"),
    [
        ("img", "fine_label", ""),
        ("picture", "labels", ""),
        ("Image", "Class", ""),
        ("pixels_of", "kind", ":input=pixels_of:label=kind"),
        ("image", "coarse_label", ":label=coarse_label"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_columns_of_parquet_have_usual_or_given_names(
    tmp_path: Path, sample: str, label: str, options: str, plain: bool
) -> None:
    images = [image["bytes"] for image in IMAGES] if plain else IMAGES
    names = {label: {"names": ["u", "v"], "_type": "ClassLabel"}}
    where = hugging_face(tmp_path, names, **{sample: images, label: [0, 1, 1, 0], "more": [1, 2, 3, 4]})
    dataset = load_dataset(where + options)
    assert (dataset.class_names, dataset.labels.tolist()) == (("u", "v"), [0, 1, 1, 0])
    assert np.array_equal(dataset.tensors([3])[0] * 255, np.full((3, 4, 4), 21.0))
    assert load_dataset(dataset.name + ":size=4").encoded[3] == dataset.encoded[3]
    with pytest.raises(DataError, match=r"needs a column with the label \(nobody\), but has .*name it by label=COLUMN"):
        load_dataset(f"{where}:input={sample}:label=nobody")


def test_tokens_of_parquet_are_whole_numbers(tmp_path: Path) -> None:
    tokens = [[101, 2023, 2**40 + i, 102] for i in range(4)]
    where = hugging_face(tmp_path, input_ids=tokens, label=["x", "y", "x", "y"]).removesuffix(":size=4")
    dataset = load_dataset(where)
    assert dataset.decoder == TensorDecoder(shape=(4,), dtype="int64")
    assert dataset.tensors(range(4)).tolist() == tokens
    ragged = hugging_face(tmp_path / "ragged", input_ids=[[1, 2], [1]], label=[0, 1]).removesuffix(":size=4")
    with pytest.raises(DataError, match=r"sample 1 of .* give all samples one shape"):
        load_dataset(ragged).tensors([1])


def test_a_parquet_file_or_the_folder_of_its_configuration_will_do(tmp_path: Path) -> None:
    hugging_face(tmp_path / "plain_text", image=IMAGES, label=[0, 1, 1, 0])
    for place in (tmp_path, tmp_path / "plain_text", tmp_path / "plain_text" / "train-00000-of-00001.parquet"):
        assert load_dataset(f"parquet:{place}").labels.tolist() == [0, 1, 1, 0]


def test_a_missing_or_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.parquet and test\.parquet"):
        load_dataset(f"parquet:{tmp_path}")
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot read"):
        load_dataset(f"parquet:{tmp_path}")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(
        DataError, match=r"needs a column with the sample \(image, .* but has label; name it by input=COLUMN"
    ):
        load_dataset(f"parquet:{tmp_path}")


# --- splits -----------------------------------------------------------------------------------


def test_a_calibration_split_is_taken_from_training_alone() -> None:
    dataset = tiny([0, 1, 2] * 40)
    plain, with_it = make_splits(dataset, seed=3), make_splits(dataset, seed=3, calibration=12)
    assert plain.calibration is None
    assert with_it.calibration is not None
    assert np.array_equal(plain.profiling, with_it.profiling)
    assert np.array_equal(plain.test, with_it.test)
    assert np.array_equal(np.sort(np.concatenate([with_it.train, with_it.calibration])), plain.train)
    assert np.bincount(dataset.labels[with_it.calibration]).tolist() == [4, 4, 4]


@pytest.mark.parametrize("calibration", [0, 60, 1.0, -1, 1e-9])
def test_an_impossible_calibration_split_is_refused(calibration: float) -> None:
    with pytest.raises(InvalidValue):
        make_splits(tiny([0, 1, 2] * 40), calibration=calibration)


def test_splits_share_no_group_and_keep_the_classes() -> None:
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 40, 1200)
    dataset = tiny(rng.choice(3, 1200, p=[0.2, 0.3, 0.5]).tolist(), groups=groups)
    splits = make_splits(dataset, seed=1, calibration=0.2)
    assert splits.calibration is not None
    parts = [splits.train, splits.profiling, splits.test, splits.calibration]
    assert sum(part.size for part in parts) == 1200
    seen = [set(groups[part].tolist()) for part in parts]
    assert sum(len(part) for part in seen) == len(set().union(*seen))
    assert [part.size for part in parts[1:3]] == pytest.approx([300, 300], abs=30)
    for part in parts:
        assert np.bincount(dataset.labels[part]) / part.size == pytest.approx([0.2, 0.3, 0.5], abs=0.1)
    assert np.array_equal(make_splits(dataset, seed=1).profiling, splits.profiling)


def test_three_groups_make_three_splits() -> None:
    splits = make_splits(tiny([0, 1, 2] * 3, groups=[0] * 3 + [1] * 3 + [2] * 3))
    assert [part.size for part in (splits.train, splits.profiling, splits.test)] == [3, 3, 3]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InvalidValue, match="2 are left for 3 splits"):
        make_splits(tiny([0, 1, 2] * 4, groups=[0, 1] * 6))
    with pytest.raises(InvalidValue, match="1 are left for 2 splits"):
        make_splits(tiny([0, 1, 2] * 3, groups=[0, 1, 2] * 3), calibration=1)


def test_an_own_test_set_that_shares_groups_is_refused() -> None:
    shared = tiny([0, 1, 2] * 4, groups=[0, 1, 2, 3] * 3, own_test=np.arange(6, 12))
    with pytest.raises(InvalidValue, match="shares 4 with the rest"):
        make_splits(shared)


def test_a_limit_keeps_classes_and_the_own_test_set_in_proportion() -> None:
    dataset = tiny([0, 1, 1] * 40, own_test=np.arange(90, 120))
    few = limited(dataset, 24)
    assert few.own_test is not None
    assert (len(few), few.own_test.size) == (24, 6)
    assert np.bincount(few.labels).tolist() == [8, 16]
    originals = [dataset.encoded.index(data) for data in few.encoded]
    assert dataset.labels[originals].tolist() == few.labels.tolist()
    assert (np.array(originals)[few.own_test] >= 90).all()
    for count in (0, 121):
        with pytest.raises(InvalidValue, match="1–120"):
            limited(dataset, count)


def test_default_splits_of_the_digits() -> None:
    dataset = load_dataset("digits")
    splits = make_splits(dataset)
    assert (splits.train.size, splits.profiling.size, splits.test.size) == (897, 450, 450)
    together = np.sort(np.concatenate([splits.train, splits.profiling, splits.test]))
    assert np.array_equal(together, np.arange(1797))
    share = np.bincount(dataset.labels) / 1797
    for part in (splits.train, splits.profiling, splits.test):
        assert np.abs(np.bincount(dataset.labels[part]) - share * part.size).max() < 2


def test_own_test_set_is_halved_and_never_trained_on() -> None:
    dataset = tiny([0, 1, 2] * 40, own_test=np.arange(60, 120))
    splits = make_splits(dataset)
    assert np.array_equal(splits.train, np.arange(60))
    assert np.bincount(dataset.labels[splits.profiling]).tolist() == [10, 10, 10]
    assert np.array_equal(np.sort(np.concatenate([splits.profiling, splits.test])), np.arange(60, 120))
    fewer = make_splits(dataset, profiling=6, test=0.1)
    assert np.array_equal(fewer.train, splits.train)
    assert (fewer.profiling.size, fewer.test.size) == (6, 6)


def test_splits_follow_the_seed() -> None:
    dataset = tiny([0, 1, 2] * 20)
    first, again, other = (make_splits(dataset, seed=seed).profiling for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_large_own_test_set_gives_five_thousand_each() -> None:
    dataset = tiny([0, 1])
    many = replace(
        dataset, encoded=[*dataset.encoded] * 6_500, labels=np.tile([0, 1], 6_500), own_test=np.arange(1_000, 13_000)
    )
    splits = make_splits(many)
    assert (splits.train.size, splits.profiling.size, splits.test.size) == (1_000, 5_000, 5_000)


@pytest.mark.parametrize(
    ("profiling", "test"), [(0, 5), (5, 0), (-1, 5), (30, 30), (61, 1), (0.5, 0.5), (1.5, 5), (float("nan"), 5)]
)
def test_impossible_sizes_are_refused(profiling: float, test: float) -> None:
    with pytest.raises(InvalidValue):
        make_splits(tiny([0, 1, 2] * 20), profiling=profiling, test=test)


def test_splits_do_not_overlap() -> None:
    a = np.array([1, 2])
    with pytest.raises(InvalidValue, match="1 indices occur twice"):
        Splits(train=a, profiling=np.array([2]), test=np.array([3]))
    with pytest.raises(InvalidValue, match="test has none"):
        Splits(train=a, profiling=np.array([3]), test=np.array([], dtype=np.int64))
