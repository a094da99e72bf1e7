"""Two agents that are measured, with a journal of what was measured so far and an eye on the machine.

Work is done in pieces of some seconds: after each, its numbers are in the journal, what others did meanwhile is
added up, and the time that is left is told. Each piece of busy timing begins with the whole network, so that a
drift of the machine's speed shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from portend.io.journal import Journal
from portend.testbed.deployment import Deployment
from portend.testbed.watch import Disturbance

__all__ = ["Bench", "Job", "Progress"]

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
Job = tuple[int, int, bool]
"""A partition to time: start, end, and whether with the branch at its end."""

_STAGE: Final = "this device, s"
_PIECE_S: Final = 5.0
_LEAST_PIECE: Final = 15
_REFERENCES: Final = 3
_STEADY: Final = 0.02
_GROUP_S: Final = 0.2
_PATIENCE_S: Final = 20.0
_PER_PROBE_S: Final = 0.01


class Bench:
    """Times partitions on tier 0 of a deployment and sends messages from there to tier 1.

    Args:
        deployment: of two tiers, running, with its samples loaded; journal: open.
        num_blocks: N of the network.
        on_progress: called with ("this device, s", done, total), in seconds that the work was expected to take.
    """

    def __init__(
        self, deployment: Deployment, journal: Journal, num_blocks: int, on_progress: Progress | None = None
    ) -> None:
        self.journal = journal
        self._deployment, self._blocks, self._told = deployment, num_blocks, on_progress
        self._whole_s = 0.0
        self._calls = 0
        self._expected_s = self._done_s = 0.0
        self._counters = deployment.count()

    # -- before ----------------------------------------------------------------------------------

    def warm_up(self) -> str:
        """Run the whole network until its time stands still; say how that went.

        Until the medians of three groups in a row, of at least 0.2 s each, lie within 2 %, or for 20 s.
        """
        job = (0, self._blocks, True)
        began = time.monotonic()
        runs, count, medians = 0, 3, []
        while True:
            seconds = self._deployment.time_partitions(0, [job] * count)
            runs += 2 * count
            self._whole_s = float(np.median(seconds))
            medians.append(self._whole_s)
            last = medians[-3:]
            spread = (max(last) - min(last)) / self._whole_s
            took = time.monotonic() - began
            if len(last) == 3 and (spread <= _STEADY or took > _PATIENCE_S):
                self._note()
                steady = "steady" if spread <= _STEADY else f"still changing by {100 * spread:.0f} %"
                return f"{runs} runs of the whole network in {took:.1f} s, then {steady}"
            count = max(count, min(200, round(_GROUP_S / self._whole_s)))

    def expect(self, seconds: float) -> None:
        """Say how long everything will take, for the time left."""
        self._expected_s = seconds

    def time_s(self, jobs: Sequence[Job], burst: int = 1, gap_s: float = 0.0) -> float:
        """Seconds that timing will take, as the whole network's time tells."""
        work = self._whole_s * sum(end - start for start, end, _ in jobs) / self._blocks
        return work * (burst if gap_s else burst + 1) + gap_s * len(jobs)

    def probe_s(self, count: int, gap_s: float) -> float:
        """Seconds that so many messages will take, about."""
        return count * (gap_s + _PER_PROBE_S)

    # -- measuring -------------------------------------------------------------------------------

    def time_partitions(
        self,
        what: str,
        jobs: Sequence[Job],
        *,
        before: Sequence[tuple[int, int] | None] = (),
        burst: int = 1,
        gap_s: float = 0.0,
    ) -> Floats:
        """Seconds of each job in the given order, run ``burst`` times, [jobs, burst]; see Deployment."""
        name = self._name(what)
        first = known = len(self.journal.recall(name)) // burst
        piece = min(len(jobs), _LEAST_PIECE)
        self._advance(self.time_s(jobs[:known], burst, gap_s))
        while known < len(jobs):
            chosen = list(jobs[known : known + piece])
            whole = [(0, self._blocks, True)] * _REFERENCES if gap_s == 0 and burst == 1 else []
            began = time.monotonic()
            seconds = self._deployment.time_partitions(
                0, whole + chosen, before=before[known : known + piece], burst=burst, gap_s=gap_s, fresh=known == first
            )
            took = time.monotonic() - began
            if whole:
                self.journal.add("reference", [float(np.median(seconds[: len(whole)]))])
            self.journal.add(name, seconds[len(whole) :].ravel().tolist())
            self._note()
            self._advance(self.time_s(chosen, burst, gap_s))
            known += len(chosen)
            piece = max(_LEAST_PIECE, round(len(chosen) * _PIECE_S / took))
        return np.array(self.journal.recall(name)).reshape(len(jobs), burst)

    def probe(
        self, sender: int, receiver: int, cut: int, codec: str, *, count: int, gap_s: float
    ) -> dict[str, NDArray[np.float64]]:
        """Send messages and return their spans by kind, seconds [count]; see Deployment."""
        name = self._name(f"messages {codec} {cut}")
        kinds = [key for key in ("encode", "transfer", "decode") for key in (key, f"{key} busy")]
        numbers = self.journal.recall(name)
        if not numbers:
            spans = self._deployment.probe(sender, receiver, cut, codec, count=count, gap_s=gap_s)
            for kind in kinds:
                found = spans.get(kind, np.zeros(0))
                numbers += [float(found.size), *found.tolist()]
            self.journal.add(name, numbers)
            self._note()
        self._advance(self.probe_s(count, gap_s))
        result, at = {}, 0
        for kind in kinds:
            size = int(numbers[at])
            result[kind] = np.array(numbers[at + 1 : at + 1 + size])
            at += 1 + size
        return result

    def time_codecs(self, codecs: Sequence[Sequence[str]], *, samples: int) -> NDArray[np.int64]:
        """Bytes, ns to encode, ns to decode each sample's tensor, [codecs of all cuts, samples, 3]; see Deployment."""
        name = self._name("codecs")
        if not self.journal.recall(name):
            coded = self._deployment.time_codecs(0, codecs, samples=samples)
            self.journal.add(name, coded.ravel().astype(float).tolist())
            self._note()
        return np.array(self.journal.recall(name), dtype=np.int64).reshape(-1, samples, 3)

    # -- after -----------------------------------------------------------------------------------

    def references_s(self) -> Floats:
        """Seconds of the whole network, busy, at the beginning of each piece."""
        return np.array(self.journal.recall("reference"))

    def disturbance(self) -> Disturbance | None:
        """What others did while this bench measured, in all sittings; None where the kernel does not tell."""
        rows = np.array(self.journal.recall("disturbance")).reshape(-1, 5)
        if not rows.size:
            return None
        seconds, others, stolen, waited, switches = rows.sum(axis=0).tolist()
        return Disturbance(seconds=seconds, others_s=others, stolen_s=stolen, waited_s=waited, switches=round(switches))

    # -- inside ----------------------------------------------------------------------------------

    def _name(self, what: str) -> str:
        """A name for the next measurement: profiling always measures the same in the same order."""
        self._calls += 1
        return f"{self._calls} {what}"

    def _note(self) -> None:
        """Add up what others did since the last time."""
        before, self._counters = self._counters, self._deployment.count()
        found = Disturbance.between(before, self._counters)
        if found is not None:
            row = (found.seconds, found.others_s, found.stolen_s, found.waited_s, float(found.switches))
            self.journal.add("disturbance", row)

    def _advance(self, seconds: float) -> None:
        self._done_s += seconds
        if self._told and self._expected_s:
            self._told(_STAGE, round(min(self._done_s, self._expected_s)), max(1, round(self._expected_s)))
