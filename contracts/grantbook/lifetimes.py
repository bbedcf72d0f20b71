"""Lifetimes of grants: what every reader of the log computes the same way."""

from datetime import datetime, timedelta
from typing import Final

MAX_THRESHOLD: Final = timedelta(hours=24)
_LONG: Final = 4 * MAX_THRESHOLD
_NONE: Final = timedelta(0)


def extension_threshold(issued_at: datetime, issued_expires_at: datetime) -> timedelta:
    """By how much a refresh must move a grant's expiry to be logged as `grant.extended`: min(24 h, lifetime / 4).

    Smaller moves are in the activity alone, so whoever asks the log whether a grant has expired allows this much
    grace. The identity provider enforces the exact expiry of its tokens.
    """
    lifetime = issued_expires_at - issued_at
    if lifetime >= _LONG:
        return MAX_THRESHOLD
    return max(_NONE, lifetime / 4)
