"""Image folders, torchvision's data sets, sounds, and the user's own data sets."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from portend.data.dataset import make_splits
from portend.data.decoding import AudioDecoder, ImageDecoder, TensorDecoder
from portend.data.encodings import ParquetColumn
from portend.data.sources import load_dataset
from portend.errors import DataError
from portend.training.batches import Batches
from portend.training.config import TrainingConfig
from test_audio import tone, wav
from test_data import encode

RNG = np.random.default_rng(11)


def pictures(folder: Path, classes: dict[str, int], kind: str = "JPEG") -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            data = encode(RNG.integers(0, 256, (12, 20, 3)), kind)
            (folder / name / f"picture_{i}.{kind.lower()}").write_bytes(data)


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_of_classes(tmp_path: Path) -> None:
    pictures(tmp_path, {"dog": 2, "cat": 3})
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    dataset = load_dataset(f"folder:{tmp_path}:size=8")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.own_test is None
    assert dataset.encoded[3] == (tmp_path / "dog" / "picture_0.jpeg").read_bytes()
    assert dataset.tensors([0, 4]).shape == (2, 3, 8, 8)
    assert load_dataset(dataset.name + ":size=8").labels.tolist() == dataset.labels.tolist()


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folder_with_a_test_set(tmp_path: Path, held_out: str) -> None:
    pictures(tmp_path / "train", {"a": 4, "b": 4}, "PNG")
    pictures(tmp_path / held_out, {"a": 2, "b": 2}, "PNG")
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.own_test is not None
    assert dataset.own_test.tolist() == [8, 9, 10, 11]
    assert make_splits(dataset).train.tolist() == list(range(8))


def test_a_file_is_read_only_when_asked_for(tmp_path: Path) -> None:
    pictures(tmp_path, {"a": 2, "b": 2})
    broken, gone = tmp_path / "a" / "picture_1.jpeg", tmp_path / "b" / "picture_0.jpeg"
    broken.write_bytes(broken.read_bytes()[:40])
    dataset = load_dataset(f"folder:{tmp_path}")
    gone.unlink()
    dataset.tensors([0, 3])
    with pytest.raises(DataError, match=r"sample 1 of .*picture_1\.jpeg.*cannot decode 40 bytes"):
        dataset.tensors([0, 1])
    with pytest.raises(DataError, match=r"cannot read .*picture_0\.jpeg"):
        dataset.tensors([2])


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the folder"):
        load_dataset(f"folder:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="no subfolders"):
        load_dataset(f"folder:{tmp_path}")
    pictures(tmp_path / "train", {"a": 1, "b": 1})
    pictures(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(DataError, match="b, c"):
        load_dataset(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"class 'a' has no \.wav"):
        load_dataset(f"wav:{tmp_path / 'train'}")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="class 'empty' has no"):
        load_dataset(f"folder:{tmp_path / 'train'}")


def test_file_names_tell_the_group(tmp_path: Path) -> None:
    for label in ("one", "two"):
        (tmp_path / label).mkdir()
        for speaker in ("ann", "bob", "eve", "joe"):
            for take in range(3):
                (tmp_path / label / f"{speaker}_{take}.wav").write_bytes(wav(tone(500, 0.1), 16_000))
    dataset = load_dataset(f"wav:{tmp_path}:group=^([a-z]+)_")
    assert dataset.groups is not None
    assert dataset.groups.tolist() == np.repeat([0, 1, 2, 3], 3).tolist() * 2
    splits = make_splits(dataset, calibration=0.3)
    assert splits.calibration is not None
    for part in (splits.train, splits.profiling, splits.test, splits.calibration):
        assert np.unique(dataset.groups[part]).size == 1
        assert np.bincount(dataset.labels[part]).tolist() == [3, 3]
    for wrong in ("[a-z]+", "([", "^(x)"):
        with pytest.raises(DataError, match="group"):
            load_dataset(f"wav:{tmp_path}:group={wrong}")


# --- parquet ------------------------------------------------------------------------------------


def sounds(path: Path, labels: list[int], **more: Any) -> None:
    clips = [{"bytes": wav(tone(300 + 100 * i, 0.05), 16_000), "path": f"{i}.wav"} for i in range(len(labels))]
    pq.write_table(pa.table({"audio": clips, "label": labels, **more}), path, row_group_size=2)


def test_sounds_in_parquet_files_keep_their_bytes(tmp_path: Path) -> None:
    sounds(tmp_path / "train-00000-of-00002.parquet", [0, 1, 1])
    sounds(tmp_path / "train-00001-of-00002.parquet", [2, 0])
    sounds(tmp_path / "test.parquet", [1, 2])
    dataset = load_dataset(f"parquet:{tmp_path}:patch=center")
    assert dataset.labels.tolist() == [0, 1, 1, 2, 0, 1, 2]
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.own_test is not None
    assert dataset.own_test.tolist() == [5, 6]
    assert dataset.encoded[2] == dataset.encoded[-7:][2] == wav(tone(500, 0.05), 16_000)
    assert dataset.tensors([3, 6]).shape == (2, 1, 96, 64)
    assert load_dataset(f"parquet:{tmp_path}:classes=5").num_classes == 5
    with pytest.raises(DataError, match="within 0–1"):
        load_dataset(f"parquet:{tmp_path}:classes=2")


def test_a_column_makes_the_groups(tmp_path: Path) -> None:
    for part in ("train", "test"):
        sounds(tmp_path / f"{part}.parquet", [0, 1] * 6, speaker=["ann", "bob", "eve"] * 4)
    dataset = load_dataset(f"parquet:{tmp_path}:group=speaker")
    assert dataset.own_test is None
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [0, 1, 2] * 8
    sounds(tmp_path / "test.parquet", [0, 1], speaker=["ann", None])
    with pytest.raises(DataError, match="every sample is of a group, but sample 13 has none"):
        load_dataset(f"parquet:{tmp_path}:group=speaker")
    with pytest.raises(DataError, match="not nobody"):
        load_dataset(f"parquet:{tmp_path}:group=nobody")


def test_the_sources_own_test_set_is_dissolved_when_asked_for(tmp_path: Path) -> None:
    sounds(tmp_path / "train.parquet", [0, 1] * 9)
    sounds(tmp_path / "test.parquet", [0, 1])
    dataset = load_dataset(f"parquet:{tmp_path}:own_test=no:bands=32")
    assert dataset.own_test is None
    assert dataset.name == f"parquet:{tmp_path}:own_test=no"  # so that a checkpoint's splits are drawn alike
    splits = make_splits(dataset)
    assert (splits.profiling.size, splits.test.size, splits.train.size) == (5, 5, 10)
    with pytest.raises(DataError, match="yes, no, but got 'none'"):
        load_dataset(f"parquet:{tmp_path}:own_test=none")


def test_parts_with_other_classes_are_refused(tmp_path: Path) -> None:
    sounds(tmp_path / "train.parquet", [0, 1])
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": ""}], "label": [0]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="differ"):
        load_dataset(f"parquet:{tmp_path}")


def test_row_groups_are_dropped_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portend.data.encodings._CACHE", 4_000)
    sounds(tmp_path / "train.parquet", list(range(8)))
    column = ParquetColumn([tmp_path / "train.parquet"], [[2] * 4], "audio")
    for index in (0, 7, 3, 1, 5, 0):
        assert column[index] == wav(tone(300 + 100 * index, 0.05), 16_000)
        assert len(column._cache) <= 2


# --- torchvision --------------------------------------------------------------------------------


def idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write the format of MNIST's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_torchvisions_arrays_become_png(tmp_path: Path, name: str) -> None:
    images = {part: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 12), ("t10k", 6))}
    for part, pixels in images.items():
        idx(tmp_path / name / "raw" / f"{part}-images-idx3-ubyte", pixels)
        idx(tmp_path / name / "raw" / f"{part}-labels-idx1-ubyte", (np.arange(len(pixels)) % 10).astype(np.uint8))
    dataset = load_dataset(f"torchvision:{name}:{tmp_path}:size=28")
    assert (len(dataset), dataset.num_classes, dataset.decoder.shape) == (18, 10, (1, 28, 28))
    assert dataset.own_test is not None
    assert dataset.own_test.tolist() == list(range(12, 18))
    assert dataset.labels[12:].tolist() == [0, 1, 2, 3, 4, 5]
    expected = np.concatenate([images["train"], images["t10k"]])[[3, 17]] / np.float32(255)
    assert np.array_equal(dataset.tensors([3, 17])[:, 0], expected)


def test_torchvisions_image_files_stay_as_they_are(tmp_path: Path) -> None:
    pictures(tmp_path / "eurosat" / "2750", {"Forest": 2, "River": 3})
    dataset = load_dataset(f"torchvision:EuroSAT:{tmp_path}")
    assert dataset.class_names == ("Forest", "River")
    assert dataset.own_test is None
    assert dataset.encoded[2] == (tmp_path / "eurosat" / "2750" / "River" / "picture_0.jpeg").read_bytes()


def test_food101_and_pets_from_torchvisions_folders(tmp_path: Path) -> None:
    food = tmp_path / "food-101"
    pictures(food / "images", {"apple_pie": 2, "waffles": 2})
    for path in food.rglob("*.jpeg"):
        path.rename(path.with_suffix(".jpg"))
    (food / "meta").mkdir()
    for part, number in (("train", 0), ("test", 1)):
        names = {name: [f"{name}/picture_{number}"] for name in ("apple_pie", "waffles")}
        (food / "meta" / f"{part}.json").write_text(json.dumps(names))
    dataset = load_dataset(f"torchvision:Food101:{tmp_path}")
    assert dataset.class_names == ("apple_pie", "waffles")
    assert (dataset.labels.tolist(), np.asarray(dataset.own_test).tolist()) == ([0, 1, 0, 1], [2, 3])
    assert dataset.encoded[3] == (food / "images" / "waffles" / "picture_1.jpg").read_bytes()

    pets = tmp_path / "oxford-iiit-pet"
    (pets / "annotations").mkdir(parents=True)
    pictures(pets, {"images": 3})
    for number, name in enumerate(("Abyssinian_1", "beagle_1", "beagle_2")):
        (pets / "images" / f"picture_{number}.jpeg").rename(pets / "images" / f"{name}.jpg")
    (pets / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n")
    (pets / "annotations" / "test.txt").write_text("beagle_2 2 2 1\n")
    dataset = load_dataset(f"torchvision:OxfordIIITPet:{tmp_path}")
    assert dataset.class_names == ("Abyssinian", "Beagle")
    assert (dataset.labels.tolist(), np.asarray(dataset.own_test).tolist()) == ([0, 1, 1], [2])
    assert dataset.encoded[2] == (pets / "images" / "beagle_2.jpg").read_bytes()


def test_torchvisions_files_of_an_unknown_format_become_png(tmp_path: Path) -> None:
    root = tmp_path / "gtsrb"
    pixels = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for name in ("00000", "00001"):
        (root / "GTSRB" / "Training" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(root / "GTSRB" / "Training" / name / "0.ppm")
    (root / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "GTSRB" / "Final_Test" / "Images" / "00000.ppm")
    (root / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    dataset = load_dataset(f"torchvision:GTSRB:{tmp_path}:size=9")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.encoded[2][:4] == b"\x89PNG"
    assert np.array_equal(dataset.tensors([2])[0] * 255, pixels.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN", "STL10", "Flowers102", "OxfordIIITPet", "Food101"])
def test_a_missing_torchvision_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"torchvision\.datasets\.{name}\(.*download=True\) once"):
        load_dataset(f"torchvision:{name}:{tmp_path / 'absent'}")


def test_cifar10_comes_from_torchvisions_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    pixels = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)

    def write(name: str, value: dict[str, Any]) -> str:
        (tmp_path / CIFAR10.base_folder).mkdir(exist_ok=True)
        data = pickle.dumps(value)
        (tmp_path / CIFAR10.base_folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    batches = [{"data": pixels[i : i + 2].reshape(2, -1), "labels": [i // 2, 2]} for i in (0, 2, 4)]
    digests = [write(f"batch_{number}", batch) for number, batch in enumerate(batches)]
    monkeypatch.setattr(CIFAR10, "train_list", [["batch_0", digests[0]], ["batch_1", digests[1]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["batch_2", digests[2]]])
    names = {"label_names": ["plane", "car", "bird"]}
    meta = {"filename": "meta", "key": "label_names", "md5": write("meta", names)}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    dataset = load_dataset(f"cifar10:{tmp_path}")
    assert dataset.labels.tolist() == [0, 2, 1, 2, 2, 2]
    assert dataset.class_names == ("plane", "car", "bird")
    assert dataset.own_test is not None
    assert dataset.own_test.tolist() == [4, 5]
    assert np.array_equal(dataset.tensors([3])[0], pixels[3] / np.float32(255))


# --- the user's own -----------------------------------------------------------------------------

MODULE = """
import io
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset
from torchvision.transforms.functional import to_pil_image

