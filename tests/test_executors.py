"""The same network by PyTorch and by onnxruntime: what partitions compute, what files are refused, what runs where."""

from __future__ import annotations

import hashlib
import json
import subprocess
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from packaging.requirements import Requirement

from portend.cli.app import cli
from portend.data.dataset import Dataset, make_splits
from portend.data.sources import load_dataset
from portend.errors import DeploymentError, InvalidValue, StorageError
from portend.io.storage import load_profile
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint, save_checkpoint
from portend.networks.evaluators import OnnxEvaluator, TorchEvaluator
from portend.networks.exporting import deviation, export, exported
from portend.networks.heads import multi_exit
from portend.networks.onnxfile import OnnxNetwork, load_onnx
from portend.networks.onnxsession import session
from portend.networks.quantizing import quantized
from portend.networks.scores import score
from portend.networks.split import split
from portend.networks.zoo import build
from portend.profiling.fastest import time_executions
from portend.profiling.losses import profile_losses, profile_ranges
from portend.profiling.network import profile_exits
from portend.runtime.executor import Executor
from portend.runtime.executors import make_executor
from portend.runtime.torch_executor import TorchExecutor
from portend.testbed.deployment import Deployment
from portend.values.backbone import BackboneSpec
from portend.values.codecs import ValueRange
from portend.values.execution import Execution
from portend.values.exits import SampleExits
from portend.values.plan import CRITERIA, Plan
from portend.values.topology import Link, Tier, Topology

ONNX = Execution(executor="onnxruntime")
SAMPLES = 20


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits:size=16")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    backbone = build("resnet8", in_channels=1, num_classes=10, input_size=16)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in backbone.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                values += 0.3 * torch.rand(values.shape, generator=rng)  # so that folding them in makes a difference
        for branch in backbone.branches:
            for parameter in branch.parameters():
                parameter.mul_(10)  # scores of an untrained network lie close to 1; spread them
    save_checkpoint(backbone, path, provenance={"dataset": "digits:size=16", "split_seed": "0"})
    return path


@pytest.fixture(scope="module")
def backbone(checkpoint: Path) -> Backbone:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def file(checkpoint: Path) -> Path:
    return exported(checkpoint)


@pytest.fixture(scope="module")
def network(file: Path) -> OnnxNetwork:
    return load_onnx(file)


def chain(count: int) -> Topology:
    tiers = tuple(Tier(name=f"t{i}", device="d") for i in range(count))
    return Topology(name="chain", tiers=tiers, links=(Link(bandwidth_bps=1e9, propagation_delay_s=0.0),) * (count - 1))


# -- what is computed ------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_partition_computes_what_pytorch_computes(
    criterion: str, backbone: Backbone, file: Path, digits: Dataset
) -> None:
    by_onnx = make_executor(file, ONNX, criterion=criterion)
    by_torch = TorchExecutor(backbone, criterion=criterion)
    tensors = [digits.tensors([7])[0]]
    for cut in range(1, 4):
        tensors.append(by_torch.partition(cut - 1, cut, branch=False)(tensors[-1]).features)
    for start, end in combinations(range(5), 2):
        for branch in (True, False):
            expected = by_torch.partition(start, end, branch=branch)(tensors[start])
            got = by_onnx.partition(start, end, branch=branch)(tensors[start])
            assert got.label == expected.label
            assert got.score == pytest.approx(expected.score, abs=1e-5, nan_ok=True)
            if got.features.size or not branch or end < 4:
                assert np.allclose(got.features, expected.features, rtol=1e-4, atol=1e-5)


def test_an_export_is_as_close_to_pytorch_as_it_says(backbone: Backbone, network: OnnxNetwork, digits: Dataset) -> None:
    samples = digits.tensors(range(50))
    assert 0 < deviation(backbone, network, samples) < 1e-4
    other = build("resnet8", in_channels=1, num_classes=10, input_size=16, seed=5).eval()
    assert deviation(other, network, samples) > 0.01


