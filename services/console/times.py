"""Times for people: how long ago, with the exact value at hand."""

from datetime import UTC, datetime, timedelta
from typing import Final

_STEPS: Final = (
    (timedelta(minutes=1), timedelta(seconds=1), "second"),
    (timedelta(hours=1), timedelta(minutes=1), "minute"),
    (timedelta(days=1), timedelta(hours=1), "hour"),
    (timedelta(days=60), timedelta(days=1), "day"),
    (timedelta(days=730), timedelta(days=30), "month"),
)


def ago(at: datetime, now: datetime) -> str:
    """`3 minutes ago`, `in 2 days`, `just now`."""
    apart = abs(now - at)
    if apart < timedelta(seconds=2):
        return "just now"
    for below, unit, word in _STEPS:
        if apart < below:
            return _said(apart // unit, word, past=at <= now)
    return _said(apart // timedelta(days=365), "year", past=at <= now)


def _said(count: int, word: str, *, past: bool) -> str:
    amount = f"{count} {word}" if count == 1 else f"{count} {word}s"
    return f"{amount} ago" if past else f"in {amount}"


def exact(at: datetime) -> str:
    """`2026-03-14 09:26:53.123 UTC`."""
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1_000:03} UTC"


def day(at: datetime) -> str:
    """`2026-03-14`, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d}"


def iso(at: datetime) -> str:
    """RFC 3339."""
    return at.isoformat().replace("+00:00", "Z")
