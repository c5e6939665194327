"""What Prometheus reads of the gateway. No label is without bound: checkpoints are those that have a role now."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from babylon_rl.serving.routing import Routes

disable_created_metrics()

OTHER = "other"  # a pinned checkpoint without a role
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
OVERHEAD_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1)
PREFIX = "babylon_rl_gateway"


class Metrics:
    """The gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": PREFIX, "registry": self.registry}
        self.calls = Counter("calls", "Calls that were answered, by whom.", ("arm", "checkpoint", "status"), **own)
        self.latency = Histogram(
            "latency_seconds", "From a call to the last byte of its answer.", ("arm",), buckets=SECONDS, **own
        )
        self.overhead = Histogram(
            "overhead_seconds", "What the gateway added to the upstream's time.", buckets=OVERHEAD_SECONDS, **own
        )
        self.in_flight = Gauge("in_flight", "Calls open now.", **own)
        self.refused = Counter(
            "refused", "Calls that the gateway refused or could not have answered.", ("code",), **own
        )
        self.replayed = Counter("replayed", "Calls that got the recorded answer of their request id.", **own)
        self.spooled = Counter("spool_bytes", "Bytes that are on disk in the spool.", **own)
        self.fsync = Histogram(
            "spool_fsync_seconds", "Write and fsync of a group of events.", buckets=OVERHEAD_SECONDS, **own
        )
        self.unrecorded = Counter("unrecorded_calls", "Answered calls that no record is kept of.", **own)
        self.degraded = Gauge("degraded", "1 while the spool cannot be written, else 0.", **own)
        self.remembered = Gauge("remembered_requests", "Request ids whose answer is known.", **own)
        self._lost = 0
        self._roles: set[str] = set()
        self._used: set[tuple[str, str, str]] = set()
        self._children: dict[tuple[str, str, int], Callable[[], None]] = {}

    def written(self, size: int, seconds: float) -> None:
        """A group of events is on disk."""
        self.spooled.inc(size)
        self.fsync.observe(seconds)

    def lost(self, calls: int) -> None:
        """So many calls are unrecorded since the start."""
        self.unrecorded.inc(calls - self._lost)
        self._lost = calls

    def call(self, arm: str, checkpoint: str, status: int) -> None:
        """A call was answered."""
        key = (arm, checkpoint, status)
        count = self._children.get(key)
        if count is None:
            label = checkpoint if checkpoint in self._roles else OTHER
            labels = (arm, label, str(status) if 100 <= status < 600 else OTHER)
            self._used.add(labels)
            count = self.calls.labels(*labels).inc
            if label != OTHER:
                self._children[key] = count
        count()

    def follow(self, routes: Routes) -> None:
        """Forget the checkpoints that have no role any more."""
        targets = (routes.promoted, routes.candidate, routes.base)
        self._roles = {target.checkpoint_id for target in targets if target is not None}
        self._children.clear()
        for labels in [labels for labels in self._used if labels[1] not in self._roles | {OTHER}]:
            self._used.discard(labels)
            self.calls.remove(*labels)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