from portend.data.sources import load_dataset
from portend.data.encodings import png

count = 0

class Pictures:
    classes = ["low", "high"]

    def __len__(self):
        return 9

    def __getitem__(self, index):
        global count
        count += 1
        if index >= 9:
            raise IndexError
        return np.full((5, 7, 3), 20 * index, dtype=np.uint8), index % 2

def gray():
    items = [(to_pil_image(torch.full((1, 6, 6), i, dtype=torch.uint8)), i % 3) for i in range(8)]
    return items

def vectors():
    values = torch.arange(24.0).reshape(6, 1, 2, 2) - 3
    whole = TensorDataset(values, torch.tensor([0, 1, 0, 1, 0, 1]))
    return Subset(whole, [0, 1, 2, 3]), Subset(whole, [4, 5])

def ours():
    return load_dataset("digits")

def names():
    return [(torch.zeros(2), name) for name in ("dog", "cat", "dog")]

def halves():
    return [(torch.zeros(2), 1.0), (torch.zeros(2), 1.7)]

def lists():
    return [(torch.zeros(2), [0, 1])]

def hot():
    return [(torch.zeros(2), torch.tensor([0.0, 1.0, 0.0]))]

def huge():
    return [(torch.zeros(2), 2**70)]

def mixed():
    return [(torch.zeros(2), 0), (torch.zeros(2), "cat")]

