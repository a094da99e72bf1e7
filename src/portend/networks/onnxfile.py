"""A network in one ONNX file: the chain of blocks with all its exits, from which partitions are cut.

Where a tensor crosses cut c, the graph has the value ``cut_c`` (``cut_0`` is the input); an exit branch at c gives
``label_c`` and one score for each criterion, such as ``entropy_c``. What Portend knows besides stands in the file's
metadata. Imports no torch. Axes: B batch, N blocks (N+1 cuts).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from portend.errors import InvalidValue, StorageError, law
from portend.io.files import kind_of, wrong_file
from portend.io.storage import atomic_path, from_plain, to_plain
from portend.values.backbone import BackboneSpec
from portend.values.plan import CRITERIA

__all__ = ["BATCH", "OnnxNetwork", "cut_value", "exit_values", "load_onnx"]

BATCH: Final = "batch"
"""Name of the batch axis in a file that takes any number of samples at once."""

_DOCUMENT, _VERSION = "portend", 1
_DOMAINS: Final = (
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
)  # what onnxruntime brings; nothing is loaded for others
_LARGEST: Final = (1 << 31) - 1  # of a protobuf message


def cut_value(cut: int) -> str:
    """Return the name of the tensor that crosses a cut."""
    return f"cut_{cut}"


def exit_values(cut: int) -> tuple[str, ...]:
    """Return the names of what the exit branch at a cut gives: the label, then the score by each criterion."""
    return (f"label_{cut}", *(f"{criterion}_{cut}" for criterion in CRITERIA))


class OnnxNetwork:
    """A network as an ONNX graph.

    Attributes:
        model: the whole chain; spec: names, shapes, digest of the weights; provenance: as a checkpoint's.
    """

    def __init__(
        self, model: onnx.ModelProto, spec: BackboneSpec, provenance: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.model = model
        self.spec = spec
        self.provenance = dict(provenance)
        self._check()

    @property
    def batches(self) -> bool:
        """Whether the graph takes any number of samples at once, or one."""
        return bool(self.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param)

    def partition(self, start: int, end: int, *, branch: bool, criterion: str | None = None) -> onnx.ModelProto:
        """Return the graph of blocks start:end, as onnx's own extractor cuts it out.

        Its input is the tensor at ``start``. With ``branch``, where there is one, it gives the exit's label and its
        score by ``criterion`` (None: all); and it gives the tensor at ``end``, but not beside the last exit, where
        nobody takes it.

        Raises:
            InvalidValue: not 0 <= start < end <= N.
        """
        last = self.spec.num_blocks
        law(
            0 <= start < end <= last,
            f"a partition lies between two cuts with 0 <= start < end <= {last}, but got {start}:{end}; "
            "each partition needs at least one block",
        )
        asked = branch and end in self.spec.exit_cuts
        outputs = [] if asked and end == last else [cut_value(end)]
        if asked:
            label, *scores = exit_values(end)
            outputs += [label, *(scores if criterion is None else [f"{criterion}_{end}"])]
        return self._extractor.extract_model([cut_value(start)], outputs)

    def save(self, path: str | Path) -> None:
        """Write the file, replacing an old one only when the new one is complete.

        Raises:
            StorageError: the folder cannot be written, or the network is too large for one ONNX file.
        """
        size = self.model.ByteSize()
        if size > _LARGEST:
            raise StorageError(f"an ONNX file holds at most {_LARGEST} bytes, but {self.spec.name} has {size}")
        document = {
            "version": _VERSION,
            "spec": to_plain(self.spec),
            "provenance": self.provenance,
            "graph_sha256": graph_sha256(self.model),
        }
        onnx.helper.set_model_props(self.model, {_DOCUMENT: json.dumps(document, sort_keys=True)})
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.model.SerializeToString())

    @cached_property
    def _extractor(self) -> onnx.utils.Extractor:
        return onnx.utils.Extractor(self.model)

    def _check(self) -> None:
        """Refuse a graph that is not the chain which ``spec`` describes, or that needs more than this file."""
        graph, spec = self.model.graph, self.spec
        odd = sorted({opset.domain for opset in self.model.opset_import} - set(_DOMAINS))
        law(not odd, f"the graph needs operators of {', '.join(odd)}, which onnxruntime does not bring")
        law(
            not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer),
            "the weights lie in another file; a network is one file",
        )
        needed = {cut_value(cut) for cut in range(1, spec.num_blocks + 1)}
        needed |= {name for cut in spec.exit_cuts for name in exit_values(cut)}
        missing = sorted(needed - {value.name for value in graph.output})
        law(not missing, f"the graph lacks {len(missing)} of the values at the cuts and exits, such as {missing[:1]}")
        inputs = [value.name for value in graph.input]
        law(inputs == [cut_value(0)], f"the graph has one input, {cut_value(0)!r}, but got {inputs}")
        self._check_cuts()

    def _check_cuts(self) -> None:
        """Refuse a graph in which a block takes anything but the tensor at the cut before it."""
        outer = {tensor.name for tensor in self.model.graph.initializer} | {""}
        made: dict[str, int] = {cut_value(0): 0}  # value: the cut up to which it is known
        ends = {cut_value(cut): cut for cut in range(1, self.spec.num_blocks + 1)}
        for node in self.model.graph.node:
            own = {made[name] for name in node.input if name in made}
            inner = [name for name in node.input if name not in made and name not in outer]
            law(not inner, f"the node {node.name!r} takes {inner}, which nothing before it makes")
            if len(own) > 1:
                raise InvalidValue(
                    f"the node {node.name!r} takes values from both sides of the cut {max(own)}: "
                    f"{', '.join(node.input)}; between blocks only one tensor may cross"
                )
            at = own.pop() if own else None
            for name in node.output:
                if at is None:
                    outer.add(name)  # a constant
                else:
                    made[name] = ends.get(name, at)
                    law(made[name] - at <= 1, f"the tensor at cut {made[name]} is made of that at cut {at} alone")


def graph_sha256(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a model's graph with its weights."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def load_onnx(path: str | Path) -> OnnxNetwork:
    """Return the network of a file that ``portend export`` wrote.

    Nothing in the file is executed or imported, and no other file is read.

    Raises:
        StorageError: the file is missing, damaged, of a newer version, or not of Portend.
    """
    try:
        size = Path(path).stat().st_size
        if size > _LARGEST:
            raise StorageError(f"{path} has {size} bytes, more than the {_LARGEST} that an ONNX file may hold")
        model = onnx.load_model_from_string(Path(path).read_bytes())
    except FileNotFoundError:
        raise StorageError(f"there is no file {path}; make it with `portend export`") from None
    except (OSError, DecodeError, ValueError) as error:
        if kind_of(path) not in (None, "exported"):
            raise StorageError(wrong_file(path, "exported")) from None
        raise StorageError(f"{path} is not a complete ONNX file ({error}); export the network again") from None
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if _DOCUMENT not in properties:
        raise StorageError(f"{path} is not a network of Portend; make it with `portend export`")
    try:
        document: dict[str, Any] = json.loads(properties[_DOCUMENT])
        version = document["version"]
        if version != _VERSION:
            raise StorageError(
                f"{path} has version {version}, but this Portend reads {_VERSION}; export the network again"
            )
        if document["graph_sha256"] != graph_sha256(model):
            raise StorageError(f"{path} is damaged (its digest differs); copy it again, or export the network again")
        provenance = {str(key): str(value) for key, value in document["provenance"].items()}
        return OnnxNetwork(model, from_plain(BackboneSpec, document["spec"]), provenance)
    except StorageError:
        raise
    except (InvalidValue, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}); export the network again") from None
