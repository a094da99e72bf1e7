"""What a measurement was taken on: processor, clock, libraries, load."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

from portend.controlgroups import cpu_quota
from portend.values.execution import available_cores

__all__ = ["cpu_model", "describe_machine", "load_average"]

_LIBRARIES = ("portend", "numpy", "torch", "onnxruntime", "pyzmq", "msgpack")


def describe_machine() -> dict[str, str]:
    """Return facts by name: processor, its governor, cores that may be used, quota, clock, libraries."""
    clock, quota = time.get_clock_info("monotonic"), cpu_quota()
    found = {
        "cpu": cpu_model(),
        "governor": _governor(),
        "cores": f"{os.cpu_count()}, of which may be used {', '.join(map(str, available_cores()))}",
        "cpu quota": "" if quota is None else f"{quota:g} cores",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "clock": f"{clock.implementation}, resolution {1e9 * clock.resolution:g} ns, steps of {_step_ns()} ns",
    }
    return {name: value for name, value in found.items() if value}


def load_average() -> str:
    """Return the load average of the last minute, empty where the system tells none."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""


def cpu_model() -> str:
    """Return the processor's name."""
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _governor() -> str:
    """How the kernel sets the processor's speed; empty where it does not tell, as on most virtual machines."""
    return _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def _step_ns(times: int = 1000) -> int:
    """Least difference of two readings of the clock that are not equal."""
    readings = [time.monotonic_ns() for _ in range(times)]
    return min((b - a for a, b in pairwise(readings) if b > a), default=0)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
