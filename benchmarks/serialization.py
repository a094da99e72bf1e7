"""What it takes to make bytes of a tensor and a tensor of bytes: Portend's codecs and the usual ways, in one run.

The tensors are activations in their statistics: half of the values are 0, the others positive. All ways take turns,
so that a disturbance hits all alike; medians are compared. Each way gives back a tensor that may be written to, in
memory of its own, as the codecs do.

    python benchmarks/serialization.py --json serialization.json
"""

# ruff: noqa: E402 (threads are pinned before NumPy is imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import io
import pickle
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow
import safetensors.numpy
import torch
from numpy.typing import NDArray

from portend.data.decoding import TensorDecoder
from portend.io.storage import write_json
from portend.runtime.codecs import Codec, make_codec
from portend.values.codecs import ValueRange
from portend.values.plan import CODECS

Tensor = NDArray[np.float32]

SHAPES = ((64, 4, 4), (16, 16, 16), (16, 32, 32), (64, 32, 32), (64, 64, 64), (64, 128, 128))
"""4, 16, 64, 256 kB, 1 and 4 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a tensor becomes bytes and comes back."""

    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    of_torch: bool = False


def activations(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """As after a ReLU: half of the values 0, the others the positive half of a normal distribution."""
    return np.maximum(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32), 0.0)


def _codec(name: str, shape: tuple[int, ...], tensor: Tensor) -> Way:
    channels = tensor.reshape(shape[0], -1)
    limits = ValueRange(
        tensor=np.array([tensor.min(), tensor.max()]), channels=np.array([channels.min(axis=1), channels.max(axis=1)])
    )
    codec: Codec = make_codec(name, TensorDecoder(shape=shape), shape, limits)
    return Way(name=name, encode=codec.encode, decode=lambda payload: codec.decode(payload, shape))


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=5)


def _out_of_band(value: Tensor) -> list[Any]:
    """Protocol 5 with the numbers in a buffer of their own, as a multipart message would take it: no copy."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [head, *(buffer.raw() for buffer in buffers)]


def _torch_save(value: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _arrow(value: Tensor) -> Any:
    sink = pyarrow.BufferOutputStream()
    pyarrow.ipc.write_tensor(pyarrow.Tensor.from_numpy(value), sink)
    return sink.getvalue()


def _from_arrow(payload: Any) -> Tensor:
    tensor: Tensor = pyarrow.ipc.read_tensor(pyarrow.BufferReader(payload)).to_numpy()
    return tensor.copy()


def ways(shape: tuple[int, ...], tensor: Tensor) -> list[Way]:
    """Every codec, and what else is used to send tensors."""
    return [
        *(_codec(name, shape, tensor) for name in CODECS if name != "encoded"),
        Way(name="pickle (torch tensor)", encode=_pickled, decode=pickle.loads, of_torch=True),
        Way(name="pickle 5 (NumPy)", encode=_pickled, decode=pickle.loads),
        Way(
            name="pickle 5 (NumPy, out of band)",
            encode=_out_of_band,
            decode=lambda parts: np.array(pickle.loads(parts[0], buffers=parts[1:])),
        ),
        Way(
            name="torch.save",
            encode=_torch_save,
            decode=lambda payload: torch.load(io.BytesIO(payload), weights_only=True),
            of_torch=True,
        ),
        Way(
            name="safetensors",
            encode=lambda value: safetensors.numpy.save({"x": value}),
            decode=lambda payload: safetensors.numpy.load(payload)["x"],
        ),
        Way(name="Arrow", encode=_arrow, decode=_from_arrow),
    ]


def _size(payload: Any) -> int:
    parts = payload if isinstance(payload, list) else [payload]
    return sum(memoryview(part).nbytes for part in parts)


def measure(shape: tuple[int, ...], repeats: int, seed: int = 0) -> list[dict[str, Any]]:
    """Median seconds of each way for tensors of a shape; ``repeats`` rounds, in each of which all take turns."""
    tensor = activations(shape)
    found = ways(shape, tensor)
    values = [torch.from_numpy(tensor) if way.of_torch else tensor for way in found]
    seconds: dict[str, list[tuple[float, float]]] = {way.name: [] for way in found}
    sizes = {}
    for way, value in zip(found, values, strict=True):
        back = np.asarray(way.decode(way.encode(value)))
        sizes[way.name] = _size(way.encode(value))
        if back.shape != shape or (way.name[:4] not in ("int8", "floa") and not np.array_equal(back, tensor)):
            raise SystemExit(f"{way.name} does not give back the tensor")
    rng = random.Random(seed)
    turns = list(zip(found, values, strict=True))
    for _ in range(repeats):
        for way, value in rng.sample(turns, len(turns)):
            way.decode(way.encode(value))  # its caches are warm, as those of a sender in a row of samples
            began = time.perf_counter()
            payload = way.encode(value)
            encoded = time.perf_counter()
            way.decode(payload)
            seconds[way.name].append((encoded - began, time.perf_counter() - encoded))
    reference = statistics.median(a + b for a, b in seconds["float32"])
    rows = []
    for way in found:
        both = [a + b for a, b in seconds[way.name]]
        quarters = statistics.quantiles(both, n=4)
        rows.append(
            {
                "name": way.name,
                "tensor_bytes": tensor.nbytes,
                "payload_bytes": sizes[way.name],
                "encode_s": statistics.median(a for a, _ in seconds[way.name]),
                "decode_s": statistics.median(b for _, b in seconds[way.name]),
                "both_s": statistics.median(both),
                "both_quarters_s": [quarters[0], quarters[2]],
                "times_float32": statistics.median(both) / reference,
            }
        )
    return rows


def main() -> None:
    """Measure all and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--repeats", type=int, default=101)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        own = measure(shape, options.repeats)
        rows += own
        print(f"\n{own[0]['tensor_bytes']:,} bytes {shape}, medians of {options.repeats}")
        print(f"  {'':<30} {'bytes':>10} {'encode µs':>10} {'decode µs':>10} {'both µs':>10} {'× float32':>10}")
        for row in own:
            times = "".join(f"{1e6 * row[key]:>11.1f}" for key in ("encode_s", "decode_s", "both_s"))
            print(f"  {row['name']:<30} {row['payload_bytes']:>10,}{times} {row['times_float32']:>10.1f}")
    large = [row for row in rows if row["tensor_bytes"] >= 65_536 and row["name"] == "pickle (torch tensor)"]
    print(
        "\nfrom 64 kB on, pickling a torch tensor takes "
        + ", ".join(f"{row['times_float32']:.1f}" for row in large)
        + " times as long as float32"
    )
    if options.json:
        packages = {name: version(name) for name in ("numpy", "torch", "safetensors", "pyarrow", "lz4", "zstandard")}
        machine = {"platform": platform.platform(), "python": platform.python_version(), **packages}
        write_json({"machine": machine, "repeats": options.repeats, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
