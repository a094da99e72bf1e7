"""Temperature scaling of exit branches (Guo et al. 2017, "On calibration of modern neural networks").

A branch's logits z become z / T with one T > 0 for each branch, the one with the least negative log-likelihood on
samples that the network was not trained on. The answer stays the same; how confident it looks does not. T is
put into the branch's last linear layer (W / T, b / T), so whatever runs the network runs it calibrated, and the
digest of the weights tells both apart.

Axes: B batch, S samples, N branches, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from portend.data.dataset import Dataset
from portend.errors import InvalidValue
from portend.networks.backbone import Backbone
from portend.networks.scoring import check_fit

__all__ = ["Calibration", "calibrate", "calibration_error", "fit_temperature"]

_LEAST, _MOST = 0.02, 50.0  # of a temperature; separable samples would have T = 0
_BINS = 15
_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How well a branch's largest probability tells how often it is right, before and after calibration.

    Attributes:
        temperature: what the logits are divided by.
        nll, ece: negative log-likelihood in nats and expected calibration error in 0–1, (before, after).
    """

    temperature: float
    nll: tuple[float, float]
    ece: tuple[float, float]


def calibrate(
    backbone: Backbone,
    dataset: Dataset,
    fit_on: NDArray[np.int64],
    *,
    judge_on: NDArray[np.int64],
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Calibration | None, ...]:
    """Calibrate every branch in place on the samples ``fit_on``, and say what it changed on the samples ``judge_on``.

    Gives one entry for each of the N branches, None where there is no branch.

    Args:
        fit_on: samples that the network was not trained on; judge_on: others.
        on_progress: called with (samples done, samples) after each batch.

    Raises:
        MismatchError: the network does not take this dataset's samples or has other classes.
        InvalidValue: a branch does not end in a linear layer of its own; then nothing is changed.
    """
    check_fit(backbone.spec(), dataset)
    done, total = 0, len(fit_on) + len(judge_on)

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done, total)

    fitting, judging = (_logits(backbone, dataset, chosen, tell) for chosen in (fit_on, judge_on))
    labels, truth = (torch.tensor(dataset.labels[chosen]) for chosen in (fit_on, judge_on))
    result = tuple(
        None if seen is None or unseen is None else _judged(unseen, truth, fit_temperature(seen, labels))
        for seen, unseen in zip(fitting, judging, strict=True)
    )
    _rescale(backbone, result, torch.from_numpy(dataset.tensors(judge_on[:_BATCH])))
    return result


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature in 0.02–50 with the least negative log-likelihood of labels [S] at logits [S, K].

    Samples with a NaN or infinite logit are left out.

    Raises:
        InvalidValue: no sample is left, or the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InvalidValue(
            f"each sample has logits and one label, but got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    usable = logits.isfinite().all(dim=1)
    if not usable.any():
        raise InvalidValue("a temperature is fitted to finite logits of at least one sample, but there is none")
    values, classes = logits[usable].double(), labels[usable]
    sharpness = torch.zeros((), dtype=torch.float64, requires_grad=True)  # -log T; the loss has one minimum in 1 / T
    optimizer = torch.optim.LBFGS([sharpness], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(values * sharpness.clamp(-math.log(_MOST), -math.log(_LEAST)).exp(), classes)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return min(max(math.exp(-float(sharpness.detach())), _LEAST), _MOST)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = _BINS) -> float:
    """Return the expected calibration error in 0–1 (Guo et al. 2017, Eq. 3), with bins of equal width.

    The mean distance between the largest probability and the share of right answers, over bins of samples with a
    similar largest probability, weighted by their number.
    """
    confidence, answer = torch.softmax(logits.double(), dim=1).max(dim=1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, place, confidence - (answer == labels).double())
    return float(gap.abs().sum() / len(labels))


@torch.inference_mode()
def _logits(
    backbone: Backbone, dataset: Dataset, indices: NDArray[np.int64], tell: Callable[[int], None]
) -> list[Tensor | None]:
    """Return each branch's logits, float32 [S, K], for the samples ``indices``; None where there is no branch."""
    batches = []
    for first in range(0, len(indices), _BATCH):
        rows = indices[first : first + _BATCH]
        batches.append(_run(backbone, torch.from_numpy(dataset.tensors(rows))))
        tell(len(rows))
    return [
        None if parts[0] is None else torch.cat([part for part in parts if part is not None])
        for parts in zip(*batches, strict=True)
    ]


def _run(backbone: Backbone, x: Tensor) -> list[Tensor | None]:
    """Return each branch's logits [B, K] in evaluation mode."""
    was_training = backbone.training
    backbone.eval()
    try:
        logits: list[Tensor | None] = []
        for block, branch in zip(backbone.blocks, backbone.branches, strict=True):
            x = block(x)
            logits.append(None if branch is None else branch(x))
        return logits
    finally:
        backbone.train(was_training)


def _judged(logits: Tensor, labels: Tensor, temperature: float) -> Calibration:
    both = (logits.double(), logits.double() / temperature)
    nll = [float(functional.cross_entropy(values, labels)) for values in both]
    ece = [calibration_error(values, labels) for values in both]
    return Calibration(temperature=temperature, nll=(nll[0], nll[1]), ece=(ece[0], ece[1]))


@torch.no_grad()
def _rescale(backbone: Backbone, found: tuple[Calibration | None, ...], x: Tensor) -> None:
    """Divide the last linear layer of each branch by its temperature; samples [B, ...] check the effect."""
    layers = [None if one is None else _last_layer(backbone, number) for number, one in enumerate(found)]
    kept = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    before = _run(backbone, x)
    for layer, one in zip(layers, found, strict=True):
        if layer is not None and one is not None:
            for parameter in layer.parameters():
                parameter.div_(one.temperature)
    for number, (old, new, one) in enumerate(zip(before, _run(backbone, x), found, strict=True)):
        if old is None or new is None or one is None:
            continue
        if not torch.allclose(new * one.temperature, old, rtol=1e-3, atol=1e-3 * float(old.abs().max())):
            backbone.load_state_dict(kept)
            raise InvalidValue(
                f"branch {number + 1} of {backbone.name} does not end in a linear layer, so a temperature cannot be "
                "put into it; end it in one"
            )


def _last_layer(backbone: Backbone, number: int) -> nn.Linear:
    branch = backbone.branches[number]
    layers = [] if branch is None else [layer for layer in branch.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise InvalidValue(
            f"branch {number + 1} of {backbone.name} has no linear layer that takes a temperature; end it in one"
        )
    every = [*backbone.blocks, *(other for other in backbone.branches if other is not None)]
    if sum(parameter is layers[-1].weight for part in every for parameter in part.parameters()) > 1:
        raise InvalidValue(
            f"branch {number + 1} of {backbone.name} shares its last layer with another part, which a temperature "
            "would change, too; give it one of its own"
        )
    return layers[-1]
