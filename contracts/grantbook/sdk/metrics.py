"""What a feed of revocations did, for Prometheus. Needs `pip install 'grantbook[metrics]'`.

async with RevocationFeed(url, lifetime, observer=PrometheusObserver()) as feed:
...
"""

from collections.abc import Callable
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from grantbook.sdk.revocations import Revocations
from grantbook.sdk.subscription import Observer

DELAY_BUCKETS_SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class PrometheusObserver(Observer):
    """Counts what it hears in a registry, the default one unless another is given. One for each process.

    Names begin with `grantbook_feed_`. No label holds an id.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"grantbook_feed_{name}", says, labels, registry=registry)

        def gauge(name: str, says: str) -> Gauge:
            return Gauge(f"grantbook_feed_{name}", says, registry=registry)

        self._applied = counter("applied", "Revocations applied as they came.")
        self._loaded = counter("loaded", "Revocations read at the start, or after a restart of the feed.")
        self._restarts = counter("restarts", "Times that the feed was read anew.")
        self._stale_answers = counter("stale_answers", "Questions answered while the feed was not fresh.", "denied")
        self._troubles = counter("troubles", "Times that something kept the feed from being fresh.")
        self._receipts_failed = counter("receipts_failed", "Receipts that could not be handed in.")
        self._delay = Histogram(
            "grantbook_feed_delay_seconds",
            "From the log's storing a revocation to its being applied, by this machine's clock.",
            buckets=DELAY_BUCKETS_SECONDS,
            registry=registry,
        )
        for denied in ("yes", "no"):  # so that both are there before the first
            self._stale_answers.labels(denied)
        self._fresh = gauge("fresh", "1 while it is proven that everything was heard of.")
        self._age = gauge("age_seconds", "Since that was last proven.")
        self._entries = gauge("entries", "Revocations in memory.")
        self._unknown = gauge("unknown_events", "Events that this version does not understand, denied.")

    def watch(self, feed: Revocations) -> None:
        """Show how the feed is whenever the metrics are read."""
        shown: dict[Gauge, Callable[[], float]] = {
            self._fresh: lambda: feed.state == "fresh",
            self._age: lambda: feed.age,
            self._entries: lambda: feed.entries,
            self._unknown: lambda: feed.unknown_events,
        }
        for gauge, value in shown.items():
            gauge.set_function(value)

    def applied(self, revocations: int, delay_seconds: float) -> None:
        """Counted, and how long it took."""
        self._applied.inc(revocations)
        self._delay.observe(delay_seconds)

    def loaded(self, revocations: int) -> None:
        """Counted."""
        self._loaded.inc(revocations)

    def restarted(self) -> None:
        """Counted."""
        self._restarts.inc()

    def answered_stale(self, *, denied: bool) -> None:
        """Counted, by whether it was denied."""
        self._stale_answers.labels("yes" if denied else "no").inc()

    def troubled(self, trouble: str) -> None:
        """Counted."""
        del trouble
        self._troubles.inc()

    def receipt_failed(self, trouble: str) -> None:
        """Counted."""
        del trouble
        self._receipts_failed.inc()
