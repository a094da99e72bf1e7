"""Image folders, torchvision's data sets, sounds, and the user's own data sets."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from portend.errors import DataError
from portend.models.data import load_dataset, make_splits
from portend.models.encodings import ParquetColumn
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
    monkeypatch.setattr("portend.models.encodings._CACHE", 4_000)
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
import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset
from torchvision.transforms.functional import to_pil_image

from portend.models.data import load_dataset

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
    return [(torch.zeros(2), "cat")]

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
        ("number", "map-style data set"),
        ("nothing", "empty"),
        ("names", "label of a sample is an integer"),
        ("ours:size=8", "options"),
    ],
)
def test_an_unusable_own_data_set_is_refused(own: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(f"{own}:{name}")


def test_own_tensors_have_one_shape(own: str) -> None:
    with pytest.raises(DataError, match=r"sample 1 is float32 of \(3,\)"):
        load_dataset(f"{own}:ragged").tensors([1])
