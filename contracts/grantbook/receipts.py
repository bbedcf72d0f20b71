"""Receipts: how far a token service has applied the revocations, as it says itself in the bucket of subscribers.

An admin who revokes wants to know that it arrived. So each subscriber puts its receipt there, soon after it applied
something and every `HEARTBEAT_SECONDS` beside, and takes it away when it ends in good order. One that fell silent keeps
its last receipt: it is shown as gone, never as fine, until it comes back or an admin removes it.
"""

import re
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from grantbook import subjects

HEARTBEAT_SECONDS: Final = 5.0
"""A subscriber says at least so often how it is."""
GONE_SECONDS: Final = 15.0
"""Silent for longer, a subscriber is gone: three of its receipts did not come."""
MAX_RECENT: Final = 32
"""Most of the latest applications that a receipt tells the times of."""
MAX_BYTES: Final = 8 * 1024
MAX_AGE_MILLISECONDS: Final = 10 * 365 * 86_400_000
"""Ages are told up to ten years: what is older is told as that old."""
MAX_NAME_CHARACTERS: Final = 64
FORGET_HEADERS: Final = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": "60s"}
"""Of a message that takes a receipt away (ADR-8, ADR-43): the mark that it leaves goes, too, once all have seen it."""

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=r"^(?!\.{1,2}\Z)[A-Za-z0-9._-]+\Z")]
"""In paths `.` and `..` would lead elsewhere."""
Sequence = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=MAX_AGE_MILLISECONDS)]
Identity = Annotated[str, Meta(max_length=16)]

_NAME: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}\Z")


class Receipt(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a subscriber says of itself. Ages are told, not times: no clock but that of the log is believed."""

    name: Name
    """The token service, the same in all of its processes."""
    instance: Name
    """Which process of it."""
    state: Literal["starting", "fresh", "stale"]
    """Whether it can prove that it has everything. One that is stale denies, unless it was told otherwise."""
    age_ms: Milliseconds | None = None
    """Since that was last proven."""
    feed: Identity | None = None
    """Identity of the feed that `feed_sequence` is of. Absent where it reads over HTTP."""
    feed_sequence: Sequence = 0
    """Everything up to there in the feed is applied."""
    log: Identity | None = None
    """Identity of the log that `log_sequence` is of. Without it, for all that anybody knows, a subscriber over HTTP has
    applied nothing."""
    by: Name | None = None
    """Whose token handed it in over HTTP: said by the server, whatever the receipt said. Nobody else's replaces it."""
    log_sequence: Sequence = 0
    """Everything up to there in the log is applied: the place of the last revocation that it heard of; 0 for none."""
    recent: Annotated[tuple[tuple[Sequence, Milliseconds], ...], Meta(max_length=MAX_RECENT)] = ()
    """The latest applications, newest first: up to which place in the log, and how long before this receipt."""
    recent_after: Sequence = 0
    """The place up to which it had applied the log before the oldest of these."""

    def applied_at(self, log_sequence: int, stored_at: datetime) -> datetime | None:
        """When it had applied that place of the log, by the clock that stored this receipt; None: not known any more.

        An application that took several revocations at once tells one time for all of them.
        """
        if log_sequence <= self.recent_after:
            return None
        found = None
        for reached, milliseconds in self.recent:
            if reached < log_sequence:
                break
            found = stored_at - timedelta(milliseconds=milliseconds)
        return found


def milliseconds(seconds: float) -> int:
    """An age as a receipt tells it."""
    return min(MAX_AGE_MILLISECONDS, max(0, round(seconds * 1_000)))


def key(name: str, instance: str) -> str:
    """The bucket's key of a subscriber. The hash that stands for a name there is taken for the name."""
    return f"{subjects.token_in_path(name)}.{subjects.token_in_path(instance)}"


def unreadable(at: str) -> Receipt | None:
    """What stands for a receipt that cannot be read, at a key of the bucket: somebody who has proven nothing.

    It may be of a newer version. Its names are those of the key, which may be hashes. None at a key that nobody has.
    """
    name, _, instance = at.partition(".")
    if any(subjects.token_in_path(each) != each for each in (name, instance)):
        return None
    return Receipt(name=name, instance=instance, state="stale")


def is_name(text: str) -> bool:
    """Whether a subscriber may be called so."""
    return _NAME.match(text) is not None


def encode(receipt: Receipt) -> bytes:
    """The receipt as the bucket has it."""
    return _encoder.encode(receipt)


def decode(value: bytes) -> Receipt | None:
    """The receipt in the bucket; None for what is none: others may write there."""
    try:
        return _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Receipt)
