"""Where labeled samples come from: the kinds of data set that ``load_dataset`` knows (docs/data.md)."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from portend.data.dataset import Dataset, limited
from portend.data.decoding import AudioDecoder, ImageDecoder, InputDecoder, is_gray, is_sound
from portend.data.encodings import Encodings, Files, Joined, ParquetColumn, png
from portend.data.own import (
    LABELS,
    SAMPLES,
    FileForm,
    Form,
    Items,
    Objects,
    TensorForm,
    form_of,
    named,
    numbered,
    read_through,
    shown,
)
from portend.errors import DataError, InvalidValue, PortendError, choice, nearest
from portend.importing import import_object, raised

if TYPE_CHECKING:
    import pyarrow

__all__ = ["code_in", "load_dataset"]

_IMAGES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_SOUNDS: Final = (".wav", ".flac", ".ogg")
_SAMPLES: Final = ("limit", "own_test", "group", "classes", "input", "label", "samples")
"""Options that change the samples, not only their decoding."""
_LOOKED_AT: Final = 8  # samples of an object, spread over all, by which colors are known and labels are checked

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


def load_dataset(spec: str) -> Dataset:
    """Load the dataset named by ``KIND[:WHERE][:option=value...]``; kinds and options are those of docs/data.md.

    * ``digits``: 1,797 scans of handwritten digits (scikit-learn's own, 8x8, gray), resized to 32x32.
    * ``torchvision:NAME:FOLDER``: one of torchvision's classification data sets as it keeps them in a folder.
    * ``cifar10:FOLDER``: the same as ``torchvision:CIFAR10:FOLDER``.
    * ``folder:FOLDER``, ``wav:FOLDER``: one subfolder of images, or sounds, for each class.
    * ``parquet:FOLDER``: images or sounds in the Hugging Face schema.
    * ``MODULE:OBJECT``: the user's own data set; importing it runs its code.

    Raises:
        DataError: an unknown kind or option, missing files or columns, or labels that do not fit the classes.
    """
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
    without = next((index for index, value in enumerate(values) if value is None), None)
    _require(without is None, f"every sample is of a group, but sample {without} has none")
    return np.asarray(np.unique(np.asarray(values), return_inverse=True)[1], dtype=np.int64)


# --- parquet ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Schema:
    """Columns of a data set in parquet files, and the names of its classes if the files say them."""

    sample: str
    """With the field, such as ``image.bytes``, where it is a struct."""
    label: str
    names: tuple[str, ...]
    is_file: bool
    """Whether a sample is the bytes of a file, or else a list of numbers."""


def _load_parquet(where: str, options: _Options) -> Dataset:
    train, test = _parquet_files(Path(where))
    asked = options.text("input", ""), options.text("label", "")
    schema = _schema(train[0], *asked)
    group = options.text("group", "")
    encode = bytes if schema.is_file else _list_form(train[0], schema.sample).encode
    parts: list[Encodings] = []
    tables = []
    for path in (*train, *test):
        _require(
            _schema(path, *asked) == schema,
            f"{path} has the columns and class names of {train[0]}, but they differ; write both alike",
        )
        tables.append(_read_columns(path, [schema.label, *([group] if group else [])]))
        parts.append(_sample_column(path, schema.sample, encode))
    encoded = Joined(parts)
    labels, names = numbered(itertools.chain(*(_values(table.column(schema.label)) for table in tables)), schema.names)
    trained = sum(len(table) for table in tables[: len(train)])
    _require(len(encoded) > 0, f"{where} has no samples")
    decoder: InputDecoder
    if not schema.is_file:
        decoder = _list_form(train[0], schema.sample).decoder
    else:
        decoder = _audio_decoder(options) if is_sound(encoded[0]) else _image_decoder(options)
    return Dataset(
        name=where,
        encoded=encoded,
        labels=labels,
        class_names=names or _numbers(labels, options),
        decoder=decoder,
        own_test=np.arange(trained, len(labels)) if test and not group else None,
        groups=_numbered([v for table in tables for v in table.column(group).to_pylist()]) if group else None,
    )


def _parquet_files(place: Path) -> tuple[list[Path], list[Path]]:
    """The files for training and those of the source's own test set."""
    if place.is_file():
        return [place], []
    folders = [place, place / "data"]
    if place.is_dir():  # one configuration of a data set of Hugging Face's has a folder of its own
        inner = sorted(folder for folder in place.iterdir() if folder.is_dir() and any(folder.glob("*.parquet")))
        folders += inner if len(inner) == 1 else []
    for folder in folders:
        train = sorted(folder.glob("train*.parquet"))
        test = sorted(folder.glob("test*.parquet")) or sorted(folder.glob("val*.parquet"))
        if train:
            return train, test
    whole = next((found for folder in folders if (found := sorted(folder.glob("*.parquet")))), [])
    _require(
        bool(whole), f"{place} has no parquet files; give a folder with train.parquet and test.parquet, or one file"
    )
    return whole, []


def _schema(path: Path, sample: str, label: str) -> _Schema:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} ({error}); give a folder with train.parquet and test.parquet") from error
    columns = []
    for what, usual, option, asked in (("sample", SAMPLES, "input", sample), ("label", LABELS, "label", label)):
        found = named(schema.names, usual, asked)
        if found is None:
            raise DataError(
                f"{path} needs a column with the {what} ({asked or ', '.join(usual)}), but has "
                f"{', '.join(schema.names)}; name it by {option}=COLUMN"
            )
        columns.append(found)
    sample, label = columns
    kind, types = schema.field(sample).type, pyarrow.types
    in_struct = types.is_struct(kind) and "bytes" in [item.name for item in kind]
    is_file = in_struct or types.is_binary(kind) or types.is_large_binary(kind)
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    hint = "; give the numbers of the text's tokens" if types.is_string(kind) or types.is_large_string(kind) else ""
    _require(
        is_file or listed,
        f"column {sample} of {path} is a struct with the field bytes, bytes, or lists of numbers, but is {kind}{hint}",
    )
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        names = ()
    return _Schema(f"{sample}.bytes" if in_struct else sample, label, names, is_file)


