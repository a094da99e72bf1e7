"""Limits of control groups, nested ones too: of real groups where this process may make some, and of trees of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from portend.controlgroups import cpu_quota, groups, memory_bytes, mounts

MIB = 1 << 20


def tree(place: Path, groups: str, mountinfo: str, files: dict[str, str]) -> Path:
    """A folder like /proc/self, with mounts below ``place``."""
    proc = place / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(mountinfo.replace("@", str(place)))
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return proc


def test_the_least_limit_on_the_way_up_counts_by_version_2(tmp_path: Path) -> None:
    proc = tree(
        tmp_path,
        "0::/system.slice/agents.slice/agent.service\n",
        "30 23 0:26 / @/cg rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        {
            "cg/system.slice/memory.max": "max\n",
            "cg/system.slice/agents.slice/memory.max": f"{64 * MIB}\n",
            "cg/system.slice/agents.slice/agent.service/memory.max": f"{100 * MIB}\n",
            "cg/system.slice/cpu.max": "150000 100000\n",
            "cg/system.slice/agents.slice/agent.service/cpu.max": "max 100000\n",
        },
    )
    assert memory_bytes(proc) == 64 * MIB
    assert cpu_quota(proc) == 1.5


def test_the_least_limit_on_the_way_up_counts_by_version_1(tmp_path: Path) -> None:
    proc = tree(
        tmp_path,
        "5:memory:/a/b\n4:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n",
        "31 23 0:1 / @/cg rw - tmpfs tmpfs rw\n"
        "32 31 0:2 / @/cg/memory rw - cgroup cgroup rw,memory\n"
        "33 31 0:3 / @/cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "34 31 0:4 / @/cg/unified rw - cgroup2 cgroup2 rw\n",
        {
            "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/memory/a/memory.limit_in_bytes": f"{32 * MIB}\n",
            "cg/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/cpu/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
            "cg/cpu/a/cpu.cfs_quota_us": "5000\n",
            "cg/cpu/a/cpu.cfs_period_us": "10000\n",
        },
    )
    assert memory_bytes(proc) == 32 * MIB
    assert cpu_quota(proc) == 0.5


@pytest.mark.parametrize(("group", "root"), [("/docker/c1/agent", "/docker/c1"), ("/../other", "/"), ("/x", "/y")])
def test_a_container_that_is_shown_a_part_of_the_tree_sees_its_limits(tmp_path: Path, group: str, root: str) -> None:
    place = tmp_path / "a place"  # written as \040 in mountinfo
    proc = tree(
        tmp_path, f"0::{group}\n", f"30 23 0:26 {root} @/a\\040place rw - cgroup2 cgroup2 rw\n",
        {"a place/memory.max": f"{8 * MIB}\n", "a place/cpu.max": "20000 100000\n"},
    )  # fmt: skip
    assert [mount.place for mount in mounts(proc)] == [place]
    assert list(groups("memory", proc))[-1] == place
    assert (memory_bytes(proc), cpu_quota(proc)) == (8 * MIB, 0.2)


def test_without_control_groups_the_machine_s_memory_counts(tmp_path: Path) -> None:
    whole = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    assert (memory_bytes(tmp_path), cpu_quota(tmp_path)) == (whole, None)


@pytest.fixture
def nested() -> Iterator[list[Path]]:
    """Folders of a real group two levels down, whose parent has limits: 1 GiB and half a core."""
    name, made, inner = f"portend-test-{os.getpid()}", [], []
    limits = {
        "memory": {"memory.limit_in_bytes": str(1 << 30), "memory.max": str(1 << 30)},
        "cpu": {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "5000", "cpu.max": "5000 10000"},
    }
    try:
        for controller, files in limits.items():
            own = next(groups(controller), None)
            if own is None:
                pytest.skip(f"no control groups of {controller} here")
            outer = own / name
            for folder in (outer, outer / "inner"):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            there = {file: text for file, text in files.items() if (outer / file).exists()}
            if not there:
                pytest.skip(f"{outer} has no limits of {controller}")
            for file, text in there.items():
                (outer / file).write_text(text)
            inner.append(outer / "inner")
        yield inner
    except OSError as error:
        pytest.skip(f"no control groups may be made here ({error})")
    finally:
        for folder in reversed(made):
            folder.rmdir()


def test_limits_of_real_nested_groups_are_seen(nested: list[Path]) -> None:
    program = (
        "import os, sys\n"
        "for folder in sys.argv[1:]: open(folder + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from portend.controlgroups import memory_bytes\n"
        "from portend.profiling.environment import describe_machine\n"
        "print(memory_bytes(), describe_machine()['cpu quota'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *nested], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(float(1 << 30)), "0.5", "cores"]
