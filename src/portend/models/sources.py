"""Where labeled samples come from: the kinds of data set that ``load_dataset`` knows (docs/data.md)."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import DataError, InvalidValue, choice, nearest
from portend.models.data import Dataset, limited
from portend.models.decoding import AudioDecoder, ImageDecoder, InputDecoder, TensorDecoder
from portend.models.encodings import Encodings, Files, Joined, ParquetColumn, Pictures, Tensors, png

if TYPE_CHECKING:
    import pyarrow

__all__ = ["code_in", "load"]

_IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_SOUNDS: Final = (".wav", ".flac", ".ogg")
_SAMPLES: Final = ("limit", "own_test", "group", "classes", "label")
"""Options that change the samples, not only their decoding."""

_NORMALIZATIONS: Final = MappingProxyType(
    {
        "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
)

_TORCHVISION: Final = (
    *("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS", "CIFAR10", "CIFAR100", "SVHN", "STL10", "EuroSAT", "GTSRB"),
    *("Flowers102", "OxfordIIITPet", "Food101", "DTD", "FGVCAircraft", "StanfordCars", "PCAM", "Country211"),
    *("Caltech101", "Imagenette", "RenderedSST2"),
)
_PARTS: Final = MappingProxyType(  # values of `split`, if not train and test
    {"OxfordIIITPet": ("trainval", "test"), "FGVCAircraft": ("trainval", "test"), "Imagenette": ("train", "val")}
)


@dataclass(slots=True)
class _Options:
    """The options of a spec; each is taken once, and one that is left over is an error."""

    spec: str
    values: dict[str, str]
    known: list[str] = field(default_factory=lambda: ["limit", "own_test"])

    def text(self, name: str, default: str) -> str:
        self.known.append(name)
        return self.values.pop(name, default)

    def number(self, name: str, kind: Callable[[str], Any], default: Any) -> Any:
        value = self.text(name, str(default))
        try:
            return kind(value)
        except ValueError:
            raise DataError(f"option {name} of {self.spec!r} is a number, but got {value!r}") from None

    def done(self) -> None:
        _require(
            not self.values,
            f"{self.spec!r} has the options {', '.join(sorted(self.known))}, but got {', '.join(self.values)}"
            + _meant(next(iter(self.values), ""), self.known),
        )


def _meant(word: str, words: Iterable[str]) -> str:
    near = nearest(word, words)
    return f"; did you mean {near!r}?" if near else ""


def code_in(spec: str) -> str | None:
    """Return the ``module:object`` that loading ``spec`` would import and run; None for Portend's own kinds."""
    kind, *rest = spec.split(":")
    return None if kind in _LOADERS else ":".join([kind, *rest[:1]])


def load(spec: str) -> Dataset:
    """Load what ``data.load_dataset`` describes."""
    parts, values = spec.split(":"), {}
    while len(parts) > 1 and re.match(r"[a-z_]+=", parts[-1]):
        name, _, value = parts.pop().partition("=")
        _require(name not in values, f"each option is given once, but {spec!r} has {name} twice")
        values[name] = value
    kind, where = parts[0], ":".join(parts[1:])
    sample_options = [f"{name}={values[name]}" for name in _SAMPLES if name in values]
    limit, own_test = values.pop("limit", None), values.pop("own_test", "yes")
    options = _Options(spec, values)
    try:
        if kind in _LOADERS:
            dataset = _LOADERS[kind](where, options)
        elif re.fullmatch(r"[A-Za-z_][\w.]*", where) and re.fullmatch(r"[A-Za-z_][\w.]*", kind):
            dataset = _load_object(f"{kind}:{where}", options)
        else:
            choice("a kind of dataset (or package.module:object)", kind, _LOADERS, error=DataError)
        options.done()
        choice(f"{spec!r}: own_test", own_test, ("yes", "no"), error=DataError)
        if own_test == "no":
            dataset = replace(dataset, own_test=None)
        if limit is not None:
            _require(limit.isdecimal(), f"limit is a number of samples, but got {limit!r} in {spec!r}")
            dataset = limited(dataset, int(limit))
    except InvalidValue as error:
        raise DataError(f"{spec!r} cannot be loaded: {error}") from error
    return replace(dataset, name=":".join([*parts, *sample_options]))


# --- how samples are decoded --------------------------------------------------------------------


