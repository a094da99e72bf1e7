"""Networks that take whole numbers (tokens): built by name, trained, exported, and run by partitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import portend as pt
from portend.data.dataset import Dataset, make_splits
from portend.data.decoding import TensorDecoder
from portend.errors import InvalidValue, MismatchError
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint
from portend.networks.evaluators import OnnxEvaluator, TorchEvaluator
from portend.networks.exporting import export
from portend.networks.zoo import build
from portend.profiling.losses import profile_losses, profile_ranges
from portend.runtime.codecs import FLOAT32
from portend.runtime.onnx_executor import OnnxExecutor
from portend.runtime.torch_executor import TorchExecutor
from portend.service.operator import Agents
from portend.training.config import TrainingConfig
from portend.training.training import train
from portend.values.execution import Execution
from portend.values.plan import Plan
from service_hosts import Hosts, Workload

WORDS = 50_000
CONFIG = TrainingConfig(epochs=1, batch_size=16, learning_rate=0.01)


class Text(nn.Module):
    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 8)
        self.mix = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mix(self.embed(x))).mean(1))  # type: ignore[no-any-return]


class FromFloats(Text):
    """Takes its tokens in any type, as embeddings alone do not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.long())


def data(dtype: str = "int64", count: int = 48) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    tokens = (rng.integers(0, WORDS // 3, (count, 6)) + labels[:, None] * (WORDS // 3)).astype(dtype)
    decoder = TensorDecoder(shape=(6,), dtype=dtype)  # type: ignore[arg-type]
    encoded = [sample.astype(decoder.stored).tobytes() for sample in tokens]
    return Dataset(name="tokens", encoded=encoded, labels=labels, class_names=("a", "b", "c"), decoder=decoder)


@pytest.mark.parametrize("kind", ["Text", "FromFloats"])
def test_a_network_by_name_is_tried_on_tokens_or_told_its_vocabulary(kind: str) -> None:
    for vocabulary in (None, WORDS):
        backbone = build(f"{__name__}:{kind}", input_shape=[6], vocabulary=vocabulary)
        assert backbone.input_dtype == torch.int64
        assert backbone.exits == (1, 2)
        assert backbone.architecture["vocabulary"] == vocabulary
    for wrong in (0, 1 << 25):
        with pytest.raises(InvalidValue, match="vocabulary lies within 1–16777216"):
            build(f"{__name__}:{kind}", input_shape=[6], vocabulary=wrong)


def test_tokens_are_trained_saved_exported_and_run_exactly(tmp_path: Path) -> None:
    name = f"{__name__}:Text"
    backbone, dataset = build(name, input_shape=[6]), data()
    train(backbone, dataset, make_splits(dataset, seed=0), CONFIG, tmp_path)
    again = load_checkpoint(tmp_path / "checkpoint.safetensors", allow_code=[name])
    samples = dataset.tensors(range(8))
    assert samples.dtype == np.int64
    expected = [logits.argmax(1) for logits in backbone(torch.from_numpy(samples))]
    scores, answers = TorchEvaluator(again).exits(samples)
    assert (answers == torch.stack(expected, 1).numpy()).all()

    network, path = export(again), tmp_path / "net.onnx"
    network.save(path)
    found, same = OnnxEvaluator(network).exits(samples)
    assert (same == answers).all()
    assert np.allclose(found["entropy"], scores["entropy"], atol=1e-5)

    sent = [FLOAT32.decode(FLOAT32.encode(sample), (6,)) for sample in samples]
    for executor in (TorchExecutor(again), OnnxExecutor(path, Execution(executor="onnxruntime"))):
        first, second = executor.partition(0, 1, branch=False), executor.partition(1, 2, branch=True)
        for given in (sent, list(samples)):
            assert [second(first(one).features).label for one in given] == answers[:, 1].tolist()


def test_agents_answer_tokens_over_a_link_as_one_process_does(tmp_path: Path) -> None:
    """Plans that send tokens as they are, tokens as numbers, and the tensor after the embedding."""
    dataset, backbone = data(), build(f"{__name__}:Text", input_shape=[6]).eval()
    path = tmp_path / "net.onnx"
    export(backbone).save(path)
    with torch.no_grad():
        expected = backbone(torch.from_numpy(dataset.tensors(range(48))))[-1].argmax(1).tolist()
    codecs: list[tuple[tuple[int, ...], tuple[int, ...], tuple[str | None, ...]]] = [
        ((2,), (1,), ("encoded",)), ((2,), (1,), ("float32",)), ((1, 2), (0, 1), (None, "float32"))
    ]  # fmt: skip
    with Hosts(tmp_path, ("edge", "cloud")) as hosts, Agents(hosts.topology, None, patience_s=30) as agents:
        for number, (cuts, placement, named) in enumerate(codecs):
            plan = Plan(cuts=cuts, placement=placement, thresholds=(0.0,) * (len(cuts) - 1), codecs=named)
            work = Workload(path, dataset.decoder, tuple(dataset.encoded), (plan,))
            work.release(agents)
            samples = ((f"{number}-{i}", sample) for i, sample in enumerate(dataset.encoded))
            answers = list(agents.submitter().answers(samples))
            assert not [answer.reason for answer in answers if answer.failed]
            assert {a.id: a.label for a in answers} == {f"{number}-{i}": label for i, label in enumerate(expected)}


def test_no_codec_that_rounds_tokens_is_ever_admitted() -> None:
    backbone, dataset = pt.multi_exit(pt.split(Text(), torch.randint(0, WORDS, (1, 6)))).eval(), data()
    evaluator, indices = TorchEvaluator(backbone), np.arange(48)
    ranges = profile_ranges(evaluator, dataset, indices)
    right = (evaluator.exits(dataset.tensors(indices))[1] == dataset.labels[:, None]).sum(0)
    for loss in profile_losses(evaluator, dataset, indices, ranges).values():
        assert (loss.lost[0] == right).all()
        assert (loss.gained[0] == 0).all()


def test_a_backbone_by_hand_takes_tokens_as_they_travel() -> None:
    embed, mix = nn.Embedding(WORDS, 8), nn.Linear(8, 8)
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(48, 3)) for _ in range(2)]
    backbone = Backbone(
        name="own", blocks={"embed": embed, "mix": mix}, branches=heads, num_classes=3, input_shape=(6,),
        architecture={}, input_dtype=torch.int64,
    )  # fmt: skip
    tokens = torch.from_numpy(data().tensors([0, 1]))
    assert all(map(torch.equal, backbone(tokens), backbone(tokens.float())))


def test_samples_that_do_not_fit_are_told_before_training(tmp_path: Path) -> None:
    dataset = data()
    splits = make_splits(dataset, seed=0)
    floats = pt.multi_exit(pt.split(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(1, 6)))
    with pytest.raises(
        MismatchError, match=r"takes torch.float32 and does not run on the samples of tokens, torch.int64"
    ):
        train(floats, dataset, splits, CONFIG, tmp_path)
    backbone = build(f"{__name__}:Text", input_shape=[6])
    fractions = [np.full(6, 0.5, dtype="<f4").tobytes()] * 48
    decoder = TensorDecoder(shape=(6,))
    odd = Dataset(
        name="odd", encoded=fractions, labels=dataset.labels, class_names=dataset.class_names, decoder=decoder
    )
    with pytest.raises(MismatchError, match="takes whole numbers, but the samples of odd have fractions"):
        train(backbone, odd, splits, CONFIG, tmp_path)
    whole = data("float32")
    train(backbone, whole, splits, CONFIG, tmp_path / "whole")
