"""How long messages take over emulated links, against the model's formula: TCP, one way, over the whole path.

For each size: on a connection of its own (cold), then again on that connection after a pause (warm). The model's figure
is ``Topology.transmission_s + propagation_s``; what comes on top is the kernel's and this process's share, which a
profile measures as dispatch.

    python benchmarks/testbed.py configs/topologies/three_tier.yaml --emulation namespaces
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import threading
import time
from pathlib import Path

from portend.io.forms import load_topology
from portend.testbed.emulation import EMULATIONS
from portend.testbed.emulation.base import Emulation
from portend.testbed.emulation.choose import make_emulation
from portend.testbed.emulation.namespaces import Namespaces

SIZES = (300, 12_000, 65_000, 602_000, 1_600_000)


def taken_s(emulation: Emulation, size: int, repeats: int, pause_s: float) -> tuple[list[float], list[float]]:
    """Seconds of the first message of each of ``repeats`` new connections, and of one more after a pause."""
    last = len(emulation.topology.tiers) - 1

    def inside(tier: int) -> contextlib.AbstractContextManager[None]:
        return emulation.inside(tier) if isinstance(emulation, Namespaces) else contextlib.nullcontext()

    with inside(last):
        listener = socket.create_server((emulation.host(last), 0))
    cold: list[float] = []
    warm: list[float] = []
    with listener:
        target = f"{emulation.host(last)}:{listener.getsockname()[1]}"
        host, _, port = emulation.reach({0: target, last: target})[0, last].partition(":")
        for _ in range(repeats):
            with inside(0):
                near = socket.socket()
            with near:
                near.connect((host, int(port)))
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far, _ = listener.accept()
                with far:
                    for found in (cold, warm):
                        time.sleep(pause_s)
                        found.append(_message_s(near, far, size))
    return cold, warm


def _message_s(near: socket.socket, far: socket.socket, size: int) -> float:
    sender = threading.Thread(target=near.sendall, args=(bytes(size),))
    buffer = bytearray(size)
    began = time.monotonic()
    sender.start()
    left = size
    while left:
        left -= far.recv_into(buffer, left)
    took = time.monotonic() - began
    sender.join()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology")
    parser.add_argument("--emulation", choices=EMULATIONS, default="namespaces")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="bytes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before each message")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    topology = load_topology(asked.topology)
    rows = []
    print(f"{'bytes':>9} {'formula':>10} {'cold':>21} {'warm':>21}   ms, least and median of {asked.repeats}")
    for size in map(int, asked.sizes.split(",")):
        with make_emulation(asked.emulation, topology) as emulation:
            cold, warm = taken_s(emulation, size, asked.repeats, asked.pause)
        formula = float(topology.transmission_s(size)[0, -1] + topology.propagation_s()[0, -1])
        rows.append({"bytes": size, "formula_s": formula, "cold_s": cold, "warm_s": warm})
        figures = [1e3 * seconds for found in (cold, warm) for seconds in (min(found), statistics.median(found))]
        print(f"{size:>9} {1e3 * formula:>10.2f} " + " ".join(f"{figure:>10.2f}" for figure in figures))
    if asked.json:
        asked.json.write_text(json.dumps({"topology": topology.name, "emulation": asked.emulation, "rows": rows}))


if __name__ == "__main__":
    main()
