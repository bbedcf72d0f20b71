"""Rows of `events` as Postgres' binary COPY reads them: they are every event's, so they are made with little work.

They are made while a batch is folded, and Postgres works on the one before; sending them is then no work at all.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final

from projector.db import AnyConnection

_FIRST: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_LAST: Final = b"\xff\xff"
_NULL: Final = b"\xff\xff\xff\xff"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_EVENT_COLUMNS: Final = 8
_BIGINT_BYTES: Final = 8

_position: Final = Struct(">hiq").pack
_moment: Final = Struct(">iq").pack
_size: Final = Struct(">i").pack
_SIZES: Final = tuple(map(_size, range(512)))
"""Of what is not long, so of nearly all."""


def event(
    position: int,
    event_id: str,
    type_: str,
    recorded_at: datetime,
    client: str | None,
    grant: str | None,
    user: str | None,
    body: bytes,
) -> bytes:
    """A row of `events`."""
    return b"".join(
        (
            _position(_EVENT_COLUMNS, _BIGINT_BYTES, position),
            _text(event_id),
            _text(type_),
            _moment(_BIGINT_BYTES, (recorded_at - _EPOCH) // _MICROSECOND),
            _NULL if client is None else _text(client),
            _NULL if grant is None else _text(grant),
            _NULL if user is None else _text(user),
            _size(len(body)),
            body,
        )
    )


def _text(value: str) -> bytes:
    encoded = value.encode()
    size = len(encoded)
    return (_SIZES[size] if size < len(_SIZES) else _size(size)) + encoded


async def copy_events(connection: AnyConnection, rows: Sequence[bytearray], *, seconds: float | None = None) -> None:
    """Add rows to `events`. Raises what Postgres says of what does not fit."""

    async def sent() -> AsyncIterator[bytes]:
        yield _FIRST
        for each in rows:
            yield bytes(each)
        yield _LAST

    await connection.copy_to_table("events", source=sent(), format="binary", timeout=seconds)