def test_the_graph_scores_what_is_not_finite_as_pytorch_does(network: OnnxNetwork) -> None:
    whole = session(network.model)
    samples = np.zeros((3, 1, 16, 16), dtype=np.float32)
    samples[1, 0, 3, 3] = np.nan
    samples[2, 0, 3, 3] = np.inf
    entropies = whole.run(["entropy_4"], {"cut_0": samples})[0]
    assert np.isfinite(entropies[0])
    assert np.isnan(entropies[1:]).all()  # so they never leave early


def test_the_score_is_the_float32_number_that_a_profile_keeps(
    network: OnnxNetwork, backbone: Backbone, digits: Dataset
) -> None:
    samples = digits.tensors(range(8))
    label, entropy = session(network.partition(0, 4, branch=True, criterion="entropy")).run(None, {"cut_0": samples})
    assert entropy.dtype == np.float32
    with torch.inference_mode():
        logits = backbone(torch.from_numpy(samples))[-1]
    assert np.allclose(entropy, score(logits).numpy(), atol=1e-5)
    assert np.array_equal(label, logits.argmax(dim=1).numpy())


def test_a_split_network_with_few_exits_is_exported_too() -> None:
    layers = [torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.GELU()) for _ in range(3)]
    plain = torch.nn.Sequential(*layers, torch.nn.Linear(6, 3)).eval()
    backbone = multi_exit(split(plain, torch.zeros(2, 6)), exits=[2])
    network = export(backbone)
    assert network.spec.exit_cuts == backbone.exits
    assert network.batches
    assert not any(value.name == "label_1" for value in network.model.graph.output)


def executors(backbone: Backbone, file: Path) -> list[Executor]:
    return [TorchExecutor(backbone), make_executor(file, ONNX)]


def test_a_batch_gives_what_each_sample_gives_alone(backbone: Backbone, file: Path, digits: Dataset) -> None:
    samples = list(digits.tensors([3, 8, 5]))
    for executor in executors(backbone, file):
        for start, end in ((0, 2), (0, 4)):
            alone = executor.partition(start, end, branch=True)
            together = executor.partition(start, end, branch=True, most=3).many(samples)
            for sample, got in zip(samples, together, strict=True):
                expected = alone(sample)
                assert got.label == expected.label
                assert got.score == pytest.approx(expected.score, abs=1e-5)
                assert np.allclose(got.features, expected.features, rtol=1e-4, atol=1e-5)
        without = executor.partition(1, 2, branch=False, most=2).many(
            [executor.partition(0, 1, branch=False)(s).features for s in samples[:2]]
        )
        assert [found.label for found in without] == [-1, -1]


