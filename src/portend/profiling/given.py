"""A profile of times, sizes and exits that were measured elsewhere, from tables (docs/profiling.md). Imports no torch.

Axes: N blocks (N+1 cuts), S samples, T thresholds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.errors import ConfigError, InvalidValue
from portend.io.csv_tables import TIMES, Row, Table, table_of, text_lines, time_unit
from portend.values.backbone import BackboneSpec
from portend.values.codecs import CodecProfile, ResultProfile
from portend.values.device_profile import DeviceProfile
from portend.values.exits import SampleExits, TabulatedExits
from portend.values.plan import CRITERIA
from portend.values.profile import Profile

__all__ = ["FRAMING_BYTES", "RESULT_BYTES", "device_from_csv", "profile_from_csv"]

FRAMING_BYTES: Final = 38
"""What a message has beside the numbers of its tensor; the runtime's, as in recorded profiles."""
RESULT_BYTES: Final = 29
"""The message that returns a label."""

_INPUT: Final = "input"
_COLUMNS: Final = {
    "block": "block (the name)",
    "compute": "a time such as compute_ms",
    "bytes": "bytes (of the block's output)",
}
_SCORES: Final[Mapping[str, tuple[str, Callable[[float], float]]]] = {
    "entropy": ("entropy", lambda value: value),
    "confidence": ("max_probability", lambda value: 1 - value),
    "margin": ("margin", lambda value: 1 - value),
}
"""By the name of a column: the criterion, and the score of a value."""
_RIGHT: Final = {"1": True, "true": True, "0": False, "false": False}

Floats = NDArray[np.float64]


def profile_from_csv(
    blocks: str | Path, exits: str | Path | None = None, *, name: str = "", device: str = "local"
) -> Profile:
    """Return the profile that tables describe: of blocks, and of what samples do at the exits.

    Args:
        blocks: see ``device_from_csv``; without ``exits`` its last row has the accuracy, and no sample leaves before.
        exits: ``block,threshold,exit_rate``, or per sample ``entropy_3,correct_3,...`` (3 is the number of a block).

    Raises:
        ConfigError: file, line, and what is wrong there.
    """
    table = table_of(_lines(blocks))
    measured = device_from_csv(blocks, name=name, device=device)
    spec = measured.network
    assert spec is not None
    accuracy = _accuracies(table, spec)
    if exits is None:
        found: SampleExits | TabulatedExits = _table_of_exits(spec, accuracy, {}, (1.0,), _samples(table))
        cuts = {spec.num_blocks}
    else:
        rates = table_of(_lines(exits))
        if "threshold" in rates.columns:
            thresholds, leaving = _rates(rates, spec)
            cuts = {*leaving, spec.num_blocks}
            found = _table_of_exits(spec, accuracy, leaving, thresholds, _samples(table))
        else:
            found, cuts = _sample_exits(rates, spec, accuracy)
    early = sorted(set(spec.exit_cuts) - cuts)
    if early:
        raise ConfigError(
            f"{blocks} has an exit after {spec.block_names[early[0] - 1]}, but {exits or 'no other file'} says what "
            "leaves there; give it with --exits, or leave branch and accuracy of the block empty"
        )
    spec = replace(spec, exits=tuple(sorted(cuts)))
    told = {"data": f"given in {Path(exits or blocks).name}", "split": f"{found.samples} samples"}
    return Profile(backbone=spec, exits=found, devices={device: replace(measured, network=spec)}, provenance=told)