def _list_form(path: Path, column: str) -> TensorForm:
    """The form of lists of numbers, by the first one; all are of one length."""
    first = _sample_column(path, column, bytes)
    _require(len(first) > 0, f"{path} has no samples")
    form = form_of(first.value(0), "tensor")
    _require(isinstance(form, TensorForm), f"column {column} of {path} has no numbers in its first row")
    return cast(TensorForm, form)


def _sample_column(path: Path, column: str, encode: Callable[[Any], bytes]) -> ParquetColumn:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    missing = 0
    for group in groups:
        leaves = [group.column(number) for number in range(group.num_columns)]
        statistics = next((leaf.statistics for leaf in leaves if leaf.path_in_schema == column), None)
        missing += statistics.null_count or 0 if statistics is not None and statistics.has_null_count else 0
    _require(
        missing == 0, f"{missing} rows of {path} have nothing in {column}; store the samples in the file, not as paths"
    )
    return ParquetColumn([path], [[group.num_rows for group in groups]], column, encode)


def _values(column: pyarrow.ChunkedArray) -> Iterable[Any]:
    """What stands in a column, quickly where it is whole numbers."""
    import pyarrow

    whole = pyarrow.types.is_integer(column.type) and not column.null_count
    values: list[Any] = column.to_numpy().tolist() if whole else column.to_pylist()
    return values


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
    module = text.partition(":")[0]
    kinds = f"; or write one of the kinds {', '.join(_LOADERS)}{_meant(module, _LOADERS)}"
    found = import_object(text, "the dataset", error=DataError, hint=kinds)
    try:
        made = found() if callable(found) and not isinstance(found, Dataset) else found
    except PortendError:
        raise
    except Exception as error:
        raise DataError(f"{text}() failed: {raised(error)}") from error
    return made if isinstance(made, Dataset) else _joined(_parts(made, text), options)


def _parts(made: Any, text: str) -> list[Any]:
    """The training set, and the test set if there is one."""
    parts = [made]
    if isinstance(made, tuple) and 1 <= len(made) <= 2:
        parts = list(made)
    elif isinstance(made, Mapping) and "train" in made:
        held_out = next((name for name in ("test", "validation", "val") if name in made), None)
        parts = [made["train"]] + ([made[held_out]] if held_out else [])
    wrong = [part for part in parts if isinstance(part, str | bytes | Mapping) or not hasattr(part, "__iter__")]
    wrong = [part for part in wrong if not _at_random(part)]
    _require(
        not wrong,
        f"{text} is a portend Dataset, a data set of (sample, label), a pair or a mapping (train, test) of them, "
        f"or returns one, but got {shown(wrong[0]) if wrong else ''}",
    )
    return parts