def deep():
    return [(Image.fromarray(np.full((8, 8), 1000 * i, "u2")), i % 2) for i in range(4)]

def deep_floats():
    return [(Image.fromarray(np.full((8, 8), 0.5 * i, "f4")), i % 2) for i in range(4)]

def deep_array():
    return [(Image.fromarray(np.full((8, 8), 1000 * i, "i4")), i % 2) for i in range(4)]

def text():
    return [("some words", 0)]

def ragged_lists():
    return [([[1, 2], [3]], 0)]

def nothing_in_it():
    return [{"picture_path": "a.png", "label": 0}]

def triples():
    return [(torch.zeros(2), 0, "a.png")]

def alone():
    return [torch.zeros(3)]

def other_names():
    return [{"photo_of": np.full((6, 6, 3), i, "u1"), "kind": i % 2} for i in range(4)]

def flags():
    return [(np.zeros(4, bool), 0)]

class Raising:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise RuntimeError("no camera")

class LateRaising(Raising):
    def __getitem__(self, index):
        return torch.zeros(2), {0: 0, 1: 1}[index]

class Unsized:
    def __len__(self):
        raise OSError("no card")

    def __getitem__(self, index):
        return torch.zeros(2), 0

def failing():
    return 1 / 0

def stream_raising():
    yield torch.zeros(2), 0
    raise OSError("unplugged")