def test_a_network_for_one_sample_at_a_time_takes_no_batches(network: OnnxNetwork, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    OnnxNetwork(model, network.spec, network.provenance).save(tmp_path / "one.onnx")
    with pytest.raises(InvalidValue, match="one sample at a time, but batches of 4"):
        make_executor(tmp_path / "one.onnx", ONNX).partition(0, 2, branch=True, most=4)


def test_compiled_and_reduced_precision_stay_close(backbone: Backbone, digits: Dataset) -> None:
    sample = digits.tensors([3])[0]
    exact = TorchExecutor(backbone).partition(0, 3, branch=True)(sample)
    rough = TorchExecutor(backbone, Execution(precision="bfloat16")).partition(0, 3, branch=True)(sample)
    assert rough.features.dtype == np.float32
    assert 0 < np.abs(rough.features - exact.features).max() < 0.1 * np.abs(exact.features).max()
    assert rough.score == pytest.approx(exact.score, abs=0.1)


@pytest.mark.slow
def test_compiled_partitions_compute_the_same(backbone: Backbone, digits: Dataset) -> None:
    sample = digits.tensors([3])[0]
    exact = TorchExecutor(backbone).partition(0, 4, branch=True)(sample)
    compiled = TorchExecutor(backbone, Execution(executor="torch-compiled")).partition(0, 4, branch=True)(sample)
    assert compiled.score == pytest.approx(exact.score, abs=1e-5)


@pytest.mark.parametrize("executor", ["torch", "onnxruntime"])
def test_cuda_computes_the_same(executor: str, backbone: Backbone, file: Path, digits: Dataset) -> None:
    here = Execution(executor=executor, processor="cuda")  # type: ignore[arg-type]
    try:
        fast = TorchExecutor(load_checkpoint(file.with_suffix("")), here) if executor == "torch" else None
        partition = (fast or make_executor(file, here)).partition(0, 4, branch=True)
    except DeploymentError as error:
        pytest.skip(f"no CUDA device for {executor}: {error}")
    sample = digits.tensors([3])[0]
    expected = TorchExecutor(backbone).partition(0, 4, branch=True)(sample)
    assert partition(sample).score == pytest.approx(expected.score, abs=1e-3)


# -- int8 ------------------------------------------------------------------------------------------


def test_both_evaluators_give_the_same_exits_ranges_and_losses(
    network: OnnxNetwork, backbone: Backbone, digits: Dataset
) -> None:
    chosen = np.arange(30, 70)
    own, other = TorchEvaluator(backbone), OnnxEvaluator(network)
    expected, found = profile_exits(own, digits, chosen), profile_exits(other, digits, chosen)
    for name in CRITERIA:
        assert np.allclose(found.scores[name], expected.scores[name], atol=1e-5)
    assert np.array_equal(found.correct, expected.correct)
    ranges, again = profile_ranges(own, digits, chosen), profile_ranges(other, digits, chosen)
    for limits, same in zip(ranges, again, strict=True):
        assert np.allclose(limits.channels, same.channels, atol=1e-4)
    narrow = tuple(ValueRange(tensor=r.tensor * 0.05, channels=r.channels * 0.05) for r in ranges)
    losses, same_losses = (profile_losses(each, digits, chosen, narrow) for each in (own, other))
    for name, loss in losses.items():
        assert np.nansum(loss.lost) > 0 or name == "float16"
        assert np.array_equal(same_losses[name].lost, loss.lost, equal_nan=True)


def test_an_evaluator_leaves_its_tensor_and_mode_alone(digits: Dataset) -> None:
    layers = [torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Conv2d(1, 1, 3)) for _ in range(3)]
    plain = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(100, 3))
    backbone = multi_exit(split(plain, torch.zeros(2, 1, 16, 16))).train()
    x = (digits.tensors(range(4)) - 0.5).astype(np.float32)
    kept = x.copy()
    evaluator = TorchEvaluator(backbone)
    first = evaluator.answers(0, x)
    assert np.array_equal(evaluator.answers(1, evaluator.block(0, x)), first[:, 1:])
    assert np.array_equal(x, kept)
    assert backbone.training