def device_from_csv(blocks: str | Path, *, name: str = "", device: str = "local") -> DeviceProfile:
    """Return what a table of blocks says of one device.

    Its columns: ``block``, a time with unit (``compute_ms``) and ``bytes`` of the block's output; optional are times
    of the exit branch (``branch_ms``), of encoding and decoding the output (``encode_ms``, ``decode_ms``), and for
    exits ``accuracy`` and ``samples``. The first row is ``input`` and has the bytes of a sample alone.

    The network is called ``name``, or as the file is. A partition is taken to need the sum of its blocks and of the
    branch at its end.

    Raises:
        ConfigError: file, line, and what is wrong there.
    """
    table = table_of(_lines(blocks))
    columns = _columns(table)
    first, *rows = table.rows if table.rows else (None,)
    if first is None or first.cells[columns["block"]] != _INPUT or not rows:
        raise ConfigError(
            f"{(table.rows[0].place if table.rows else table.place)}: the first row is called {_INPUT} and has the "
            "bytes of a sample; a row for each block follows"
        )
    compute = [_positive(row, columns["compute"]) for row in rows]
    if first.cells[columns["compute"]]:
        raise ConfigError(f"{first.place}: the input takes no time; leave {columns['compute']} empty there")
    sizes = [_positive(row, columns["bytes"]) for row in (first, *rows[:-1])]
    names = [row.cells[columns["block"]] for row in rows]
    for place, block in enumerate(names):
        if not block or block in names[:place]:
            raise ConfigError(f"{rows[place].place}: each block has a name of its own, but got {block!r}")
    branch, encode, decode = (_times(columns, kind, (first, *rows)) for kind in ("branch", "encode", "decode"))
    count = len(rows)
    cumulative = np.concatenate([[0.0], np.cumsum(compute)])
    table_s = np.where(
        np.triu(np.ones((count + 1, count + 1), dtype=bool), k=1), cumulative - cumulative[:, None] + branch, np.nan
    )
    spec = BackboneSpec(
        name=name or Path(blocks).stem,
        block_names=tuple(names),
        num_classes=2,  # the tables do not say
        cut_shapes=(*((math.ceil(size / 4),) for size in sizes), (2,)),
        exits=(*(cut for cut in range(1, count) if _has_exit(columns, rows[cut - 1])), count),
    )
    zeros = np.zeros((1, count + 1))
    unknown = [name for name, kind in (("encoding", "encode"), ("decoding", "decode")) if kind not in columns]
    assumed = (
        f"times of {device} were given, not measured by Portend: a partition takes the sum of its blocks, nothing for "
        f"starting or waking up; {', '.join([*unknown, 'dispatch'])} of messages cost no time; how sure the times are "
        "is not known"
    )
    return DeviceProfile(
        device=device,
        compute_repeats_s=table_s[None],
        idle_repeats_s=np.zeros((0, 1, count + 1, count + 1)),
        branch_repeats_s=branch[None],
        codecs={
            "float32": CodecProfile(
                message_bytes=np.array([*(size + FRAMING_BYTES for size in sizes), np.nan]),
                encode_repeats_s=encode[None],
                encode_busy_repeats_s=encode[None],
                decode_repeats_s=decode[None],
                decode_busy_repeats_s=decode[None],
                dispatch_repeats_s=zeros,
            )
        },
        result=ResultProfile(
            message_bytes=RESULT_BYTES,
            encode_repeats_s=np.zeros(1),
            decode_repeats_s=np.zeros(1),
            decode_busy_repeats_s=np.zeros(1),
            dispatch_repeats_s=np.zeros(1),
        ),
        environment={"source": Path(blocks).name, "assumed": assumed},
        network=spec,
    )


def _lines(path: str | Path) -> list[tuple[str, str]]:
    lines = text_lines(path)
    if len(lines) < 2:
        raise ConfigError(f"{path}: a table has a header and rows, but got {len(lines)} lines")
    return lines


# --- blocks -------------------------------------------------------------------------------------


def _columns(table: Table) -> dict[str, str]:
    """The names of the columns by what they are."""
    found: dict[str, str] = {}
    for name in table.columns:
        kind = _kind(name)
        if not kind:
            raise ConfigError(
                f"{table.place}: the columns are {', '.join(_COLUMNS.values())}, branch_ms, encode_ms, decode_ms, "
                f"accuracy and samples, but got {name!r}"
            )
        if kind in found:
            raise ConfigError(f"{table.place}: there is one column of {kind}, but got {found[kind]!r} and {name!r}")
        found[kind] = name
    for kind, text in _COLUMNS.items():
        if kind not in found:
            raise ConfigError(f"{table.place}: a column with {text} is missing; got {', '.join(table.columns)}")
    return found


def _kind(name: str) -> str:
    lower = name.lower()
    if lower in ("block", "accuracy", "samples"):
        return lower
    if re.search(r"(^|[_ (\[])bytes\b", lower):
        return "bytes"
    if not time_unit(name):
        return ""
    other = next((kind for kind in ("branch", "encode", "decode") if kind in lower), None)
    return other or ("compute" if re.search(r"compute|time|^[^_ ]+$|block|latency", lower) else "")


