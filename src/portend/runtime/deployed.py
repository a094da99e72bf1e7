"""What one tier keeps of a plan: its partitions, the codecs of the hops, and who leaves where."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from portend.errors import InvalidValue
from portend.runtime.codecs import Codec
from portend.runtime.executor import Executor, Partition
from portend.values.plan import takes_exit

__all__ = ["Deployed"]


class Deployed:
    """A plan as one tier sees it.

    Args:
        plan: as ``Plan.to_dict`` gives it. tier: its index. codecs: make the codec of this name at a cut.

    Raises:
        InvalidValue: the plan asks an exit branch that the network does not have.
    """

    def __init__(
        self, plan: dict[str, Any], tier: int, executor: Executor, codecs: Callable[[str, int], Codec]
    ) -> None:
        self.cuts: list[int] = [0, *plan["cuts"]]
        self.placement: list[int] = plan["placement"]
        self.thresholds: list[float] = plan["thresholds"]
        self.length = len(self.placement)
        self.codecs: list[Codec | None] = [
            None if name is None else codecs(name, cut) for name, cut in zip(plan["codecs"], self.cuts, strict=False)
        ]
        exits = executor.spec.exit_cuts
        missing = [c for step, c in enumerate(self.cuts[1:]) if self.asks(step) and c <= exits[-1] and c not in exits]
        if missing:
            raise InvalidValue(
                f"the plan asks exits at the cuts {missing}, but {executor.spec.name} has exit branches at "
                f"{', '.join(map(str, exits))}; end with one of them, and set the threshold at other cuts to 0"
            )
        self.partitions: dict[int, Partition] = {
            step: executor.partition(start, end, branch=self.asks(step))
            for step, (start, end) in enumerate(pairwise(self.cuts))
            if self.placement[step] == tier
        }

    def asks(self, step: int) -> bool:
        """Whether the branch of a partition is run: an exit with threshold 0 is not."""
        return step == self.length - 1 or self.thresholds[step] > 0

    def leaves(self, step: int, score: float) -> bool:
        """Whether a sample with this score leaves after a partition."""
        return step == self.length - 1 or bool(takes_exit(score, self.thresholds[step]))