def test_a_network_that_takes_one_sample_at_a_time_is_evaluated_on_many(
    network: OnnxNetwork, backbone: Backbone, digits: Dataset
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    single = OnnxNetwork(model, network.spec)
    assert not single.batches
    samples = digits.tensors(range(5))
    scores, answers = OnnxEvaluator(single).exits(samples)
    expected, same = TorchEvaluator(backbone).exits(samples)
    assert np.allclose(scores["margin"], expected["margin"], atol=1e-5)
    assert np.array_equal(answers, same)


def test_an_exported_network_is_profiled_by_itself(network: OnnxNetwork, digits: Dataset, tmp_path: Path) -> None:
    """Its exits are its own, and differ a little from those of the network it was made of."""
    file, out = tmp_path / "int8.onnx", tmp_path / "int8.zip"
    quantized(network, digits.tensors(range(20))).save(file)
    arguments = [str(file), "--data", "digits:size=16", "--seed", "0"]
    quick = ["--budget", "50%", "--repeats", "2", "--gap", "2ms", "--codec-samples", "40"]
    done = CliRunner().invoke(cli, ["profile", *arguments, *quick, "--codecs", "float32,int8", "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = load_profile(out)
    assert found.backbone == load_onnx(file).spec
    assert set(found.losses) == {"int8"}
    assert len(found.ranges) == found.num_blocks
    exact = profile_exits(OnnxEvaluator(network), digits, make_splits(digits).profiling)
    assert isinstance(found.exits, SampleExits)
    off = np.abs(found.exits.scores["entropy"] - exact.scores["entropy"])
    assert off.max() > 1e-4
    assert np.mean(found.exits.correct == exact.correct) > 0.9
    shown = CliRunner().invoke(cli, ["exits", str(file), "--data", "digits:size=16", "--seed", "0", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["exits"][0]["accuracy"] == pytest.approx(found.exits.accuracies()[0])


def test_int8_is_another_network_that_answers_mostly_alike(
    network: OnnxNetwork, digits: Dataset, tmp_path: Path
) -> None:
    small = quantized(network, digits.tensors(range(60)))
    assert small.spec.weights_sha256 != network.spec.weights_sha256
    assert sum(small.spec.block_bytes) < 0.5 * sum(network.spec.block_bytes)
    assert "int8" in small.provenance["quantized"]
    small.save(tmp_path / "int8.onnx")
    again = load_onnx(tmp_path / "int8.onnx")
    operators = {node.op_type for node in again.model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    samples = digits.tensors(range(100, 300))
    exact, rough = (session(each.model).run(["label_4"], {"cut_0": samples})[0] for each in (network, again))
    assert np.mean(exact == rough) > 0.9
    assert not np.array_equal(
        session(network.model).run(["cut_4"], {"cut_0": samples})[0],
        session(again.model).run(["cut_4"], {"cut_0": samples})[0],
    )


def test_a_quantized_network_leaves_the_one_it_was_made_of_alone(network: OnnxNetwork, digits: Dataset) -> None:
    before = network.model.SerializeToString(deterministic=True)
    quantized(network, digits.tensors(range(3)))
    assert network.model.SerializeToString(deterministic=True) == before


# -- files -----------------------------------------------------------------------------------------


def test_an_export_beside_its_checkpoint_is_made_anew_only_for_other_weights(file: Path, tmp_path: Path) -> None:
    mine, beside = tmp_path / "net.safetensors", tmp_path / "net.safetensors.onnx"
    mine.write_bytes(file.with_suffix("").read_bytes())
    beside.write_bytes(file.read_bytes())
    written = beside.stat().st_mtime_ns
    assert exported(mine) == beside
    assert beside.stat().st_mtime_ns == written
    save_checkpoint(build("resnet8", in_channels=1, num_classes=10, input_size=16, seed=9), mine)
    exported(mine)
    assert load_onnx(beside).spec.weights_sha256 == load_checkpoint(mine).spec().weights_sha256


def test_an_export_goes_to_the_cache_where_nothing_can_be_written_beside_its_checkpoint(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    mine = tmp_path / "in/net.safetensors"
    mine.write_bytes(file.with_suffix("").read_bytes())
    (tmp_path / "in/net.safetensors.onnx").mkdir()  # keeps root off too, who may write into any folder
    made = exported(mine)
    assert made == tmp_path / f"cache/portend/{hashlib.sha256(mine.read_bytes()).hexdigest()}.onnx"
    assert load_onnx(made).spec.weights_sha256 == load_checkpoint(mine).spec().weights_sha256
    written = made.stat().st_mtime_ns
    assert exported(mine) == made
    assert made.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "is not a complete ONNX file|damaged"),
        (lambda data: b"nonsense", "not a complete ONNX file|not a network of Portend"),
        (lambda data: b"", "not a network of Portend"),
        (lambda data: data.replace(b'"version": 1', b'"version": 7'), "version 7"),
    ],
)
def test_a_damaged_file_is_refused(damage: object, message: str, file: Path, tmp_path: Path) -> None:
    assert callable(damage)
    (tmp_path / "bad.onnx").write_bytes(damage(file.read_bytes()))
    with pytest.raises(StorageError, match=message):
        load_onnx(tmp_path / "bad.onnx")


def test_changed_weights_are_noticed(network: OnnxNetwork, file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    weights = bytearray(model.graph.initializer[0].raw_data)
    weights[0] ^= 1
    model.graph.initializer[0].raw_data = bytes(weights)
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StorageError, match="digest differs"):
        load_onnx(tmp_path / "bad.onnx")


def hand_made(*nodes: onnx.NodeProto, domain: str = "") -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    outputs = [value(f"cut_{cut}", TensorProto.FLOAT, [1, 4]) for cut in (1, 2)]
    outputs += [value("label_2", TensorProto.INT64, [1])]
    outputs += [value(f"{criterion}_2", TensorProto.DOUBLE, [1]) for criterion in CRITERIA]
    graph = helper.make_graph(list(nodes), "hand", [value("cut_0", TensorProto.FLOAT, [1, 4])], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 20)])


TWO = BackboneSpec(
    name="two", block_names=("a", "b"), num_classes=4, cut_shapes=((4,), (4,), (4,)), exits=(2,), weights_sha256="0"
)


def test_blocks_that_share_more_than_one_tensor_are_refused() -> None:
    node = helper.make_node
    exits = [node("ArgMax", ["cut_2"], ["label_2"], axis=1, keepdims=0)]
    exits += [node("Identity", ["cut_2"], [f"{criterion}_2"]) for criterion in CRITERIA]
    good = hand_made(node("Relu", ["cut_0"], ["cut_1"]), node("Relu", ["cut_1"], ["cut_2"]), *exits)
    OnnxNetwork(good, TWO)
    across = hand_made(
        node("Relu", ["cut_0"], ["inner"]),
        node("Neg", ["inner"], ["cut_1"]),
        node("Add", ["cut_1", "inner"], ["cut_2"]),
        *exits,
    )
    with pytest.raises(InvalidValue, match="both sides of the cut 1"):
        OnnxNetwork(across, TWO)
    past = hand_made(node("Relu", ["cut_0"], ["cut_1"]), node("Neg", ["cut_0"], ["cut_2"]), *exits)
    with pytest.raises(InvalidValue, match="cut 2 is made of"):
        OnnxNetwork(past, TWO)
    with pytest.raises(InvalidValue, match="operators of strange"):
        OnnxNetwork(hand_made(node("Relu", ["cut_0"], ["cut_1"]), *exits, domain="strange"), TWO)
    with pytest.raises(InvalidValue, match="lacks"):
        OnnxNetwork(good, BackboneSpec(**{**{f: getattr(TWO, f) for f in TWO.__slots__}, "exits": None}))


def test_a_network_does_not_read_other_files(network: OnnxNetwork, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(InvalidValue, match="one file"):
        OnnxNetwork(model, network.spec)


# -- who runs what ---------------------------------------------------------------------------------


def test_an_executor_takes_its_own_kind_of_file(checkpoint: Path, file: Path) -> None:
    with pytest.raises(InvalidValue, match=r"runs a network in a file \*\.onnx"):
        make_executor(checkpoint, ONNX)
    with pytest.raises(InvalidValue, match=r"runs a network in a file \*\.safetensors"):
        make_executor(file, Execution())


@pytest.mark.parametrize("processor", ["abacus", "cuda:99", "cpu:x"])
def test_an_unknown_processor_is_refused(processor: str, checkpoint: Path, file: Path) -> None:
    with pytest.raises(DeploymentError, match="processor"):
        make_executor(checkpoint, Execution(processor=processor))
    if processor != "cpu:x":
        with pytest.raises(DeploymentError, match="processor"):
            make_executor(file, Execution(executor="onnxruntime", processor=processor)).partition(0, 1, branch=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"executor": "abacus"}, "an executor is one of"),
        ({"threads": 0}, "at least one compute thread"),
        ({"threads": True}, "at least one compute thread"),
        ({"precision": "int8"}, "a precision is one of"),
        ({"executor": "onnxruntime", "precision": "bfloat16"}, "number format of the network's file"),
        ({"processor": ""}, "a processor has a name"),
    ],
)
def test_executions_without_meaning_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        Execution(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plan(backbone: Backbone, digits: Dataset) -> Plan:
    """Two tiers with an early exit that about half of the samples take."""
    with torch.inference_mode():
        entropies = score(backbone(torch.from_numpy(digits.tensors(range(SAMPLES))))[1])
    between = float(entropies.sort().values[SAMPLES // 2 - 1 : SAMPLES // 2 + 1].mean())
    return Plan(cuts=(2, 4), placement=(0, 1), thresholds=(between,), codecs=("encoded", "float32"))


@pytest.fixture(scope="module")
def answers(backbone: Backbone, digits: Dataset, plan: Plan) -> tuple[list[int], list[int]]:
    """Exit index and label of each sample, by PyTorch alone."""
    with torch.inference_mode():
        _, early, _, last = backbone(torch.from_numpy(digits.tensors(range(SAMPLES))))
    leaves = score(early) < plan.thresholds[0]
    labels = torch.where(leaves, early.argmax(dim=1), last.argmax(dim=1))
    return (1 - leaves.int()).tolist(), labels.tolist()


def test_tiers_may_run_different_executors(
    checkpoint: Path, digits: Dataset, plan: Plan, answers: tuple[list[int], list[int]]
) -> None:
    with Deployment(
        chain(2), checkpoint, digits.decoder, executions=(ONNX, Execution(threads=2)), emulation="none"
    ) as running:
        running.load_samples(list(digits.encoded[:SAMPLES]), digits.labels[:SAMPLES])
        running.deploy(plan)
        measured = running.run()
    assert measured.exit_index.tolist() == answers[0]
    assert measured.label.tolist() == answers[1]
    assert measured.provenance["tier t0"] == "onnxruntime on cpu, 1 thread"
    assert measured.provenance["tier t1"] == "torch on cpu, 2 threads"
    with pytest.raises(InvalidValue, match="each of the 2 tiers has its execution"):
        Deployment(chain(2), checkpoint, digits.decoder, executions=(ONNX,))


def test_the_fastest_execution_is_measured(checkpoint: Path, digits: Dataset) -> None:
    first, second = time_executions(checkpoint, digits, (Execution(), ONNX), turns=2, repeats=3)
    assert 0 < first.median_s <= second.median_s
    assert {first.execution, second.execution} == {Execution(), ONNX}
    assert first.quartiles_s[0] <= first.median_s <= first.quartiles_s[1]


# -- without PyTorch -------------------------------------------------------------------------------


def needed(extra: str) -> Iterator[Distribution]:
    """The distributions that `pip install portend[extra]` brings, Portend first."""
    waiting, seen = [("portend", extra)], set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found = distribution(name)
        yield found
        for line in found.requires or ():
            asked = Requirement(line)
            if asked.marker is None or asked.marker.evaluate({"extra": wanted}):
                waiting += [(asked.name, each) for each in ("", *asked.extras)]


def bare_venv(folder: Path, extra: str) -> Path:
    """A virtual environment with what the extra declares and nothing else; returns its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    source = Path(__file__).parents[1] / "src" / "portend"
    (packages / "portend").symlink_to(source)
    for each in needed(extra):
        for file in each.files or ():
            top = file.parts[0]
            here = Path(str(each.locate_file(top)))
            if top not in ("..", "__pycache__") and here.exists() and not (packages / top).exists():
                (packages / top).symlink_to(here)
    return folder / "bin" / "python"


def test_a_plan_runs_where_there_is_no_torch(
    file: Path, digits: Dataset, plan: Plan, answers: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    python = bare_venv(tmp_path / "venv", "runtime")
    missing = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in missing.stderr
    script = """
import json, sys
from pathlib import Path
from portend.values.execution import Execution
from portend.data.decoding import decoder_from_dict
from portend.values.plan import Plan
from portend.testbed.deployment import Deployment
from portend.io.storage import load_profile
from portend.values.topology import Link, Tier, Topology
asked = json.loads(Path(sys.argv[1]).read_text())
samples = [bytes.fromhex(each) for each in asked["samples"]]
link = Link(bandwidth_bps=1e9, propagation_delay_s=0.0)
places = Topology(name="two", tiers=(Tier(name="a", device="d"), Tier(name="b", device="d")), links=(link,))
onnx = Execution(executor="onnxruntime")
with Deployment(places, asked["network"], decoder_from_dict(asked["decoder"]), executions=(onnx, onnx)) as running:
    running.load_samples(samples, [0] * len(samples))
    running.deploy(Plan.from_dict(asked["plan"]))
    measured = running.run()
assert "torch" not in sys.modules
print(json.dumps([measured.exit_index.tolist(), measured.label.tolist()]))
"""
    asked = {
        "samples": [data.hex() for data in digits.encoded[:SAMPLES]],
        "network": str(file),
        "decoder": digits.decoder.to_dict(),
        "plan": plan.to_dict(),
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [python, "-c", script, str(tmp_path / "asked.json")],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert tuple(json.loads(done.stdout)) == answers