def _positive(row: Row, column: str) -> float:
    """A number of at least 0, in seconds where the column is one of times."""
    value = row.number(column)
    if not 0 <= value < math.inf:
        raise ConfigError(f"{row.place}: {column} is at least 0 and finite, but got {value:g}")
    return value * TIMES.get(time_unit(column), 1.0)


def _times(columns: Mapping[str, str], kind: str, rows: Iterable[Row]) -> Floats:
    """Seconds at each cut, [N+1]; 0 where nothing is said."""
    column = columns.get(kind)
    return np.array([_positive(row, column) if column and row.cells[column] else 0.0 for row in rows])


def _has_exit(columns: Mapping[str, str], row: Row) -> bool:
    return any(row.cells[columns[kind]] for kind in ("branch", "accuracy") if kind in columns)


def _accuracies(table: Table, spec: BackboneSpec) -> dict[int, float]:
    """Accuracy by cut, where it is said."""
    column = _columns(table).get("accuracy")
    if column is None:
        return {}
    rows = {cut: row for cut, row in enumerate(table.rows) if row.cells[column]}
    if 0 in rows:
        raise ConfigError(f"{rows[0].place}: the input has no exit; leave {column} empty there")
    return {cut: _share(row, column) for cut, row in rows.items()}


def _share(row: Row, column: str) -> float:
    value = row.number(column)
    if not 0 <= value <= 1:
        raise ConfigError(f"{row.place}: {column} is a share of samples, 0–1, but got {value:g}")
    return value


def _samples(table: Table) -> int:
    column = _columns(table).get("samples")
    counts = {row.number(column): row.place for row in table.rows if row.cells[column]} if column else {}
    if len(counts) != 1 or not (number := next(iter(counts))).is_integer() or number < 1:
        got = ", ".join(f"{count:g} ({place})" for count, place in counts.items()) or "none"
        raise ConfigError(
            f"{table.place}: the column samples says on how many samples accuracy and exit rates were counted, one "
            f"whole number, but got {got}"
        )
    return int(number)


# --- exits --------------------------------------------------------------------------------------


def _cut(row: Row, name: str, spec: BackboneSpec) -> int:
    """The cut after a block, by its name or its number from 1."""
    if name in spec.block_names:
        return spec.block_names.index(name) + 1
    if name.isdecimal() and 1 <= int(name) <= spec.num_blocks:
        return int(name)
    raise ConfigError(f"{row.place}: no block is called {name!r}; the blocks are {', '.join(spec.block_names)}")


def _rates(table: Table, spec: BackboneSpec) -> tuple[tuple[float, ...], dict[int, dict[float, float]]]:
    """The thresholds, and by cut and threshold the share of samples that leave."""
    if set(table.columns) != {"block", "threshold", "exit_rate"}:
        raise ConfigError(
            f"{table.place}: the columns are block, threshold and exit_rate, but got {', '.join(table.columns)}"
        )
    leaving: dict[int, dict[float, float]] = {}
    for row in table.rows:
        of_cut = leaving.setdefault(_cut(row, row.cells["block"], spec), {})
        threshold = row.number("threshold")
        if not math.isfinite(threshold) or threshold in of_cut:
            raise ConfigError(f"{row.place}: an exit has each threshold once, and it is finite, but got {threshold:g}")
        of_cut[threshold] = _share(row, "exit_rate")
    thresholds = tuple(sorted({threshold for of_cut in leaving.values() for threshold in of_cut}))
    for cut, of_cut in leaving.items():
        missing = [threshold for threshold in thresholds if threshold not in of_cut]
        if missing and cut < spec.num_blocks:
            raise ConfigError(
                f"{table.place}: every exit has a rate at every threshold, but {spec.block_names[cut - 1]} has none at "
                f"{missing[0]:g}"
            )
        rates = [of_cut[threshold] for threshold in sorted(of_cut)]
        if any(later < before for before, later in pairwise(rates)):
            raise ConfigError(
                f"{table.place}: more samples leave at a higher threshold, but after {spec.block_names[cut - 1]} the "
                f"rates are {', '.join(f'{rate:g}' for rate in rates)}"
            )
    return thresholds, leaving


