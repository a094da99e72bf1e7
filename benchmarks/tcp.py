"""What TCP does to the time of a message, predicted with and without slow start, and measured in network namespaces.

For each size and each path (neighbors, and from end to end) one message

    new          is the first of a connection (its handshake is not counted),
    warm         follows 50 ms after one that filled the path four times over,
    idle         follows that one after a pause (a second, unless --idle says otherwise),

by the kernel's own windows (an initial window of 10 packets, slow start after idling) with each congestion control,
and by open windows (`open`, as in every testbed whose topology does not ask for slow start). A message's time goes from
the call that sends it to the arrival of its last packet, as the kernel stamps it.

    python benchmarks/tcp.py measure configs/topologies/three_tier.yaml --json runs/tcp.json      # root; 20 min
    python benchmarks/tcp.py table runs/tcp.json
    python benchmarks/tcp.py figure runs/tcp.json docs/figures/tcp.svg
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from portend.analysis.compare import fit
from portend.io.forms import load_topology
from portend.io.storage import atomic_path, write_json
from portend.report.figures import CHOSEN, GRID, INK, PART_COLORS, QUIET
from portend.runtime.arrivals import receive, stamp
from portend.testbed.emulation.namespaces import Namespaces
from portend.values.topology import SlowStart, Topology

__all__ = ["connection", "draw", "main", "message_s", "predicted_s", "summaries"]

SIZES: Final = (300, 3_000, 12_000, 30_000, 65_000, 150_000, 400_000, 1_000_000, 4_000_000)
STATES: Final = ("new", "warm", "idle")
_WARM_PAUSE_S: Final = 0.05
_PATIENCE_S: Final = 60.0
_CHUNK: Final = 1 << 20
_START: Final = {True: SlowStart(), False: SlowStart(initial_window=10_000)}
"""What the term assumes of a new connection with the kernel's windows, and with open ones."""
_LOOKS: Final = {
    "cubic": ("o", PART_COLORS["transmission"]),
    "bbr": ("s", CHOSEN),
    "reno": ("^", PART_COLORS["decode"]),
    "open": ("D", PART_COLORS["dispatch"]),
}


def connection(testbed: Namespaces, start: int, end: int) -> tuple[socket.socket, socket.socket]:
    """A new TCP connection between two tiers, both ends here; what the far end receives is stamped by the kernel."""
    with testbed.inside(end):
        listener = socket.create_server((testbed.addresses[end], 0))
    with listener:
        stamp(listener)
        with testbed.inside(start):
            near = socket.socket()
        near.settimeout(_PATIENCE_S)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    far.settimeout(_PATIENCE_S)
    return near, far


def message_s(near: socket.socket, far: socket.socket, size: int) -> float:
    """Seconds from the call that sends a message to the arrival of its last packet."""
    began: list[float] = []

    def send() -> None:
        message = bytes(size)
        began.append(time.monotonic())
        near.sendall(message)

    sender = threading.Thread(target=send)
    buffer = bytearray(min(size, _CHUNK))
    sender.start()
    left, arrived = size, 0.0
    while left:
        got, arrived, _ = receive(far, buffer if left >= len(buffer) else bytearray(left))
        if not got:
            raise ConnectionResetError("the connection ended within a message")
        left -= got
    sender.join()
    return arrived - began[0]


def predicted_s(topology: Topology, size: int, start: int, end: int) -> float:
    """The model's seconds of a message between two tiers, without encoding and dispatch."""
    return float(topology.transmission_s(size)[start, end] + topology.propagation_s()[start, end])


def _filling_bytes(topology: Topology, start: int, end: int) -> int:
    """Four times what the path holds in a round trip, so that the window is no limit when it has passed."""
    slowest = min(link.bandwidth_bps for link in topology.path(start, end))
    return int(4 * slowest / 8 * 2 * topology.propagation_s()[start, end])