def _image_decoder(options: _Options, *, channels: int = 3) -> ImageDecoder:
    channels = options.number("channels", int, channels)
    name = options.text("normalize", "unit")
    choice(f"{options.spec!r}: normalize", name, _NORMALIZATIONS, error=DataError)
    mean, std = (
        values if channels == 3 else (sum(values) / len(values),) * channels for values in _NORMALIZATIONS[name]
    )
    crop = options.text("crop", "1")
    return ImageDecoder(
        channels=channels,
        size=options.number("size", int, 32),
        mean=mean,
        std=std,
        crop=None if crop == "none" else _share(crop, options.spec),
        interpolation=options.text("interpolation", "bilinear"),  # type: ignore[arg-type]  # checked by its law
    )


def _share(text: str, spec: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"crop is a number or none, but got {text!r} in {spec!r}") from None


def _audio_decoder(options: _Options) -> AudioDecoder:
    default = AudioDecoder()
    return AudioDecoder(
        rate=options.number("rate", int, default.rate),
        bands=options.number("bands", int, default.bands),
        low_hz=options.number("low", float, default.low_hz),
        high_hz=options.number("high", float, default.high_hz),
        frames=options.number("frames", int, default.frames),
        patch=options.text("patch", default.patch),  # type: ignore[arg-type]  # checked by its law
    )


# --- digits -------------------------------------------------------------------------------------


def _load_digits(where: str, options: _Options) -> Dataset:
    _require(where == "", f"the digits come with scikit-learn, but got the folder {where!r}; write just `digits`")
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    return Dataset(
        name="digits",
        encoded=tuple(png(image) for image in pixels),
        labels=scans.target,
        class_names=tuple(str(name) for name in scans.target_names),
        decoder=ImageDecoder(channels=1, size=options.number("size", int, 32), mean=(0.305,), std=(0.376,)),
    )


# --- folders ------------------------------------------------------------------------------------


def _load_image_folder(where: str, options: _Options) -> Dataset:
    return _load_folder(where, options, _IMAGES, _image_decoder(options))


def _load_sound_folder(where: str, options: _Options) -> Dataset:
    return _load_folder(where, options, _SOUNDS, _audio_decoder(options))


def _load_folder(where: str, options: _Options, suffixes: tuple[str, ...], decoder: InputDecoder) -> Dataset:
    root = Path(where)
    names = _subfolders(root)
    held_out = next((name for name in ("test", "val", "validation") if name in names), None)
    roots = [root / "train", root / held_out] if held_out and "train" in names else [root]
    class_names = _subfolders(roots[0])
    _require(
        bool(class_names), f"{roots[0]} has no subfolders; make one for each class, with its {'/'.join(suffixes)} files"
    )
    paths: list[Path] = []
    labels: list[int] = []
    for part in roots:
        _require(
            (there := _subfolders(part)) == class_names,
            f"{part} and {roots[0]} have the same classes, but only one of them has "
            f"{', '.join(sorted(set(there) ^ set(class_names)))}; add or remove those folders",
        )
        for label, name in enumerate(class_names):
            files = sorted(path for path in (part / name).rglob("*") if path.suffix.lower() in suffixes)
            _require(bool(files), f"class {name!r} has no {'/'.join(suffixes)} files in {part}; add some, or remove it")
            paths += files
            labels += [label] * len(files)
        if part is roots[0]:
            trained = len(paths)
    groups = _groups_by_name(paths, options)
    return Dataset(
        name=where,
        encoded=Files(paths),
        labels=np.array(labels),
        class_names=tuple(class_names),
        decoder=decoder,
        own_test=np.arange(trained, len(paths)) if len(roots) > 1 and groups is None else None,
        groups=groups,
    )


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"cannot read the folder {folder} ({error}); give one with a subfolder for each class"
        ) from error


def _groups_by_name(paths: Sequence[Path], options: _Options) -> NDArray[np.int64] | None:
    pattern = options.text("group", "")
    if not pattern:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"group is a regular expression for file names, but got {pattern!r} ({error})") from None
    _require(
        expression.groups == 1, f"group has one pair of parentheses around what names the group, but got {pattern!r}"
    )
    found = [expression.search(path.name) for path in paths]
    without = [path for path, match in zip(paths, found, strict=True) if match is None]
    _require(not without, f"group {pattern!r} is found in every file name, but not in {without[0] if without else ''}")
    return _numbered([match[1] for match in found if match])


