"""What an agent counts, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_BUCKETS: Final = tuple(m * 10.0**e for e in range(-5, 2) for m in (1, 2.5, 5))


class Metrics:
    """Counters, gauges and histograms of one agent, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.answers = Counter("portend_answers", "Samples answered, by exit, from 1 on.", ["exit"], registry=registry)
        self.failed = Counter("portend_failed", "Accepted samples reported failed.", ["why"], registry=registry)
        self.refused = Counter("portend_refused", "Samples refused because all places are taken.", registry=registry)
        self.sent_again = Counter("portend_sent_again", "Samples sent again.", registry=registry)
        self.late = Counter("portend_late_answers", "Answers to samples that had one already.", registry=registry)
        self.dropped = Counter("portend_dropped_messages", "Messages dropped.", ["why"], registry=registry)
        self.strangers = Counter("portend_refused_connections", "Connections with unknown keys.", registry=registry)
        self.sent_bytes = Counter("portend_sent_bytes", "Bytes of data messages sent.", ["to"], registry=registry)
        self.received_bytes = Counter("portend_received_bytes", "Bytes of messages received.", registry=registry)
        self.terms = Histogram(
            "portend_term_seconds", "Encode, decode, compute; transfer by estimated clocks.", ["term"],
            buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        self.batch = Histogram(
            "portend_batch_samples", "Samples that were run at once.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )  # fmt: skip
        self.latency = Histogram(
            "portend_latency_seconds", "From acceptance to answer.", buckets=_BUCKETS, registry=registry
        )
        self.exit_drift = Gauge(
            "portend_exit_drift", "Whether exits let other shares of samples go than profiled.", ["plan"],
            registry=registry,
        )  # fmt: skip
        self.drift_evidence = Gauge(
            "portend_exit_drift_evidence", "Logarithm of the largest e-value against an exit.", ["plan"],
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("portend_waiting_samples", "Samples that wait at the source.", registry=registry)
        self.under_way = Gauge("portend_samples_under_way", "Samples sent and not answered.", registry=registry)
        self.credits = Gauge("portend_credits", "Samples that may enter now.", registry=registry)
        self.jobs = Gauge("portend_compute_queue", "Partitions that wait for the processor.", registry=registry)
        self.version = Gauge("portend_release_version", "Release that new samples take.", registry=registry)
        self.peer_up = Gauge("portend_peer_up", "Whether a peer is heard.", ["peer"], registry=registry)
        self.round_trip = Gauge(
            "portend_peer_round_trip_seconds", "Least round trip of some 10 s.", ["peer"], registry=registry
        )

    def page(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
