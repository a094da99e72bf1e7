"""What a service loses when its agents are killed, how soon one that is back works again, and what it carries.

Real processes on this machine, encrypted connections. All samples are of a small network; see --network for another.

    python benchmarks/faults.py soak --samples 10000 --kills 20
    python benchmarks/faults.py switch --times 10
    python benchmarks/faults.py throughput --network NET.onnx
    python benchmarks/faults.py flood --connections 1
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from portend.data.decoding import decoder_from_dict  # noqa: E402
from portend.data.encodings import png  # noqa: E402
from portend.networks.onnxfile import load_onnx  # noqa: E402
from portend.runtime.executors import make_executor  # noqa: E402
from portend.runtime.protocol import Header, pack_header, wire_bytes  # noqa: E402
from portend.service.keys import OPERATOR, Keys, load_keys, make_keys  # noqa: E402
from portend.service.operator import Agents  # noqa: E402
from portend.service.peers import call  # noqa: E402
from portend.testbed.emulation.relay import Relay, Route  # noqa: E402
from portend.values.execution import Execution  # noqa: E402
from portend.values.plan import Plan  # noqa: E402
from portend.values.topology import Link  # noqa: E402
from service_hosts import NAMES, Hosts, Stream, Workload, make_workload, until, whole  # noqa: E402

LIMITS: dict[str, Any] = {"retry_s": 3.0, "deadline_s": 120.0, "attempts": 50}


def secured(folder: Path) -> Keys:
    make_keys(folder / "keys", [*NAMES, OPERATOR])
    return load_keys(folder / "keys", OPERATOR)


def soak(folder: Path, samples: int, kills: int, seed: int, rate: float) -> dict[str, Any]:
    """Kill random agents at random moments while samples flow, and start them again half a second later."""
    chance, work, keys = random.Random(seed), make_workload(folder), secured(folder)
    rows: list[dict[str, float]] = []
    killed: list[str] = []
    with Hosts(folder, keys=folder / "keys") as hosts, Agents(hosts.topology, keys, patience_s=60) as agents:
        work.release(agents, **LIMITS)
        whole(agents)
        began = time.monotonic()
        with Stream(agents, work, "soak", most=samples, pace_s=1 / rate) as stream:
            for number in range(kills):
                due = int((number + chance.uniform(0.2, 0.8)) * samples / kills)
                while len(stream.got) < due:
                    time.sleep(0.01)
                name = chance.choice(NAMES)
                killed.append(name)
                hosts.kill(name)
                time.sleep(0.5)
                rows.append(recovery(hosts, agents, stream, name))
                print(f"  {number + 1:2d} {name:<6} {rows[-1]}", flush=True)
            stream.finish()
        seconds = time.monotonic() - began
        counts = stream.counts()
        submitter = stream.submitter
        assert submitter is not None
        return {
            "samples": stream.given,
            "seconds": seconds,
            "kills": {name: killed.count(name) for name in NAMES},
            "lost": stream.given - len(counts),
            "doubled": sum(count - 1 for count in counts.values()),
            "failed": sum(bool(answer.failed) for answer in stream.got),
            "sent more than once": sum(answer.attempts > 1 for answer in stream.got),
            "given to the source again": submitter.given_again,
            "recovery_s": {
                key: {"median": statistics.median(values), "most": max(values)}
                for key in ("from start", "from listening")
                if (values := [row[key] for row in rows if key in row])
            },
        }


def recovery(hosts: Hosts, agents: Agents, stream: Stream, name: str) -> dict[str, float]:
    """Start an agent; seconds from then, and from when it listens, to the first answer in which it took part."""
    before = hosts.log(name).count("listening")
    started, done = time.monotonic(), len(stream.got)
    hosts.start(name)
    until(lambda: hosts.log(name).count("listening") > before, 120)
    listening = time.monotonic()

    def took_part() -> float | None:
        for answer, moment in zip(stream.got[done:], stream.moments[done:], strict=False):
            if answer.plan % 256 == 0 and moment > listening - 0.02:
                return moment
        return None

    if not stream.alive:
        return {}
    until(lambda: took_part() is not None or not stream.alive, 120)
    moment = took_part()
    if moment is None:
        return {}
    return {"from start": moment - started, "from listening": max(0.0, moment - listening)}


def switch(folder: Path, times: int) -> dict[str, Any]:
    """Deploy again and again while samples flow: the longest gap between answers around each activation."""
    work, keys = make_workload(folder), secured(folder)
    with Hosts(folder, keys=folder / "keys") as hosts, Agents(hosts.topology, keys, patience_s=60) as agents:
        work.release(agents, **LIMITS)
        whole(agents)
        spans, releases = [], {}
        with Stream(agents, work, "switch") as stream:
            time.sleep(2)
            quiet = gaps(stream.moments)
            for number in range(times):
                began, place = time.monotonic(), len(stream.moments)
                plans = work.plans[number % 2 :] + work.plans[: number % 2]
                release = work.release(agents, plans, **LIMITS)
                releases[release.version] = plans
                while stream.got[-1].plan // 256 != release.version:
                    time.sleep(0.01)
                first = next(
                    index for index in range(place, len(stream.got)) if stream.got[index].plan // 256 == release.version
                )
                at = stream.moments[first]
                around = [moment for moment in stream.moments if at - 0.25 < moment < at + 0.25]
                loading = [moment for moment in stream.moments if began < moment < at]
                spans.append({"switch_s": max(gaps(around)), "loading_s": max(gaps(loading), default=0.0)})
                time.sleep(1)
    stream.check(releases)
    return {
        "switches": times,
        "gap without a switch, s": {"median": statistics.median(quiet), "most in 2 s": max(quiet)},
        "gap around a switch, s": {
            "median": statistics.median(row["switch_s"] for row in spans),
            "most": max(row["switch_s"] for row in spans),
        },
        "gap while loading, s": {
            "median": statistics.median(row["loading_s"] for row in spans),
            "most": max(row["loading_s"] for row in spans),
        },
    }


def gaps(moments: list[float]) -> list[float]:
    return np.diff(moments).tolist()


def throughput(folder: Path, network: Path | None, samples: int, window: int, batch: int) -> dict[str, Any]:
    """Samples per second with a window, against the bottleneck: a tier that computes, then a link of 10 Mbit/s.

    With ``batch`` above 1 the tier that computes is measured again, with batches of at most so many samples.
    """
    work, keys = workload(folder, network), secured(folder)
    last = work.plans[0].cuts[-1]
    found = {}
    alone = Plan(cuts=(last,), placement=(0,), codecs=(None,))
    with Hosts(folder, ["edge"], keys=folder / "keys") as hosts:
        with Agents(hosts.topology, keys, patience_s=60) as agents:
            work.release(agents, [alone], window=window, waiting=window)
            carried(agents, work, 4 * window + 50, window)
            before = cpu_s(hosts.processes["edge"].pid)
            rate = carried(agents, work, samples, window)
            agent_s = (cpu_s(hosts.processes["edge"].pid) - before) / samples
            busy_s, alone_s = partition_s(work, last)
            if batch > 1:
                work.release(agents, [alone], [batch], window=window, waiting=window)
                carried(agents, work, 4 * window + 50, window)
                together = carried(agents, work, samples, window)
                found[f"the same in batches of at most {batch}"] = compared(together, 1 / busy_s)
        found["a tier that computes"] = compared(rate, 1 / busy_s) | {
            "CPU s a sample: agent": agent_s, "network alone": alone_s, "their ratio": alone_s / agent_s,
        }  # fmt: skip
    link = Link(bandwidth_bps=10e6, propagation_delay_s=0.02)
    across = Plan(cuts=(1, last), placement=(0, 1), thresholds=(0.0,), codecs=(None, "float32"))
    spec = load_onnx(work.network).spec
    size = wire_bytes([60, 4 * int(np.prod(spec.cut_shapes[1]))])
    (folder / "link").mkdir()
    with Hosts(folder / "link", ["edge", "base"], keys=folder / "keys") as hosts:
        plain = replace(hosts.topology, links=(link,))
        routes = [Route(0, 1, f"127.0.0.1:{hosts.listen['base']}"), Route(1, 0, f"127.0.0.1:{hosts.listen['edge']}")]
        with Relay(plain, routes) as relay:
            ends = (relay.ports[1], relay.ports[0])
            tiers = tuple(replace(tier, port=port) for tier, port in zip(plain.tiers, ends, strict=True))
            with Agents(replace(plain, tiers=tiers), keys, patience_s=60) as agents:
                work.release(agents, [across], window=window, waiting=window)
                whole(agents)
                with Agents(plain, keys, patience_s=60) as near:
                    rate = carried(near, work, max(60, samples // 10), window)
        due = 1 / float(plain.transmission_s(size)[0, 1])
        found["a link of 10 Mbit/s"] = compared(rate, due)
    return {"window": window, **found}


def workload(folder: Path, network: Path | None) -> Workload:
    work = make_workload(folder)
    if network is None:
        return work
    loaded = load_onnx(network)
    decoder = decoder_from_dict(json.loads(loaded.provenance["decoder"]))
    channels, height, width = loaded.spec.cut_shapes[0]
    rng = np.random.default_rng(0)
    pictures = tuple(png(np.uint8(rng.integers(0, 256, (height, width, channels)))) for _ in range(40))
    return Workload(
        network=network, decoder=decoder, samples=pictures,
        plans=(Plan(cuts=(loaded.spec.num_blocks,), placement=(0,), codecs=(None,)),),
    )  # fmt: skip


def carried(agents: Agents, work: Workload, samples: int, window: int) -> float:
    """Answers per second once the first window is through."""
    moments = []
    named = ((f"{time.monotonic_ns()}", work.samples[number % len(work.samples)]) for number in range(samples))
    for answer in agents.submitter(2 * window).answers(named):
        assert not answer.failed, answer.reason
        moments.append(time.monotonic())
    return (len(moments) - 1 - window) / (moments[-1] - moments[window])


def cpu_s(pid: int) -> float:
    """Seconds of CPU time that a process has used, all threads together."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def partition_s(work: Workload, last: int, repeats: int = 200) -> tuple[float, float]:
    """Mean seconds, of the clock and of CPU time, to decode a sample and run the whole network on it, here and busy."""
    partition = make_executor(work.network, Execution(executor="onnxruntime")).partition(0, last, branch=True)
    partition(work.decoder.decode(work.samples[0]))
    began, used = time.perf_counter(), time.process_time()
    for number in range(repeats):
        partition(work.decoder.decode(work.samples[number % len(work.samples)]))
    return (time.perf_counter() - began) / repeats, (time.process_time() - used) / repeats