def _at_random(part: Any) -> bool:
    """Whether its samples can be read in any order."""
    only_iterates = any(kind.__name__ == "IterableDataset" for kind in type(part).__mro__)
    return hasattr(part, "__getitem__") and hasattr(part, "__len__") and not only_iterates


def _joined(parts: Sequence[Any], options: _Options) -> Dataset:
    """Data sets of (sample, label), the second of them being the test set."""
    asked = options.text("samples", "")
    if asked:
        choice(f"{options.spec!r}: samples", asked, ("tensor", "picture"), error=DataError)
    names = options.text("input", ""), options.text("label", "")
    form: Form | None = None

    def make_form(sample: Any) -> Form:
        nonlocal form
        form = form or form_of(sample, asked)
        return form

    items: list[Sequence[tuple[Any, Any]]] = []
    encodings: list[Encodings] = []
    for part in parts:
        at_random = _at_random(part)
        items.append(Items(part, *names) if at_random else read_through(part, *names, make_form))
        _require(len(items[-1]) > 0, f"a data set has at least one sample, but {options.spec} has an empty one")
        made = make_form(items[-1][0][0]) if at_random else FileForm()
        encodings.append(_files(part) or Objects(items[-1], made))
    encoded = Joined(encodings)
    labels = [_labels(part, there) for part, there in zip(parts, items, strict=True)]
    class_names = _class_names(parts[0], names[1])
    everything, class_names = numbered([value for values in labels for value in values], class_names)
    return Dataset(
        name="",
        encoded=encoded,
        labels=everything,
        class_names=class_names or _numbers(everything, options),
        decoder=form.decoder if isinstance(form, TensorForm) else _file_decoder(encoded, options),
        own_test=np.arange(len(labels[0]), everything.size) if len(parts) > 1 else None,
    )


def _file_decoder(encoded: Encodings, options: _Options) -> InputDecoder:
    """The decoder of files whose kind is not known before; gray where some of them, spread over all, are all gray."""
    some = [encoded[index] for index in _spread(len(encoded))]
    if is_sound(some[0]):
        return _audio_decoder(options)
    return _image_decoder(options, channels=1 if all(map(is_gray, some)) else 3)


def _spread(count: int) -> list[int]:
    return [count * place // _LOOKED_AT for place in range(_LOOKED_AT)] if count > _LOOKED_AT else list(range(count))


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


def _labels(part: Any, items: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
    """All labels; a data set that keeps them in a list of its own is not read for them, if the list is right."""
    values = None
    if getattr(part, "target_transform", None) is None:
        lists = ("targets", "_labels", "labels", "y") if _is_torchvisions(part) else ("targets",)
        values = next((found for name in lists if (found := getattr(part, name, None)) is not None), None)
        if values is None and _is_torchvisions(part) and hasattr(part, "_samples"):
            values = [item[1] for item in part._samples]
    known = isinstance(values, Iterable) and isinstance(values, Sized) and len(values) == len(items)
    kept: list[Any] = list(values) if known else []  # type: ignore[arg-type]  # then it is one
    if kept and all(_same(kept[index], items[index][1]) for index in _spread(len(items))):
        return kept
    return [items[index][1] for index in range(len(items))]


def _same(one: Any, other: Any) -> bool:
    try:
        first, second = numbered([one, other])[0]
    except DataError:
        return False
    return bool(first == second)


def _class_names(part: Any, label: str) -> tuple[str, ...]:
    """The names of classes, as torchvision's and Hugging Face's data sets have them; empty if there are none."""
    names = getattr(part, "classes", None) or getattr(part, "categories", None)
    features = getattr(part, "features", None)
    if names is None and isinstance(features, Mapping):
        names = getattr(features.get(named(features, LABELS, label) or ""), "names", None)
    if not isinstance(names, Sequence) or isinstance(names, str):
        return ()
    return tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)


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
