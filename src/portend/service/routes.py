"""Which plans can be used, which one a sample takes, and what has to be sent again.

Pure functions of what one agent knows at a moment: no sockets, no clocks; the caller says what time it is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from portend.service.peers import Beat
from portend.service.release import Release

__all__ = ["PeerAddress", "PeerView", "Routes", "View", "Way"]

PeerAddress = tuple[str, str]
"""Name and host:port of another agent."""

Way = tuple[tuple[int, ...], tuple[int, ...]]
"""Which lives of its tiers, and of the connections between them, a plan uses; samples on another one may be lost."""

_ALWAYS_S: Final = -math.inf


@dataclass(frozen=True, slots=True)
class PeerView:
    """Another agent at one moment.

    Attributes:
        works: whether what is sent there arrives. life: how often our connection began to work.
        incarnation: which life of the agent acknowledges.
        beat: the last one of that life; None if there is none, or the connection does not work.
    """

    works: bool
    life: int = 0
    incarnation: int = 0
    beat: Beat | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What the agent ``name`` knows of all others at one moment.

    Example:
        >>> View("edge", {("cloud", "10.0.0.2:7100"): PeerView(works=True, life=1)}).name
        'edge'
    """

    name: str
    peers: Mapping[PeerAddress, PeerView]

    def peer(self, release: Release, tier: int) -> PeerView | None:
        """Return a tier's agent as it is seen; None for our own."""
        return self.peers.get((release.tiers[tier], release.endpoints[tier]))

    def reached(self, release: Release) -> tuple[int, ...]:
        """Return which of our connections to each tier works: the first, the second, ...; 0 where none does."""
        peers = (self.peer(release, tier) for tier in range(len(release.tiers)))
        return tuple(peer.life if peer and peer.works else 0 for peer in peers)

    def connection(self, release: Release, sender: int, receiver: int) -> int:
        """Return which connection of one tier to another works, as the sender says; 0 if none does."""
        if release.tiers[sender] == self.name:
            return self.reached(release)[receiver]
        peer = self.peer(release, sender)
        return peer.beat.reaches_tier(release.version, receiver) if peer and peer.beat else 0

    def missing(self, release: Release, index: int) -> list[str]:
        """Return what keeps a plan from being used: who is away, who does not run it, who does not reach whom."""
        names, away, missing = release.tiers, set(), []
        for tier in sorted(release.tiers_of(index)):
            if names[tier] == self.name:
                continue
            peer = self.peer(release, tier)
            if peer is None or not peer.works:
                away.add(tier)
                missing.append(f"{names[tier]} is away ({release.endpoints[tier]})")
            elif peer.beat is None or release.version not in peer.beat.versions:
                away.add(tier)
                missing.append(f"{names[tier]} has not said that it runs release {release.version}")
        missing += [
            f"{names[a]} does not reach {names[b]} at {release.endpoints[b]}"
            for a, b in sorted(release.hops_of(index))
            if not away & {a, b} and not self.connection(release, a, b)
        ]
        return missing

    def way(self, release: Release, index: int) -> Way | None:
        """Return the way that samples take by a plan; None if it cannot be used."""
        if self.missing(release, index):
            return None
        peers = [self.peer(release, tier) for tier in sorted(release.tiers_of(index))]
        return (
            tuple(peer.incarnation for peer in peers if peer),
            tuple(self.connection(release, a, b) for a, b in sorted(release.hops_of(index))),
        )


@dataclass(frozen=True, slots=True)
class Routes:
    """The ways of all plans of some releases, by the plans' numbers.

    Attributes:
        ways: None for a plan that cannot be used.
        back_s: since when a plan that was lost can be used again; infinity while it cannot.
    """

    ways: Mapping[int, Way | None] = field(default_factory=dict)
    back_s: Mapping[int, float] = field(default_factory=dict)

    def updated(self, releases: Iterable[Release], view: View, now: float) -> Routes:
        """Return the routes as they are now."""
        ways = {each.number(index): view.way(each, index) for each in releases for index in range(len(each.plans))}
        back_s = {}
        for number, way in ways.items():
            since = self.back_s.get(number, _ALWAYS_S)
            if way is None and self.ways.get(number) is not None:
                since = math.inf
            elif way is not None and since == math.inf:
                since = now
            back_s[number] = since
        return Routes(ways, back_s)

    def usable(self, release: Release) -> list[int]:
        """Return the places of the plans all of whose tiers are there and reach each other."""
        return [index for index in range(len(release.plans)) if self.ways.get(release.number(index)) is not None]

    def first_usable(self, release: Release) -> int | None:
        """Return the place of the first plan that can be used; None if none can."""
        return next(iter(self.usable(release)), None)

    def choose(self, release: Release, since_s: float) -> int | None:
        """Return the place of the plan that a new sample takes; None if none can be used.

        It is the first that could be used from ``since_s`` on (so samples do not follow a link that comes and goes),
        or else the first that can be used.
        """
        usable = self.usable(release)
        steady = (index for index in usable if self.back_s.get(release.number(index), _ALWAYS_S) <= since_s)
        return next(steady, next(iter(usable), None))

    def is_broken(self, plan: int, way: Hashable) -> bool:
        """Whether what was sent by a plan on such a way has to be sent again."""
        return way != self.ways.get(plan)
