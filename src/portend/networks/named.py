"""Networks by name: timm's, torchvision's and the user's own, split into blocks and given exit branches.

``timm:NAME`` and ``torchvision:NAME`` run those libraries' code alone. ``module:object`` is code of the user's
own choice; what a file or message may name is decided by the caller (``code_in``).
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from portend.errors import InvalidValue, SplitError, StorageError, law
from portend.importing import import_object
from portend.networks.adopting import adopt, has_exits
from portend.networks.backbone import Backbone
from portend.networks.heads import multi_exit
from portend.networks.pretrained import copy_weights, fetch, read_weights, without_prefix
from portend.networks.split import split, takes

__all__ = ["code_in", "count_weights", "named"]

Shape = tuple[int, ...]

_HEADS: Final = ("pooled", "token")
_ARGUMENTS: Final = {  # of a library's networks that a file may set: numbers and words, nothing that fetches or opens
    "timm": (
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "class_token", "global_pool"),
        *("output_stride", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate"),
    ),
    "torchvision": (
        *("image_size", "width_mult", "dropout", "attention_dropout", "stochastic_depth_prob"),
        *("zero_init_residual", "aux_logits", "init_weights", "transform_input"),
    ),
}
_LARGEST_ARGUMENT: Final = 100_000
_MOST_TOKENS: Final = 1 << 24  # that float32 tells apart, in which tensors travel
_LARGEST_SAMPLE: Final = 1 << 24  # numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What is asked of a network by name: classes, sample shape, own arguments, and where weights come from."""

    num_classes: int | None
    input_shape: Shape | None
    arguments: Mapping[str, Any]
    weights: str


def named(
    name: str,
    *,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    vocabulary: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    blocks: int | None = None,
    at: Sequence[str | Sequence[str]] | Mapping[str, str] | None = None,
    leaves: Sequence[str] = (),
    inference_only: bool = False,
    exits: Sequence[int | str] | None = None,
    heads: str = "pooled",
    seed: int = 0,
    weights: str = "none",
) -> Backbone:
    """Return the network ``timm:NAME``, ``torchvision:NAME`` or ``module:object`` as blocks with exit branches.

    The last exit is the network's own classifier. ``object`` is a callable that returns a module (or a module,
    which is copied, or a ``Backbone``, which is taken as it is and has no use for the options on blocks and exits).
    A network that gives the logits of several exits is adopted as it is, too.

    Args:
        num_classes: by default as many as the network has.
        input_shape: of one sample, such as (3, 32, 32); libraries know their networks' own, a module needs it.
        vocabulary: of a network that takes whole numbers (tokens): they are less than this. Where it is not given and
            the network does not take normal random numbers, it is tried on zeros and ones.
        arguments: of the network itself, such as ``patch_size`` for a vision transformer.
        blocks, at, leaves, inference_only: where to cut (see ``split``); ``at`` may hold pairs (block's name, module).
        exits, heads: which cuts have a branch, and of which kind (see ``multi_exit``).
        seed: of the initial weights; the caller's random state is left alone.
        weights: ``none``, ``pretrained`` (a library's own, downloaded on first use) or the path of a state dict in the
            network's own layout. With another number of classes the last exit is new; the exits before it always are.

    Raises:
        InvalidValue: an unknown name or argument, or an option out of its range; SplitError: it cannot be cut;
        MismatchError: a head does not fit; StorageError: the weights cannot be had or do not fit.
    """
    request = _Request(
        num_classes=num_classes,
        input_shape=None if input_shape is None else _checked_shape(input_shape),
        arguments=dict(arguments or {}),
        weights=weights,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, shape = _make(name, request)
        places = _pairs(at)
        cutting: dict[str, Any] = {
            "blocks": blocks,
            "at": places,
            "leaves": list(leaves),
            "inference_only": inference_only,
            "exits": exits,
            "heads": heads,
        }
        architecture = {
            "num_classes": num_classes,
            "input_shape": list(shape),
            "vocabulary": vocabulary,
            "arguments": request.arguments,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in cutting.items()},
            "seed": seed,
        }
        if isinstance(network, Backbone):
            return _taken(network, name, architecture, cutting)

        def built(example: Tensor) -> Backbone:
            try:
                chain = split(
                    network,
                    example,
                    blocks=blocks,
                    at=_mapping(places),
                    leaves=leaves,
                    inference_only=inference_only,
                )
            except SplitError:
                if not has_exits(network, example):
                    raise
                _check_unused(name, "a network", cutting)
                return adopt(network, example, name=name, architecture=architecture)
            return multi_exit(
                chain,
                num_classes=num_classes,
                exits=exits,
                heads=heads,
                name=name,
                architecture=architecture,
                seed=seed,
            )

        return _on_example(built, network, shape, vocabulary)