def _table_of_exits(
    spec: BackboneSpec,
    accuracy: Mapping[int, float],
    leaving: Mapping[int, Mapping[float, float]],
    thresholds: Sequence[float],
    samples: int,
) -> TabulatedExits:
    exits = {cut for cut in leaving if cut < spec.num_blocks} | {spec.num_blocks}
    lacking = sorted(exits - set(accuracy))
    if lacking:
        raise ConfigError(
            f"the accuracy of the exit after {spec.block_names[lacking[0] - 1]}, on all samples, is missing in the "
            "column accuracy of the blocks"
        )
    exited = np.zeros((len(thresholds), spec.num_blocks), dtype=np.int64)
    correct = np.zeros(spec.num_blocks, dtype=np.int64)
    for cut in exits:
        correct[cut - 1] = round(samples * accuracy[cut])
        rates = leaving.get(cut, {}) if cut < spec.num_blocks else {}
        exited[:, cut - 1] = [round(samples * rates.get(threshold, 1.0)) for threshold in thresholds]
    return TabulatedExits(thresholds=np.array(thresholds), exited=exited, correct=correct, samples=samples)


def _sample_exits(table: Table, spec: BackboneSpec, accuracy: Mapping[int, float]) -> tuple[SampleExits, set[int]]:
    """The exits and their cuts, from one row a sample: ``entropy_3``, ``correct_3``, ... of the exit of block 3."""
    tables: dict[str, NDArray[np.float64]] = {}
    correct = np.zeros((len(table.rows), spec.num_blocks), dtype=np.bool_)
    counted: set[int] = set()
    for name in table.columns:
        kind, _, block = name.rpartition("_")
        if name in ("label", "sample"):
            continue
        if kind not in (*_SCORES, "correct"):
            raise ConfigError(
                f"{table.place}: the columns are label, sample, and for each exit correct_BLOCK and one of "
                f"{', '.join(f'{each}_BLOCK' for each in _SCORES)}, or block, threshold and exit_rate; got {name!r}"
            )
        cut = _cut(Row(table.place, {}), block, spec)
        if kind == "correct":
            counted.add(cut)
            correct[:, cut - 1] = [_right(row, name) for row in table.rows]
        else:
            criterion, score = _SCORES[kind]
            scores = tables.setdefault(criterion, np.full(correct.shape, np.nan))
            scores[:, cut - 1] = [score(_share(row, name)) for row in table.rows]
    scored = {int(at) + 1 for scores in tables.values() for at in np.flatnonzero(~np.isnan(scores[0, :-1]))}
    lacking = sorted((scored | {spec.num_blocks}) - counted) or sorted(counted - scored - {spec.num_blocks})
    if lacking or not tables:
        at = lacking[0] if lacking else 1
        raise ConfigError(
            f"{table.place}: every exit has a column correct and a score, such as correct_{at} and entropy_{at}; the "
            f"last block needs correct_{spec.num_blocks} alone"
        )
    for scores in tables.values():
        scores[:, -1] = np.where(np.isnan(scores[:, -1]), 0.0, scores[:, -1])  # nobody asks the last
    labels = None
    if "label" in table.columns:
        labels = np.array([row.number("label") for row in table.rows])
        fractional = np.flatnonzero(labels != np.rint(labels))
        if fractional.size:
            raise ConfigError(f"{table.rows[fractional[0]].place}: a label is a whole number")
    for cut, said in accuracy.items():
        if cut in counted and abs(said - float(correct[:, cut - 1].mean())) > 1e-3:
            raise ConfigError(
                f"the accuracy after {spec.block_names[cut - 1]} is {said:g} in the blocks, but "
                f"{correct[:, cut - 1].mean():.4f} over the samples of {table.place.rpartition(':')[0]}; correct one"
            )
    criterion = next(name for name in CRITERIA if name in tables)
    try:
        exits = SampleExits(scores=tables, correct=correct, labels=labels, criterion=criterion)
    except InvalidValue as error:
        raise ConfigError(f"{table.place}: {error}") from None
    return exits, counted


def _right(row: Row, column: str) -> bool:
    text = row.cells[column].lower()
    if text not in _RIGHT:
        raise ConfigError(f"{row.place}: {column} is 0 or 1 (false or true), but got {text[:40]!r}")
    return _RIGHT[text]
