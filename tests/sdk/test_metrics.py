"""The metrics of a feed."""

import asyncio
from datetime import timedelta

import pytest
from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from grantbook.sdk import revocations
from grantbook.sdk.metrics import PrometheusObserver
from grantbook.sdk.revocations import RevocationFeed, Revocations
from tests.sdk.given import LIFETIME, now, revoked, write

SECONDS = 20.0


async def test_an_operator_sees_what_a_feed_did(log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects an operator who must be woken when a token service goes stale, and not otherwise."""
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.0)
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)
    asked: list[Revocations] = []

    def decides(feed: Revocations) -> bool:
        asked.append(feed)
        return False

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"grantbook_feed_{name}", labels)

    await write(log, revoked("c", "old"))
    feed = RevocationFeed(
        nats_url, LIFETIME, observer=observer, when_stale=decides, max_staleness=timedelta(seconds=1.5)
    )
    async with feed:
        observer.watch(feed)
        assert (value("loaded_total"), value("fresh"), value("entries")) == (1, 1, 1)
        await write(log, revoked("c", "g"), revoked("c", "h"))
        async with asyncio.timeout(SECONDS):
            while value("applied_total") != 2:
                await asyncio.sleep(0.01)
        assert 1 <= (value("delay_seconds_count") or 0) <= 2
        assert not feed.is_revoked("c", "x", "u", now())
        assert not asked
        await log.jetstream().delete_stream("GRANTBOOK")
        async with asyncio.timeout(SECONDS):
            while feed.state == "fresh":
                await asyncio.sleep(0.01)
        assert not feed.is_revoked("c", "x", "u", now())  # as was decided
        assert feed.is_revoked("c", "g", "u", now())
        assert asked == [feed]
        assert value("fresh") == 0
        assert value("stale_answers_total", denied="no") == 1
        assert (value("age_seconds") or 0) > 1
