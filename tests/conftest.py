"""What tests of several files share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from service_hosts import Workload


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """A small network, samples and plans over three tiers."""
    from service_hosts import make_workload

    return make_workload(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of the tiers and of the operator."""
    from portend.service.keys import OPERATOR, make_keys
    from service_hosts import NAMES

    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, [*NAMES, OPERATOR])
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for digits of 16 x 16 pixels, whose samples leave at several exits; nothing was trained."""
    import torch

    from portend.networks.checkpoint import save_checkpoint
    from portend.networks.zoo import build

    path = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    backbone = build("resnet8", in_channels=1, num_classes=10, input_size=16)
    with torch.no_grad():
        for branch in backbone.branches:
            for parameter in branch.parameters():
                parameter.mul_(10)  # untrained scores lie close together; spread them
    save_checkpoint(backbone, path)
    return path


@pytest.fixture(scope="session")
def network(checkpoint: Path) -> Path:
    """The same network, for agents that start at once: onnxruntime needs no PyTorch."""
    from portend.networks.exporting import exported

    return exported(checkpoint)
