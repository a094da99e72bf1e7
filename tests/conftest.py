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