def _on_example(
    build: Callable[[Tensor], Backbone], network: nn.Module, shape: Shape, vocabulary: int | None
) -> Backbone:
    """Build on normal random numbers, or on random tokens where that is said or the network takes nothing else."""
    if vocabulary is not None:
        law(1 <= vocabulary <= _MOST_TOKENS, f"vocabulary lies within 1–{_MOST_TOKENS}, but got {vocabulary}")
        return build(torch.randint(0, vocabulary, (1, *shape)))
    try:
        return build(torch.randn(1, *shape))
    except SplitError:
        if not takes(network, tokens := torch.randint(0, 2, (1, *shape))):
            raise
        return build(tokens)


def code_in(name: str, architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what ``named`` would import and run beside timm and torchvision: ``module:object`` each."""
    heads = architecture.get("heads", _HEADS[0])
    own = [] if name.partition(":")[0] in _ARGUMENTS else [name]
    return tuple(own if heads in _HEADS else [*own, str(heads)])


def count_weights(name: str, architecture: Mapping[str, Any]) -> int:
    """Return how many numbers a library's network holds, without memory for them.

    Raises:
        InvalidValue: as ``named``.
    """
    shape = architecture.get("input_shape")
    request = _Request(
        num_classes=architecture.get("num_classes"),
        input_shape=None if shape is None else _checked_shape(shape),
        arguments=dict(architecture.get("arguments") or {}),
        weights="none",
    )
    with torch.device("meta"):
        network, _ = _make(name, request)
    return sum(tensor.numel() for tensor in network.state_dict().values())


def _make(name: str, request: _Request) -> tuple[nn.Module, Shape]:
    """Return a new network and the shape of its samples."""
    library, _, rest = name.partition(":")
    if library not in _ARGUMENTS:
        return _own(name, request)
    _check_arguments(library, request.arguments)
    try:
        return (_timm if library == "timm" else _torchvision)(rest, request)
    except (TypeError, ValueError, AssertionError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue(
            f"{library} cannot build {rest} with num_classes {request.num_classes}, input_shape {request.input_shape} "
            f"and arguments {dict(request.arguments)}: {error}"
        ) from error


def _timm(name: str, request: _Request) -> tuple[nn.Module, Shape]:
    import timm

    defaults = timm.get_pretrained_cfg(name) if re.fullmatch(r"[\w.-]+", name) and timm.is_model(name) else None
    if defaults is None:
        raise InvalidValue(_unknown("timm", name, timm.list_models()))
    own: Shape = tuple(defaults.input_size)
    shape = request.input_shape or own
    options: dict[str, Any] = {"in_chans": shape[0]} if shape[0] != own[0] else {}
    if defaults.fixed_input_size and shape[1:] != own[1:]:
        options["img_size"] = shape[1:]
    if request.num_classes is not None:
        options["num_classes"] = request.num_classes
    options |= {key: tuple(value) if isinstance(value, list) else value for key, value in request.arguments.items()}
    if request.weights == "none":
        return timm.create_model(name, pretrained=False, **options), shape
    source = {}
    if request.weights != "pretrained":
        with torch.device("meta"):
            own_names = timm.create_model(name, pretrained=False, **options).state_dict()
        source["state_dict"] = without_prefix(read_weights(request.weights), own_names)
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options), shape
    except (OSError, RuntimeError, ValueError) as error:
        if source:
            raise StorageError(
                f"{request.weights} does not hold the weights of timm:{name}: {_first_line(error)}; "
                "give the file that belongs to the network"
            ) from error
        where = f"https://huggingface.co/{defaults.hf_hub_id}" if defaults.hf_hub_id else defaults.url
        raise StorageError(
            f"cannot get the pretrained weights of timm:{name} ({_first_line(error)}); on a machine with network "
            f"download model.safetensors from {where} and give its path as weights"
        ) from error


def _torchvision(name: str, request: _Request) -> tuple[nn.Module, Shape]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InvalidValue(_unknown("torchvision", name, known))
    published = models.get_model_weights(name).DEFAULT
    side = published.transforms().crop_size[0]
    shape = request.input_shape or (3, side, side)
    options = {} if request.num_classes is None else {"num_classes": request.num_classes}
    if name.startswith("vit_") and shape[1] != side:
        options["image_size"] = shape[1]
    network: nn.Module = models.get_model(name, weights=None, **{**options, **request.arguments})
    if request.weights != "none":
        path = fetch(published.url) if request.weights == "pretrained" else request.weights
        classes = request.num_classes or len(published.meta["categories"])
        copy_weights(network, read_weights(path), path=path, num_classes=classes)
    return network, shape


def _own(name: str, request: _Request) -> tuple[nn.Module, Shape]:
    found = import_object(name, "the network")
    if isinstance(found, nn.Module):
        network: Any = copy.deepcopy(found)
    else:
        network = found(**request.arguments) if callable(found) else found
    if not isinstance(network, nn.Module):
        raise InvalidValue(f"{name} is, or returns, a torch.nn.Module, but it gave {type(network).__name__}")
    if isinstance(network, Backbone):
        return network, network.input_shape
    if request.input_shape is None:
        raise InvalidValue(f"the shape of one sample of {name} is not known; give input_shape, such as [3, 32, 32]")
    if request.weights == "pretrained":
        raise InvalidValue(f"{name} has no published weights; load them in the object itself, or give a path")
    if request.weights != "none":
        copy_weights(network, read_weights(request.weights), path=request.weights, num_classes=request.num_classes or 0)
    return network, request.input_shape


def _taken(backbone: Backbone, name: str, architecture: dict[str, Any], cutting: Mapping[str, Any]) -> Backbone:
    """Return a backbone that the user built, under the name by which it is built again."""
    _check_unused(name, "a Backbone", cutting)
    backbone.name, backbone.architecture = name, architecture
    return backbone


def _check_unused(name: str, what: str, cutting: Mapping[str, Any]) -> None:
    unused = [key for key, value in cutting.items() if value not in (None, [], False, "pooled")]
    if unused:
        raise InvalidValue(f"{name} is {what} with blocks and exits of its own; leave out {', '.join(unused)}")


def _checked_shape(shape: Sequence[int]) -> Shape:
    numbers = 1
    for side in shape:
        if not isinstance(side, int) or side < 1:
            raise InvalidValue(f"input_shape holds positive integers, but got {list(shape)}")
        numbers *= side
    if numbers > _LARGEST_SAMPLE:
        raise InvalidValue(f"a sample has at most {_LARGEST_SAMPLE} numbers, but got the shape {list(shape)}")
    return tuple(shape)


def _check_arguments(library: str, arguments: Mapping[str, Any]) -> None:
    unknown = sorted(set(arguments) - set(_ARGUMENTS[library]))
    if unknown:
        raise InvalidValue(
            f"Portend passes on no argument {', '.join(unknown)} to {library}; "
            f"there are {', '.join(_ARGUMENTS[library])}; for others write a function and name it module:object"
        )
    for key, value in arguments.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(item, str | int | float) or (not isinstance(item, str) and abs(item) > _LARGEST_ARGUMENT):
                raise InvalidValue(f"{key} is a word or a number of at most {_LARGEST_ARGUMENT}, but got {value!r}")


def _pairs(at: Sequence[str | Sequence[str]] | Mapping[str, str] | None) -> list[Any] | None:
    """Cuts as JSON keeps them in order: modules, or pairs (name of the block, module)."""
    if at is None:
        return None
    return (
        [list(pair) for pair in at.items()]
        if isinstance(at, Mapping)
        else [item if isinstance(item, str) else list(item) for item in at]
    )


def _mapping(pairs: list[Any] | None) -> list[str] | dict[str, str] | None:
    if pairs is None or all(isinstance(pair, str) for pair in pairs):
        return pairs
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise InvalidValue(f"at holds modules, or pairs (name of the block, module), but got {pairs}")
    return {str(block): str(module) for block, module in pairs}


def _unknown(library: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or list(known[:3])
    return f"{library} has no network {name!r}; there are, for example, {', '.join(near)}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
