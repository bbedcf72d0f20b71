"""Bytes and headers to events, and back: JSON bodies with CloudEvents 1.0 binary-mode headers.

Headers: `ce-specversion`, `ce-id` (UUIDv7), `ce-source`, `ce-type`, `ce-time`, and `traceparent` (W3C Trace Context)
where the request carried one. Readers dispatch on `ce-type` before they decode, so a type from the future is an
`Unknown` and not an error. Everything on the bus is hostile until decoded strictly: a body that does not fit its type,
or an event on another subject than its own, is `Malformed`.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, assert_never

import msgspec
from msgspec import Struct

from grantbook import subjects
from grantbook.events import (
    EVENT_TYPES,
    ActivityRecorded,
    ClientDeleted,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    Event,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
    type_of,
)

SOURCE: Final = "grantbook/registry"
"""`ce-source` of every event: who wrote it."""
STREAM_SOURCE_HEADER: Final = "Nats-Stream-Source"

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Event)


class Outgoing(Struct, frozen=True):
    """An event as it goes to the log."""

    subject: str
    headers: dict[str, str]
    body: bytes


class Unknown(Struct, frozen=True):
    """An event of a type that this version does not know."""

    type: str


class Recorded(Struct, frozen=True):
    """An event as the log has it. `position` is its sequence there, `recorded_at` the log's own time (UTC)."""

    position: int
    recorded_at: datetime
    id: str
    type: str
    subject: str
    event: Event | Unknown
    body: bytes


class Malformed(ValueError):
    """What stands at this place of the log is no event of ours. Says where and why."""


def subject_of(event: Event) -> str:
    """The subject that an event is published on. For activity, the reporter is who the event is `by`."""
    match event:  # the most frequent first: readers ask for each event
        case GrantIssued() | GrantExtended():
            return subjects.grant_record(subjects.token(event.client_id), subjects.token(event.grant_id))
        case GrantRevoked():
            return subjects.grant_gate(subjects.token(event.client_id), subjects.token(event.grant_id))
        case ClientRegistered() | ClientMetadataChanged():
            return subjects.client_record(subjects.token(event.client_id))
        case ClientSuspended() | ClientResumed() | ClientDeleted():
            return subjects.client_gate(subjects.token(event.client_id))
        case UserGrantsRevoked():
            return subjects.user_gate(event.user_key)
        case ActivityRecorded():
            return subjects.activity(event.by.id or event.by.kind)
        case _:
            assert_never(event)


def rfc3339(moment: datetime) -> str:
    """RFC 3339 in UTC with `Z`, microseconds at most."""
    return str(msgspec.to_builtins(moment))


def encode(event: Event, *, event_id: str, traceparent: str | None = None) -> Outgoing:
    """An event as subject, headers and body. `event_id` is a UUIDv7."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": SOURCE,
        "ce-type": type_of(event),
        "ce-time": rfc3339(event.at),
    }
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return Outgoing(subject_of(event), headers, _encoder.encode(event))


def decode(
    subject: str, headers: Mapping[str, str] | None, body: bytes, *, position: int, recorded_at: datetime
) -> Recorded:
    """What the log has at `position`. Raises `Malformed`; a type that we do not know is an `Unknown` event."""
    type_, id_ = (None, None) if headers is None else (headers.get("ce-type"), headers.get("ce-id"))
    if type_ is None or id_ is None:
        message = f"position {position} on {subject}: no CloudEvents headers"
        raise Malformed(message)
    if type_ not in EVENT_TYPES:
        return Recorded(position, recorded_at, id_, type_, subject, Unknown(type_), body)
    try:
        event = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"position {position} on {subject}: {type_} does not decode: {error}"
        raise Malformed(message) from error
    if type_of(event) != type_ or subject_of(event) != subject:
        message = f"position {position} on {subject}: the header says {type_}, the body is a {type_of(event)} of "
        raise Malformed(message + subject_of(event))
    return Recorded(position, recorded_at, id_, type_, subject, event, body)


def position_in_log(stream_source: str) -> int:
    """Sequence in the log of a message of the feed, from its `Nats-Stream-Source` header. Raises `Malformed`."""
    parts = stream_source.split(" ", 2)
    if len(parts) < 2 or parts[0] != subjects.LOG or not parts[1].isdigit():
        message = f"not a source header of {subjects.LOG}: {stream_source[:80]!r}"
        raise Malformed(message)
    return int(parts[1])