FLOODS: dict[str, Callable[[int, int], list[bytes]]] = {  # by the number of a plan and a ticket
    "tensors": lambda plan, ticket: [pack_header(Header("tensor", plan, ticket, 2, 0)), bytes(4 * 8 * 16 * 16)],
    "answers": lambda plan, ticket: [pack_header(Header("result", plan, ticket, 3, 0, exit_index=1, label=1))],
    "60 MiB frames": lambda plan, ticket: [pack_header(Header("tensor", plan, ticket, 2, 0)), bytes(60 << 20)],
}


def flood(folder: Path, seconds: float, connections: int) -> dict[str, Any]:
    """Latency of samples from the edge to the cloud while the base's key sends the cloud as much as it can."""
    work, keys = make_workload(folder), secured(folder)
    plans = [replace(work.plans[2], thresholds=(0.0,)), replace(work.plans[0], thresholds=(0.0, 0.0))]
    found: dict[str, Any] = {}
    with Hosts(folder, keys=folder / "keys") as hosts, Agents(hosts.topology, keys, patience_s=60) as agents:
        number = work.release(agents, plans, **LIMITS).number(1)
        whole(agents)
        with Stream(agents, replace(work, plans=tuple(plans)), "flood", pace_s=0.05, pending=40) as stream:
            for what in (None, *FLOODS):
                if what is not None:
                    of = (what, number, f"127.0.0.1:{hosts.listen['cloud']}", folder / "keys", connections)
                    attacker = multiprocessing.get_context("spawn").Process(target=attack, args=of, daemon=True)
                    attacker.start()
                    time.sleep(2)  # it has begun
                before = len(stream.got)
                time.sleep(seconds)
                took_ms = [1e3 * answer.latency_s for answer in stream.got[before:]]
                if what is not None:
                    attacker.kill()
                    attacker.join()
                p50, p99 = np.percentile(took_ms, (50, 99))
                memory = psutil.Process(hosts.processes["cloud"].pid).memory_info().rss
                found[what or "none"] = {
                    "samples": len(took_ms), "p50 ms": p50, "p99 ms": p99, "cloud MB": round(1e-6 * memory)
                }  # fmt: skip
        stream.check()
    return found