def _numbered(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.asarray(np.unique(np.asarray(values), return_inverse=True)[1], dtype=np.int64)


# --- parquet ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Schema:
    """Columns of a data set in parquet files, and the names of its classes if the files say them."""

    sample: str
    label: str
    names: tuple[str, ...] | None


def _load_parquet(where: str, options: _Options) -> Dataset:
    train, test = _parquet_files(Path(where))
    schema = _schema(train[0], options.text("label", "label"))
    group = options.text("group", "")
    parts: list[Encodings] = []
    tables = []
    for path in (*train, *test):
        _require(
            _schema(path, schema.label) == schema,
            f"{path} has the columns and class names of {train[0]}, but they differ; write both alike",
        )
        tables.append(_read_columns(path, [schema.label, *([group] if group else [])]))
        parts.append(_sample_column(path, schema.sample))
    labels = np.concatenate([table.column(schema.label).to_numpy() for table in tables])
    _require(labels.dtype.kind in "iu", f"labels of {where} are integers without gaps, but got {labels.dtype}")
    sound = schema.sample == "audio"
    trained = sum(len(table) for table in tables[: len(train)])
    return Dataset(
        name=where,
        encoded=Joined(parts),
        labels=labels,
        class_names=schema.names or _numbers(labels, options),
        decoder=_audio_decoder(options) if sound else _image_decoder(options),
        own_test=np.arange(trained, len(labels)) if test and not group else None,
        groups=_numbered([v for table in tables for v in table.column(group).to_pylist()]) if group else None,
    )


def _parquet_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files for training and those of the source's own test set."""
    places = [folder, folder / "data"]
    for place in places:
        train = sorted(place.glob("train*.parquet"))
        test = sorted(place.glob("test*.parquet")) or sorted(place.glob("val*.parquet"))
        if train:
            return train, test
    whole = sorted(folder.glob("*.parquet"))
    _require(
        bool(whole), f"{folder} has no parquet files; give a folder with train.parquet and test.parquet, or one file"
    )
    return whole, []


def _schema(path: Path, label: str) -> _Schema:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} ({error}); give a folder with train.parquet and test.parquet") from error
    sample = next((name for name in ("image", "img", "audio") if name in schema.names), None)
    if sample is None or label not in schema.names:
        raise DataError(
            f"{path} needs the columns image or audio (struct of bytes, path) and {label}, but has {schema.names}"
        )
    kind = schema.field(sample).type
    fields = [item.name for item in kind] if pyarrow.types.is_struct(kind) else []
    _require("bytes" in fields, f"column {sample} of {path} is a struct with the field bytes, but it is {kind}")
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        names = None
    return _Schema(sample, label, names)


def _sample_column(path: Path, column: str) -> ParquetColumn:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    missing = 0
    for group in groups:
        leaves = [group.column(number) for number in range(group.num_columns)]
        statistics = next(leaf.statistics for leaf in leaves if leaf.path_in_schema == f"{column}.bytes")
        missing += statistics.null_count or 0 if statistics is not None and statistics.has_null_count else 0
    _require(missing == 0, f"{missing} {column}s of {path} have no bytes; store them in the file, not as paths")
    return ParquetColumn([path], [[group.num_rows for group in groups]], column)


def _read_columns(path: Path, columns: list[str]) -> pyarrow.Table:
    import pyarrow
    from pyarrow import parquet

    there = parquet.read_schema(path).names
    missing = [name for name in columns if name not in there]
    _require(not missing, f"{path} has the columns {', '.join(there)}, but not {', '.join(missing)}")
    try:
        return parquet.read_table(path, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} ({error}); copy it again") from error


def _numbers(labels: NDArray[np.int64], options: _Options) -> tuple[str, ...]:
    """Names of classes that have only numbers: as many as the option ``classes`` says, or up to the largest label."""
    count = options.number("classes", int, int(labels.max()) + 1 if labels.size else 1)
    _require(1 <= count <= 1_000_000, f"classes is a number of classes, but got {count} in {options.spec!r}")
    return tuple(str(label) for label in range(count))


# --- torchvision --------------------------------------------------------------------------------


def _load_cifar10(where: str, options: _Options) -> Dataset:
    return _load_torchvision(f"CIFAR10:{where}", options)


def _load_torchvision(where: str, options: _Options) -> Dataset:
    name, _, folder = where.partition(":")
    _require(
        name in _TORCHVISION and folder != "",
        f"write torchvision:NAME:FOLDER with NAME one of {', '.join(_TORCHVISION)}, but got {options.spec!r}",
    )
    from torchvision import datasets

    make = getattr(datasets, name)
    arguments = inspect.signature(make).parameters
    if "train" in arguments:
        variants: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in arguments:
        variants = [{"split": split} for split in _PARTS.get(name, ("train", "test"))]
    else:
        variants = [{}]
    try:
        parts = [make(folder, download=False, **variant) for variant in variants]
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise DataError(
            f"{folder!r} does not hold {name} as torchvision keeps it ({error}); "
            f"run torchvision.datasets.{name}({folder!r}, download=True) once"
        ) from error
    return _joined(parts, options)


# --- the user's own -----------------------------------------------------------------------------