def pairs():
    return [(np.full((6, 6, 3), 20 * i, "u1"), i % 3) for i in range(9)]

Pair = namedtuple("Pair", "first second")
Named = namedtuple("Named", "label index image")

@dataclass
class Item:
    pixel_values: object
    labels: int

class Stream(IterableDataset):
    def __iter__(self):
        return iter(pairs())

class SizedStream(Stream):
    def __len__(self):
        return 9

def mappings():
    return [{"image": Image.fromarray(pixels), "label": label} for pixels, label in pairs()]

def upper_case():
    return [{"Image": pixels, "Label": label} for pixels, label in pairs()]

def named_entries():
    return other_names()

def tuples():
    return [list(pair) for pair in pairs()]

def named_tuples():
    return [Named(label, -1, pixels) for pixels, label in pairs()]

def named_pairs():
    return [Pair(*pair) for pair in pairs()]

def data_classes():
    return [Item(*pair) for pair in pairs()]

def arrays_of_one():
    return [(pixels, np.array([label])) for pixels, label in pairs()]

def floats():
    return [(pixels, torch.tensor(float(label))) for pixels, label in pairs()]

def plain_stream():
    yield from pairs()

def files():
    return [(png(pixels), label) for pixels, label in pairs()]

def held_files():
    return [{"image": {"bytes": png(pixels), "path": None}, "label": label} for pixels, label in pairs()]