def attack(what: str, plan: int, endpoint: str, keys: Path, connections: int) -> None:
    """Send messages of one kind, without end."""
    context = zmq.Context()
    wires = [call(context, "cloud", endpoint, load_keys(keys, "base"), "base") for _ in range(connections)]
    ticket = 1 << 40
    while True:
        for wire in wires:
            try:
                wire.send_multipart(FLOODS[what](plan, ticket), zmq.NOBLOCK)
                ticket += 1
            except zmq.Again:
                time.sleep(0.0005)


def compared(rate: float, due: float) -> dict[str, float]:
    return {"per second": rate, "due": due, "ratio": rate / due}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["soak", "switch", "throughput", "flood"])
    parser.add_argument("--samples", type=int, help="default: 10,000 of a soak, 1,000 else")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50.0, help="samples per second of a soak")
    parser.add_argument("--times", type=int, default=10, help="switches")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="of throughput: also in batches of at most so many")
    parser.add_argument("--network", type=Path, help="of `portend export`, for throughput; default: a small one")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each flood")
    parser.add_argument("--connections", type=int, default=1, help="of who floods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="portend-faults-") as name:
        folder = Path(name)
        if asked.what == "soak":
            found = soak(folder, asked.samples or 10_000, asked.kills, asked.seed, asked.rate)
        elif asked.what == "switch":
            found = switch(folder, asked.times)
        elif asked.what == "flood":
            found = flood(folder, asked.seconds, asked.connections)
        else:
            found = throughput(folder, asked.network, asked.samples or 1_000, asked.window, asked.batch)
    print(json.dumps(found, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