def _load_object(text: str, options: _Options) -> Dataset:
    """Import ``package.module:object`` and take it, or what it returns, as a data set."""
    module, _, name = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"the dataset {text!r} cannot be imported: {error}; write package.module:object, "
            f"or one of the kinds {', '.join(_LOADERS)}{_meant(module, _LOADERS)}"
        ) from error
    for part in name.split("."):
        _require(hasattr(found, part), f"the dataset {text!r} does not exist: {module} has no {name!r}")
        found = getattr(found, part)
    made = found() if callable(found) and not isinstance(found, Dataset) else found
    if isinstance(made, Dataset):
        return made
    parts = list(made) if isinstance(made, tuple) and 1 <= len(made) <= 2 else [made]
    wrong = [part for part in parts if not (hasattr(part, "__getitem__") and hasattr(part, "__len__"))]
    _require(
        not wrong and all(len(part) for part in parts),
        f"{text} is a portend Dataset, a map-style data set of (input, label), or a pair of them (train, test), or "
        f"returns one, but got {type(wrong[0]).__name__ if wrong else 'an empty one'}",
    )
    return _joined(parts, options)


class _Inputs:
    """The first items of the pairs (input, label) of a map-style data set."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Any:
        return self._part[index][0]


def _joined(parts: Sequence[Any], options: _Options) -> Dataset:
    """Map-style data sets of (picture or tensor, label), the second of them being the test set."""
    first = parts[0][0][0]
    encodings: list[Encodings]
    if _is_float(first):
        shape = tuple(int(side) for side in first.shape)
        encodings = [Tensors(_Inputs(part), shape) for part in parts]
        decoder: InputDecoder = TensorDecoder(shape=shape)
    else:
        encodings = [_files(part) or Pictures(_Inputs(part)) for part in parts]
        gray = getattr(first, "mode", None) in ("1", "L") or (_axes(first) == 2) or 1 in _ends(first)
        decoder = _image_decoder(options, channels=1 if gray else 3)
    labels = [_labels(part) for part in parts]
    everything = np.concatenate(labels)
    names = getattr(parts[0], "classes", None) or getattr(parts[0], "categories", None)
    return Dataset(
        name="",
        encoded=Joined(encodings),
        labels=everything,
        class_names=tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)
        if names
        else _numbers(everything, options),
        decoder=decoder,
        own_test=np.arange(len(labels[0]), everything.size) if len(parts) > 1 else None,
    )


def _is_float(sample: Any) -> bool:
    return hasattr(sample, "dtype") and hasattr(sample, "shape") and "float" in str(sample.dtype)


def _axes(sample: Any) -> int | None:
    return len(sample.shape) if hasattr(sample, "shape") else None


def _ends(sample: Any) -> tuple[int, ...]:
    return (sample.shape[0], sample.shape[-1]) if _axes(sample) == 3 else ()


def _files(part: Any) -> Files | None:
    """The image files that a data set of torchvision's hands out unchanged; None if it is no such data set."""
    if not _is_torchvisions(part) or any(getattr(part, name, None) for name in ("transform", "transforms")):
        return None
    for name in ("_image_files", "_images", "_samples", "samples"):
        items = getattr(part, name, None)
        if isinstance(items, list) and len(items) == len(part):
            paths = [item[0] if isinstance(item, tuple) else item for item in items]
            if all(isinstance(path, str | Path) and Path(path).suffix.lower() in _IMAGES for path in paths):
                return Files([Path(path) for path in paths])
    return None


def _is_torchvisions(part: Any) -> bool:
    return type(part).__module__.startswith("torchvision.datasets.")


def _labels(part: Any) -> NDArray[np.int64]:
    """All labels; a data set that keeps them in a list of its own is not read for them."""
    values = None
    if getattr(part, "target_transform", None) is None:
        lists = ("targets", "_labels", "labels", "y") if _is_torchvisions(part) else ("targets",)
        values = next((found for name in lists if (found := getattr(part, name, None)) is not None), None)
        if values is None and _is_torchvisions(part) and hasattr(part, "_samples"):
            values = [item[1] for item in part._samples]
    if values is None or len(values) != len(part):
        values = [part[index][1] for index in range(len(part))]
    try:
        return np.asarray([int(value) for value in values], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the label of a sample is an integer, but got others ({error}); number the classes") from error


_Loader = Callable[[str, _Options], Dataset]
_LOADERS: Final[dict[str, _Loader]] = {
    "digits": _load_digits,
    "torchvision": _load_torchvision,
    "cifar10": _load_cifar10,
    "folder": _load_image_folder,
    "parquet": _load_parquet,
    "wav": _load_sound_folder,
}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise DataError(message)