def by_split():
    return {"train": pairs()[:6], "test": Subset(pairs(), [6, 7, 8])}

def tensors():
    return [(torch.from_numpy(pixels).permute(2, 0, 1), torch.tensor(label)) for pixels, label in pairs()]

class Feature:
    names = ["cat", "dog", "eel"]

class Hugging(list):
    features = {"image": None, "label": Feature()}

def hugging():
    return Hugging(mappings())

class Relabeled(list):
    targets = [0] * 9

def relabeled():
    return Relabeled(pairs())

def tokens():
    return TensorDataset(torch.arange(2**40, 2**40 + 24).reshape(6, 4), torch.tensor([0, 1, 2] * 2))

def token_lists():
    return [{"input_ids": [i, 30_000, 2], "label": i % 2} for i in range(4)]

def depths():
    return [(np.full((5, 7), 60_000 + i, "u2"), i % 2) for i in range(4)]

def planes():
    return [(np.full((4, 6), i, "u1"), i % 2) for i in range(4)]

def wrong_numbers(values):
    return [(np.zeros(3, np.asarray(values).dtype), 0), (np.asarray(values), 1)]

def beyond():
    return wrong_numbers([1.0, 1e300, 0.0])

def missing():
    return wrong_numbers([1.0, float("nan"), 0.0])

def unsigned():
    return wrong_numbers(np.array([1, 2**63 + 1, 0], "u8"))

def another_kind():
    return [(np.zeros(3, "i8"), 0), (np.zeros(3), 1)]

def halves_of_numbers():
    return [(torch.full((3,), 1.5, dtype=torch.bfloat16, requires_grad=True), i) for i in range(2)]

def mixed_colors():
    gray = [(np.full((6, 6), i, "u1"), 0) for i in range(10)]
    return [*gray[:5], (np.full((6, 6, 3), (9, 0, 0), "u1"), 0), *gray[5:]]

def clips():
    tone = np.sin(np.arange(4000) / 3)
    return [{"audio": {"array": tone * i / 4, "sampling_rate": 16000, "path": "x"}, "label": i} for i in range(3)]

def lying():
    picture = Image.fromarray(np.full((4, 8, 3), 7, "u1"))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    return [(Image.open(buffer), 0)]

def ragged():
    return [(torch.zeros(2), 0), (torch.zeros(3), 1)]

nothing = []
number = 7
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_samples.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_samples", raising=False)
    return "own_samples"


def test_own_pictures_become_png_on_demand(own: str) -> None:
    dataset = load_dataset(f"{own}:Pictures:size=5:limit=6")
    assert dataset.name == f"{own}:Pictures:limit=6"
    assert (len(dataset), dataset.class_names, dataset.decoder.shape) == (6, ("low", "high"), (3, 5, 5))
    first = sys.modules[own].count
    assert np.unique(dataset.tensors([0]) * 255).size == 1
    assert sys.modules[own].count == first + 1


