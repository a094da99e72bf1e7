"""Backbones, exits, the zoo and checkpoints."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from portend.data.sources import load_dataset
from portend.errors import InvalidValue, StorageError
from portend.networks import zoo
from portend.networks.backbone import Backbone
from portend.networks.checkpoint import load_checkpoint, read_provenance, save_checkpoint
from portend.networks.evaluators import TorchEvaluator
from portend.networks.resnet import load_akamaster_weights, load_portend_weights
from portend.networks.scores import normalized_entropy
from portend.networks.scoring import score_samples
from portend.values.plan import takes_exit


def shared_data(name: str) -> Path:
    """Return a file or folder of the shared data, or skip the test."""
    root = Path(os.environ.get("PORTEND_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"{root / name} is absent; set PORTEND_DATA to the folder with the shared data")
    return root / name


@pytest.fixture
def small() -> Backbone:
    return zoo.build("resnet8", in_channels=1, input_size=8).eval()


# --- backbone ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet8", 4), ("resnet20", 10), ("resnet32", 16), ("resnet56", 28), ("resnet110", 55)]
)
def test_block_counts_are_the_papers(name: str, blocks: int) -> None:
    backbone = zoo.build(name)
    assert len(backbone.blocks) == len(backbone.branches) == blocks


def test_spec_lists_the_shape_at_every_cut() -> None:
    spec = zoo.build("resnet20").spec()
    assert spec.cut_shapes == ((3, 32, 32), *[(16, 32, 32)] * 4, *[(32, 16, 16)] * 3, *[(64, 8, 8)] * 3)
    assert spec.block_names[:2] == ("stem", "stage1.1")
    assert spec.num_classes == 10


def test_spec_keeps_weights_and_mode(small: Backbone) -> None:
    small.train()
    before = small.spec().weights_sha256
    assert small.spec().weights_sha256 == before
    assert small.training


def test_digest_follows_every_bit_of_the_weights(small: Backbone) -> None:
    before = small.spec().weights_sha256
    weight = small.branches[-1].linear.weight  # type: ignore[union-attr]
    assert isinstance(weight, torch.Tensor)
    weight.data[0, 0] = torch.nextafter(weight.data[0, 0], torch.tensor(math.inf))
    assert small.spec().weights_sha256 != before


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
@pytest.mark.parametrize("cuts", [(0, 4), (0, 1, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4)])
def test_segments_recompose_bit_for_bit(shortcut: str, cuts: tuple[int, ...]) -> None:
    backbone = zoo.build("resnet8", input_size=12, shortcut=shortcut).eval()
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = backbone(x)
        for start, end in pairwise(cuts):
            x, logits = backbone.segment(start, end)(x)
            assert torch.equal(logits, whole[end - 1])


def test_segment_without_branch_returns_features_only(small: Backbone) -> None:
    with torch.inference_mode():
        features, logits = small.segment(0, 2, branch=False)(torch.zeros(1, 1, 8, 8))
    assert logits is None
    assert tuple(features.shape[1:]) == small.spec().cut_shapes[2]


def test_segment_shares_weights(small: Backbone) -> None:
    own = {parameter.data_ptr() for parameter in small.parameters()}
    assert {parameter.data_ptr() for parameter in small.segment(1, 3).parameters()} <= own


@pytest.mark.parametrize(("start", "end"), [(0, 0), (2, 1), (-1, 2), (0, 5), (4, 5)])
def test_segment_refuses_cuts_out_of_order(small: Backbone, start: int, end: int) -> None:
    with pytest.raises(InvalidValue, match=f"got {start}:{end}"):
        small.segment(start, end)


def test_each_block_needs_a_branch() -> None:
    with pytest.raises(InvalidValue, match="1 blocks and 0 branches"):
        Backbone(
            name="x",
            blocks={"a": torch.nn.Identity()},
            branches=[],
            num_classes=2,
            input_shape=(1, 4, 4),
            architecture={},
        )


# --- exits ------------------------------------------------------------------------------------


def test_entropy_of_hand_worked_distributions() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25] * 4, [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    logits = probabilities.clamp_min(1e-300).log()
    expected = [0.5, 1.0, -(0.7 * math.log(0.7) + 0.3 * math.log(0.1)) / math.log(4)]
    assert normalized_entropy(logits).numpy() == pytest.approx(expected, abs=1e-7)


def test_entropy_is_float32_within_0_and_1_for_any_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for scale in (0.0, 1e-4, 1.0, 50.0):
            score = normalized_entropy((torch.randn(64, 10, generator=generator) * scale).to(dtype))
            assert score.dtype == torch.float32
            assert score.shape == (64,)
            assert bool(((score >= 0) & (score <= 1)).all())


def test_zero_times_log_zero_is_zero() -> None:
    assert normalized_entropy(torch.tensor([[1e4, 0.0, -1e4], [0.0, -3e38, 3e38]])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_never_leaves(bad: float) -> None:
    score = normalized_entropy(torch.tensor([[bad, 0.0, 1.0], [9.0, 0.0, 0.0]])).numpy()
    assert takes_exit(score, 1.0).tolist() == [False, True]


def test_entropy_needs_two_classes() -> None:
    with pytest.raises(InvalidValue, match="two classes"):
        normalized_entropy(torch.zeros(3, 1))


# --- zoo --------------------------------------------------------------------------------------


def test_zoo_names_its_networks() -> None:
    assert {"resnet20", "resnet110"} <= set(zoo.names())
    with pytest.raises(InvalidValue, match=r"resnet20, .*but got 'resnet21'"):
        zoo.build("resnet21")
    with pytest.raises(InvalidValue, match=r"no option colour.*in_channels"):
        zoo.build("resnet8", colour=1)


@pytest.mark.parametrize(
    "options", [{"num_classes": 1}, {"in_channels": 0}, {"input_size": 2}, {"shortcut": "none"}, {"num_classes": "ten"}]
)
def test_zoo_refuses_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(options))):
        zoo.build("resnet8", **options)


def test_the_seed_fixes_the_weights_and_leaves_the_callers_random_state() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (zoo.build("resnet8", seed=seed).spec().weights_sha256 for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_architecture_rebuilds_the_network(small: Backbone) -> None:
    again = zoo.build(small.name, **json.loads(json.dumps(small.architecture)))
    assert again.spec() == small.spec()


def test_decoding_needs_no_torch() -> None:
    code = "import sys, portend.data.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- published weights ------------------------------------------------------------------------


def jpeg_accuracy(backbone: Backbone, *, imagenet: bool) -> NDArray[np.float64]:
    normalize = ":normalize=imagenet" if imagenet else ""
    dataset = load_dataset(f"parquet:{shared_data('cifar10')}{normalize}")
    assert dataset.own_test is not None
    return np.asarray(score_samples(TorchEvaluator(backbone), dataset, dataset.own_test[:500])[1].mean(axis=0))


def test_the_authors_weights_reach_their_accuracy() -> None:
    backbone = zoo.build("resnet20")
    load_portend_weights(backbone, shared_data("weights/portend_resnet20_full_notfrozen.safetensors"))
    accuracy = jpeg_accuracy(backbone, imagenet=False)
    assert 0.74 < accuracy[-1] < 0.84
    assert accuracy[0] < 0.6 < accuracy[6]


def test_akamaster_weights_reach_their_accuracy_at_the_last_branch() -> None:
    backbone = zoo.build("resnet20", shortcut="pad")
    load_akamaster_weights(backbone, shared_data("weights/akamaster_resnet20.safetensors"))
    assert 0.76 < jpeg_accuracy(backbone, imagenet=True)[-1] < 0.90


@pytest.mark.parametrize("depth", [14, 20, 32])
def test_a_network_grown_from_a_shallower_one_computes_the_same(depth: int, tmp_path: Path) -> None:
    shallow = zoo.build("resnet14", shortcut="pad", input_size=8, seed=5)
    for module in shallow.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
    single = {name: tensor for name, tensor in shallow.state_dict().items() if "branches" not in name}
    published = {re.sub(r"^blocks\.0\.(conv|bn)", r"\g<1>1", name): tensor for name, tensor in single.items()}
    for index in range(1, 7):
        layer = f"layer{(index - 1) // 2 + 1}.{(index - 1) % 2}."
        published = {name.replace(f"blocks.{index}.", layer): tensor for name, tensor in published.items()}
    last = shallow.branches[-1].get_submodule("linear").state_dict()
    published |= {f"linear.{name}": tensor for name, tensor in last.items()}
    torch.save(published, tmp_path / "resnet14.pth")

    deep = zoo.build(f"resnet{depth}", shortcut="pad", input_size=8, weights=str(tmp_path / "resnet14.pth"))
    x = torch.randn(3, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(deep.eval()(x)[-1], shallow.eval()(x)[-1])


def test_weights_of_another_network_are_refused() -> None:
    path = shared_data("weights/portend_resnet20_full_frozen.safetensors")
    for backbone in (
        zoo.build("resnet32"),
        zoo.build("resnet20", num_classes=7),
        zoo.build("resnet20", shortcut="pad"),
    ):
        before = backbone.spec().weights_sha256
        with pytest.raises(StorageError, match=r"portend_resnet20_full_frozen.*tensors differ"):
            load_portend_weights(backbone, path)
        assert backbone.spec().weights_sha256 == before


# --- checkpoints ------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(small: Backbone, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_checkpoint(small, path, provenance={"dataset": "none"})
    return path


def test_checkpoint_round_trip(small: Backbone, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    assert loaded.spec() == small.spec()
    assert loaded.architecture == small.architecture
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert read_provenance(checkpoint) == {"dataset": "none"}
    x = torch.rand(2, 1, 8, 8)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(loaded(x), small(x), strict=True))


def test_a_failed_save_keeps_the_old_file(small: Backbone, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    before = checkpoint.read_bytes()
    monkeypatch.setattr("portend.networks.tensorfile.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(small, checkpoint)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_saving_where_no_folder_can_be_says_so(small: Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*net\.safetensors"):
        save_checkpoint(small, tmp_path / "file" / "net.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no file .*net\.safetensors"):
        load_checkpoint(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("keep", "what"),
    [(0, "empty"), (4, "binary data"), (100, "binary data"), (-1, "not a complete .*copy it again")],
)
def test_a_truncated_file_is_refused(checkpoint: Path, keep: int, what: str) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(StorageError, match=rf"net\.safetensors is {what}"):
        load_checkpoint(checkpoint)


def test_a_flipped_bit_is_noticed(checkpoint: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    data[-100] ^= 1
    checkpoint.write_bytes(data)
    with pytest.raises(StorageError, match="digest differs"):
        load_checkpoint(checkpoint)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(StorageError, match=r"foreign\.safetensors is weights of another program"):
        load_checkpoint(path)


def rewrite(path: Path, **changes: object) -> None:
    """Rewrite fields of the JSON document in a checkpoint, leaving its tensors alone."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    document = {**json.loads(metadata["portend"]), **changes}
    save_file(load_file(path), path, metadata={**metadata, "portend": json.dumps(document)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"version 2, this Portend reads version 1"),
        ({"kind": "training-state"}, "is the state of an unfinished training"),
        ({"name": "resnet9000"}, r"cannot build.*resnet9000"),
        ({"name": "resnet14"}, r"does not fit resnet14.*tensors differ"),
        ({"architecture": {"num_classes": 10**9}}, "does not fit resnet8"),
        ({"architecture": None}, "lacks architecture"),
    ],
)
def test_a_wrong_header_is_refused(checkpoint: Path, changes: dict[str, object], message: str) -> None:
    rewrite(checkpoint, **changes)
    with pytest.raises(StorageError, match=message):
        load_checkpoint(checkpoint)