def _paths(topology: Topology) -> list[tuple[int, int]]:
    last = len(topology.tiers) - 1
    return [(tier, tier + 1) for tier in range(last)] + ([(0, last)] if last > 1 else [])


def measure(
    topology: Topology, control: str, sizes: Sequence[int], repeats: int, idle_s: float
) -> Iterator[dict[str, Any]]:
    """Rows of one congestion control, or of ``open`` windows, for which ``idle`` is left out."""
    slow = control != "open"
    places = replace(topology, slow_start=SlowStart() if slow else None)
    with Namespaces(places, congestion_control=control if slow else "cubic", purpose="tcp") as testbed:
        names = [tier.name for tier in topology.tiers]
        for start, end in _paths(topology):
            for size in sizes:
                taken: dict[str, list[float]] = {state: [] for state in (STATES if slow else STATES[:2])}
                for _ in range(repeats):
                    near, far = connection(testbed, start, end)
                    with near, far:
                        time.sleep(_WARM_PAUSE_S)
                        for state, found in taken.items():
                            if state != "new":
                                message_s(near, far, _filling_bytes(topology, start, end))
                                time.sleep(_WARM_PAUSE_S if state == "warm" else idle_s)
                            found.append(message_s(near, far, size))
                for state, seconds in taken.items():
                    yield {
                        "control": control,
                        "path": f"{names[start]}–{names[end]}",
                        "state": state,
                        "bytes": size,
                        "on_s": predicted_s(replace(topology, slow_start=_START[slow]), size, start, end),
                        "off_s": predicted_s(replace(topology, slow_start=None), size, start, end),
                        "measured_s": seconds,
                    }


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each congestion control and state: how the medians agree with either prediction."""
    found = []
    for control, state in dict.fromkeys((row["control"], row["state"]) for row in rows):
        chosen = [row for row in rows if (row["control"], row["state"]) == (control, state)]
        medians = [statistics.median(row["measured_s"]) for row in chosen]
        one = {"control": control, "state": state, "n": len(chosen)}
        for term in ("off", "on"):
            agreed = fit(medians, [row[f"{term}_s"] for row in chosen])
            one[term] = {"beta": agreed.beta, "mape": agreed.mape, "bias_s": agreed.bias}
        found.append(one)
    return found


def _print_tables(rows: Sequence[dict[str, Any]]) -> None:
    print("| windows | connection | n | term off: β, MAPE, bias | term on: β, MAPE, bias |\n|---|---|--:|--:|--:|")
    for one in summaries(rows):
        cells = [
            f"{one[term]['beta']:.3f}, {100 * one[term]['mape']:.1f} %, {1e3 * one[term]['bias_s']:+.1f} ms"
            for term in ("off", "on")
        ]
        print(f"| {one['control']} | {one['state']} | {one['n']} | {' | '.join(cells)} |")
    kinds = list(dict.fromkeys((row["control"], row["state"]) for row in rows))
    heads = " | ".join(f"{control}, {state}" for control, state in kinds)
    print(f"\n| path | bytes | off | on, open | on | {heads} |\n|---|{'--:|' * (4 + len(kinds))}")
    for path, size in dict.fromkeys((row["path"], row["bytes"]) for row in rows):
        here = {(r["control"], r["state"]): r for r in rows if (r["path"], r["bytes"]) == (path, size)}
        off = next(iter(here.values()))["off_s"]
        on = {control == "open": row["on_s"] for (control, _), row in here.items()}
        terms = [f"{1e3 * on[is_open]:.1f}" if is_open in on else "" for is_open in (True, False)]
        cells = [_spread(here[kind]["measured_s"]) if kind in here else "" for kind in kinds]
        print(f"| {path} | {size:,} | {1e3 * off:.1f} | {' | '.join([*terms, *cells])} |")


def _spread(seconds: Sequence[float]) -> str:
    """Median, and half of what lies between the least and the largest, in ms."""
    return f"{1e3 * statistics.median(seconds):.1f} ± {500 * (max(seconds) - min(seconds)):.1f}"


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """One-way times over sizes: a row of panels for each path, a column for each state of the connection."""
    paths = list(dict.fromkeys(row["path"] for row in rows))
    figure = Figure(figsize=(10.5, 2.9 * len(paths)), layout="constrained")
    panels: Any = figure.subplots(len(paths), len(STATES), squeeze=False, sharex=True, sharey="row")
    for down, path in enumerate(paths):
        for across, state in enumerate(STATES):
            axes = panels[down][across]
            here = [row for row in rows if (row["path"], row["state"]) == (path, state)]
            sizes = sorted({row["bytes"] for row in here if row["control"] != "open"})
            for term, dash in (("off", ":"), ("on", "-")):
                line = {row["bytes"]: 1e3 * row[f"{term}_s"] for row in here if row["control"] != "open"}
                label = f"predicted, slow start {term}"
                axes.plot(sizes, [line[size] for size in sizes], color=INK, linestyle=dash, linewidth=1.2, label=label)
            for control in dict.fromkeys(row["control"] for row in here):
                marker, color = _LOOKS[control]
                chosen = [row for row in here if row["control"] == control]
                middle = [1e3 * statistics.median(row["measured_s"]) for row in chosen]
                low = [m - 1e3 * min(row["measured_s"]) for m, row in zip(middle, chosen, strict=True)]
                high = [1e3 * max(row["measured_s"]) - m for m, row in zip(middle, chosen, strict=True)]
                axes.errorbar(
                    [row["bytes"] for row in chosen], middle, yerr=(low, high), fmt=marker, color=color, markersize=5,
                    markerfacecolor="none", linewidth=1, label="windows open" if control == "open" else control,
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            axes.set_yticks((20, 50, 100, 200, 500, 1000, 2000, 5000))
            axes.set_title(f"{path}, {'after idling' if state == 'idle' else state}", fontsize=9, color=INK)
            axes.grid(color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=QUIET, labelsize=8)
        panels[down][0].set_ylabel("one way, ms", color=INK, fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("bytes of the message", color=INK, fontsize=9)
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure; what --json already holds is kept")
    measuring.add_argument("topology")
    measuring.add_argument("--controls", default="open,cubic,bbr", help="congestion controls, and `open`")
    measuring.add_argument("--sizes", default=",".join(map(str, SIZES)), help="bytes")
    measuring.add_argument("--repeats", type=int, default=5)
    measuring.add_argument("--idle", type=float, default=1.0, help="seconds")
    measuring.add_argument("--json", type=Path, required=True)
    commands.add_parser("table", help="print the tables").add_argument("source", type=Path)
    drawing = commands.add_parser("figure", help="draw it; the same numbers give the same bytes")
    drawing.add_argument("source", type=Path)
    drawing.add_argument("out", type=Path, help="SVG, PNG or PDF")
    asked = parser.parse_args(arguments)
    if asked.command == "measure":
        topology = load_topology(asked.topology)
        rows = json.loads(asked.json.read_text(encoding="utf-8"))["rows"] if asked.json.exists() else []
        sizes = tuple(map(int, asked.sizes.split(",")))
        for control in asked.controls.split(","):
            if control in {row["control"] for row in rows}:
                continue
            rows.extend(measure(topology, control, sizes, asked.repeats, asked.idle))
            write_json({"topology": topology.name, "idle_s": asked.idle, "rows": rows}, asked.json)
        return
    rows = json.loads(asked.source.read_text(encoding="utf-8"))["rows"]
    if asked.command == "table":
        _print_tables(rows)
        return
    with mpl.rc_context({"svg.hashsalt": "portend", "svg.fonttype": "none"}), atomic_path(asked.out) as temporary:
        kind = asked.out.suffix.removeprefix(".")
        draw(rows).savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {}, dpi=150)


if __name__ == "__main__":
    main()