def test_own_gray_pictures_need_one_channel(own: str) -> None:
    dataset = load_dataset(f"{own}:gray:size=6")
    assert (dataset.decoder.shape, dataset.num_classes) == ((1, 6, 6), 3)
    assert dataset.tensors([5])[0, 0, 0, 0] == np.float32(5) / np.float32(255)


def test_own_tensors_are_network_inputs(own: str) -> None:
    dataset = load_dataset(f"{own}:vectors")
    assert dataset.own_test is not None
    assert (dataset.own_test.tolist(), dataset.labels.tolist()) == ([4, 5], [0, 1, 0, 1, 0, 1])
    assert np.array_equal(dataset.tensors([4])[0].ravel(), np.arange(16, 20) - np.float32(3))
    assert len(dataset.encoded[0]) == 16


def test_an_own_data_set_of_ours_is_taken_as_it_is(own: str) -> None:
    assert len(load_dataset(f"{own}:ours")) == 1797


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "has no 'absent'"),
        ("number", r"a data set of \(sample, label\).*but got int"),
        ("nothing", "empty"),
        ("ours:size=8", "options"),
        ("halves", r"sample 1 has float '1\.7'"),
        ("lists", "sample 0 has a list of 2"),
        ("hot", r"sample 0 has float32 of shape \(3,\)"),
        ("huge", "sample 0 has int"),
        ("mixed", "all whole numbers or all names"),
        ("deep", "mode I;16"),
        ("deep_floats", "mode F"),
        ("deep_array", "mode I"),
        ("text", "a sample is text"),
        ("ragged_lists", "numbers"),
        ("nothing_in_it", "item 0 is a dict with picture_path, label"),
        ("triples", "item 0 is a tuple of 3"),
        ("alone", "item 0 is float32 of shape"),
        ("other_names", "item 0 is a dict with photo_of, kind"),
        ("other_names:input=photo_of:label=nobody", "item 0 is a dict with photo_of, kind"),
        ("Raising", r"item 0 cannot be read: RuntimeError: no camera \(own_samples\.py, line \d+\)"),
        ("LateRaising", r"item 2 cannot be read: KeyError: 2 \(own_samples\.py, line \d+\)"),
        ("Unsized", r"number of samples is not known: OSError"),
        ("failing", r"own_samples:failing\(\) failed: ZeroDivisionError"),
        ("Pictures.missing", "has no 'Pictures.missing'"),
        ("stream_raising", "item 1 cannot be read: OSError: unplugged"),
        ("plain_stream:samples=pictures", "samples is one of tensor, picture"),
        ("flags", "bool of shape"),
    ],
)
def test_an_unusable_own_data_set_is_refused(own: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(f"{own}:{name}")


@pytest.mark.parametrize(
    "name",
    [
        *("pairs", "tuples", "mappings", "upper_case", "named_tuples", "named_pairs", "data_classes", "arrays_of_one"),
        *("floats", "plain_stream", "Stream", "SizedStream", "files", "held_files", "by_split", "tensors", "hugging"),
        "relabeled",
    ],
)
def test_the_usual_forms_of_own_data_sets_give_the_same_samples(own: str, name: str) -> None:
    dataset = load_dataset(f"{own}:{name}:size=6")
    assert dataset.labels.tolist() == [0, 1, 2] * 3
    assert dataset.decoder.shape == (3, 6, 6)
    expected = np.repeat(20 * np.arange(9), 3 * 6 * 6).reshape(9, 3, 6, 6) / np.float32(255)
    assert np.array_equal(dataset.tensors(range(9)), expected.astype(np.float32))
    assert (dataset.own_test is not None and dataset.own_test.tolist() == [6, 7, 8]) == (name == "by_split")
    assert dataset.class_names == (("cat", "dog", "eel") if name == "hugging" else ("0", "1", "2"))
    again = load_dataset(dataset.name + ":size=6")
    assert [again.encoded[i] for i in range(9)] == [dataset.encoded[i] for i in range(9)]


def test_entries_of_other_names_are_named(own: str) -> None:
    dataset = load_dataset(f"{own}:other_names:input=photo_of:label=kind")
    assert (dataset.labels.tolist(), len(dataset)) == ([0, 1, 0, 1], 4)
    assert dataset.name == f"{own}:other_names:input=photo_of:label=kind"


def test_labels_that_are_names_are_numbered(own: str) -> None:
    dataset = load_dataset(f"{own}:names")
    assert (dataset.class_names, dataset.labels.tolist()) == (("cat", "dog"), [1, 0, 1])


def test_own_tokens_stay_what_they_are(own: str) -> None:
    dataset = load_dataset(f"{own}:tokens")
    assert dataset.decoder == TensorDecoder(shape=(4,), dtype="int64")
    assert dataset.tensors([1, 5]).dtype == np.int64
    assert dataset.tensors([1]).tolist() == [[2**40 + i for i in range(4, 8)]]
    config = TrainingConfig(epochs=1, batch_size=4, learning_rate=0.1)
    samples, labels = next(iter(Batches(dataset, np.arange(4), config, shuffle=False)))
    assert (samples.dtype, samples[3].tolist(), labels.tolist()) == (
        torch.int64,
        dataset.tensors([3])[0].tolist(),
        [0, 1, 2, 0],
    )
    lists = load_dataset(f"{own}:token_lists")
    assert lists.tensors([3]).tolist() == [[3, 30_000, 2]]
    assert load_dataset(f"{own}:depths").tensors([3])[0, 4, 6] == 60_003


def test_uint8_is_a_picture_unless_it_is_said_to_be_a_tensor(own: str) -> None:
    assert isinstance(load_dataset(f"{own}:planes").decoder, ImageDecoder)
    dataset = load_dataset(f"{own}:planes:samples=tensor")
    assert dataset.decoder == TensorDecoder(shape=(4, 6), dtype="int64")
    assert np.array_equal(load_dataset(dataset.name).tensors([3])[0], np.full((4, 6), 3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beyond", "finite values within the range of float32"),
        ("missing", "finite values"),
        ("unsigned", "within the range of int64"),
        ("another_kind", "the first sample is int64.* is float64"),
    ],
)
def test_own_numbers_are_never_changed_without_a_word(own: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"sample 1 of .*{message}"):
        load_dataset(f"{own}:{name}").tensors([1])


def test_own_tensors_of_torchs_own_types(own: str) -> None:
    assert load_dataset(f"{own}:halves_of_numbers").tensors([1]).tolist() == [[1.5] * 3]


def test_one_picture_in_color_makes_all_of_three_channels(own: str) -> None:
    dataset = load_dataset(f"{own}:mixed_colors:size=6")
    assert dataset.decoder.shape == (3, 6, 6)
    assert (dataset.tensors([5])[0, :, 0, 0] * 255).round().tolist() == [9, 0, 0]


def test_own_sounds_become_wav(own: str) -> None:
    dataset = load_dataset(f"{own}:clips")
    clip = np.sin(np.arange(4000) / 3) / 2
    assert dataset.decoder == AudioDecoder()
    assert np.array_equal(dataset.tensors([2])[0], AudioDecoder().decode(wav(clip, 16_000, "FLOAT")))


def test_own_pictures_are_turned_once(own: str) -> None:
    dataset = load_dataset(f"{own}:lying")
    with Image.open(io.BytesIO(dataset.encoded[0])) as image:
        assert (image.size, image.format, dict(image.getexif())) == ((4, 8), "PNG", {})


def test_a_stream_without_end_is_refused(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portend.data.own._MOST_ITEMS", 5)
    with pytest.raises(DataError, match="kept in memory, at most 5 in"):
        load_dataset(f"{own}:plain_stream")


def test_own_tensors_have_one_shape(own: str) -> None:
    with pytest.raises(DataError, match=r"sample 1 of .*is float32 of shape \(3,\)"):
        load_dataset(f"{own}:ragged").tensors([1])
