"""Which plans can be used, and which one a sample takes: worked out by hand for an edge, a base and a cloud."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from portend.service.peers import Beat
from portend.service.release import MOST_PLANS, NetworkFile, Release
from portend.service.routes import PeerAddress, PeerView, Routes, View
from portend.values.execution import Execution
from portend.values.plan import Plan

THROUGH_ALL = Plan(cuts=(2, 4, 6), placement=(0, 1, 2), thresholds=(0.5, 0.5), codecs=(None, "float32", "float32"))
WITHOUT_BASE = Plan(cuts=(2, 6), placement=(0, 2), thresholds=(0.5,), codecs=(None, "float32"))
RELEASE = Release(
    version=3, plans=(THROUGH_ALL, WITHOUT_BASE), tiers=("edge", "base", "cloud"),
    endpoints=("10.0.0.1:7100", "10.0.0.2:7100", "10.0.0.3:7100"),
    networks=(NetworkFile(sha256="0" * 64, size=1, suffix=".onnx"),) * 3, executions=(Execution(),) * 3,
    memory_bytes=(None,) * 3, source=0, destination=0, ingest="in_process",
    decoder={"kind": "tensor", "shape": [1, 4, 4]}, criterion="entropy",
)  # fmt: skip
FIRST, SECOND = 3 * MOST_PLANS, 3 * MOST_PLANS + 1
BASE, CLOUD = ("base", "10.0.0.2:7100"), ("cloud", "10.0.0.3:7100")


def peer(life: int, incarnation: int, *reaches: int, version: int = 3) -> PeerView:
    """One that works, and says by which of its connections it reaches the edge, the base and the cloud."""
    return PeerView(True, life, incarnation, Beat(incarnation, 0, (version,), (reaches,), 0, 0))


WHOLE: Mapping[PeerAddress, PeerView] = {BASE: peer(4, 70, 5, 0, 6), CLOUD: peer(1, 80, 2, 0, 0)}


def view(**changed: PeerView | None) -> View:
    """What the edge knows: all is well but for the agents named; None: not called."""
    peers = {address: changed.get(address[0], each) for address, each in WHOLE.items()}
    return View("edge", {address: each for address, each in peers.items() if each is not None})


def test_a_way_is_made_of_the_lives_of_tiers_and_connections() -> None:
    assert view().missing(RELEASE, 0) == view().missing(RELEASE, 1) == []
    assert view().reached(RELEASE) == (0, 4, 1)
    # hops in order: edge to base by its 4th connection, base to edge by its 5th and to cloud by its 6th, cloud to edge
    assert view().way(RELEASE, 0) == ((70, 80), (4, 5, 6, 2))
    assert view().way(RELEASE, 1) == ((80,), (1, 2))


def test_what_is_missing_is_said_of_each_tier_once() -> None:
    away = PeerView(works=False, life=4, incarnation=70)
    assert view(base=away).missing(RELEASE, 0) == ["base is away (10.0.0.2:7100)"]
    assert view(base=None).missing(RELEASE, 0) == ["base is away (10.0.0.2:7100)"]
    assert view(base=away).missing(RELEASE, 1) == []
    silent = PeerView(works=True, life=4, incarnation=70)
    assert view(base=silent).missing(RELEASE, 0) == ["base has not said that it runs release 3"]
    older = peer(4, 70, 5, 0, 6, version=2)
    assert view(base=older).missing(RELEASE, 0) == ["base has not said that it runs release 3"]
    apart = peer(4, 70, 5, 0, 0)
    assert view(base=apart).missing(RELEASE, 0) == ["base does not reach cloud at 10.0.0.3:7100"]
    assert view(base=apart).way(RELEASE, 0) is None


def test_the_first_plan_that_can_be_used_is_taken() -> None:
    routes = Routes().updated([RELEASE], view(), 10.0)
    assert (routes.usable(RELEASE), routes.first_usable(RELEASE), routes.choose(RELEASE, 9.0)) == ([0, 1], 0, 0)
    routes = routes.updated([RELEASE], view(base=None), 11.0)
    assert (routes.usable(RELEASE), routes.first_usable(RELEASE), routes.choose(RELEASE, 9.0)) == ([1], 1, 1)
    routes = routes.updated([RELEASE], view(base=None, cloud=None), 12.0)
    assert (routes.usable(RELEASE), routes.first_usable(RELEASE), routes.choose(RELEASE, 9.0)) == ([], None, None)


def test_a_plan_that_was_lost_is_taken_again_once_it_is_steady() -> None:
    whole = Routes().updated([RELEASE], view(), 10.0)
    lost = whole.updated([RELEASE], view(base=None), 11.0)
    assert lost.back_s[FIRST] == math.inf
    back = lost.updated([RELEASE], view(), 12.0).updated([RELEASE], view(), 12.5)
    assert back.back_s[FIRST] == 12.0  # not later, for it stayed
    assert back.usable(RELEASE) == [0, 1]
    assert back.choose(RELEASE, 11.9) == 1
    assert back.choose(RELEASE, 12.0) == 0


def test_a_plan_that_comes_and_goes_is_better_than_none() -> None:
    away = view(base=None, cloud=None)
    routes = Routes().updated([RELEASE], view(), 10.0).updated([RELEASE], away, 11.0).updated([RELEASE], view(), 12.0)
    assert routes.choose(RELEASE, 11.9) == 0


def test_a_plan_that_could_not_be_used_before_is_taken_at_once() -> None:
    routes = Routes().updated([RELEASE], view(base=None), 10.0).updated([RELEASE], view(), 11.0)
    assert routes.choose(RELEASE, 10.5) == 0


def test_what_went_another_way_than_there_is_now_has_to_be_sent_again() -> None:
    before = Routes().updated([RELEASE], view(), 10.0)
    first, second = before.ways[FIRST], before.ways[SECOND]
    assert not before.is_broken(FIRST, first)
    assert not before.is_broken(SECOND, second)
    restarted = before.updated([RELEASE], view(base=peer(4, 71, 5, 0, 6)), 11.0)
    assert restarted.is_broken(FIRST, first)
    assert not restarted.is_broken(SECOND, second)  # it does not go through the base
    connected_anew = before.updated([RELEASE], view(cloud=peer(2, 80, 2, 0, 0)), 11.0)
    assert not connected_anew.is_broken(FIRST, first)  # the edge sends nothing to the cloud by this plan
    assert connected_anew.is_broken(SECOND, second)
    lost = before.updated([RELEASE], view(base=None), 11.0)
    assert lost.is_broken(FIRST, first)


def test_a_release_that_was_let_go_leaves_nothing() -> None:
    both = Routes().updated([RELEASE, replace(RELEASE, version=4)], view(), 10.0)
    assert len(both.ways) == 4
    left = both.updated([RELEASE], view(), 11.0)
    assert set(left.ways) == set(left.back_s) == {FIRST, SECOND}
    assert left.is_broken(4 * MOST_PLANS, both.ways[4 * MOST_PLANS] or ((), ()))
