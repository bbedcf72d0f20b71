"""The bytes of every event type, written once: what stands in logs for ever must decode for ever."""

import json
from pathlib import Path

import msgspec
import pytest

from grantbook import wire
from grantbook.events import EVENT_TYPES, type_of
from grantbook.wire import Malformed, Unknown
from tests.contracts.examples import AT, EVENT_ID, EXAMPLES, TRACEPARENT

GOLDEN = Path(__file__).with_name("golden")


def body_of(type_: str) -> bytes:
    return (GOLDEN / f"{type_}.json").read_bytes().rstrip(b"\n")


def headers_of(type_: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((GOLDEN / f"{type_}.headers.json").read_text())
    return found


def decode(subject: str, headers: dict[str, str] | None, body: bytes) -> wire.Recorded:
    return wire.decode(subject, headers, body, position=7, recorded_at=AT)


def test_every_type_has_its_bytes_and_no_others_have() -> None:
    """Protects the next type from being added without its bytes, and old bytes from being deleted."""
    assert sorted(each.name for each in GOLDEN.iterdir()) == sorted(
        name for type_ in EVENT_TYPES for name in (f"{type_}.json", f"{type_}.headers.json")
    )
    assert sorted(EXAMPLES) == sorted(EVENT_TYPES)


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_events_are_written_as_these_bytes(type_: str) -> None:
    """Protects readers in other languages, and of other versions, from a change that nobody noticed."""
    outgoing = wire.encode(EXAMPLES[type_], event_id=EVENT_ID, traceparent=TRACEPARENT)
    headers = headers_of(type_)
    assert outgoing.subject == headers.pop("subject")
    assert outgoing.headers == headers
    assert outgoing.body == body_of(type_)


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_these_bytes_are_read_as_the_event(type_: str) -> None:
    """Protects what already stands in logs."""
    headers = headers_of(type_)
    recorded = decode(headers.pop("subject"), headers, body_of(type_))
    assert recorded.event == EXAMPLES[type_]
    assert (recorded.id, recorded.type, recorded.position, recorded.recorded_at) == (EVENT_ID, type_, 7, AT)
    assert recorded.body == body_of(type_)


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_members_from_the_future_are_ignored(type_: str) -> None:
    """Protects older readers from newer writers: contracts only grow."""
    body = msgspec.json.encode(json.loads(body_of(type_)) | {"from_the_future": {"deep": [1, None]}})
    headers = headers_of(type_)
    assert decode(headers.pop("subject"), headers, body).event == EXAMPLES[type_]


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_members_that_are_not_set_are_absent(type_: str) -> None:
    """Protects readers from telling `null`, `""` and absent apart; and every optional member from becoming required."""
    event_type = EVENT_TYPES[type_]
    needed = {each.name for each in msgspec.structs.fields(event_type) if each.required}
    bare = {name: value for name, value in json.loads(body_of(type_)).items() if name in needed | {"type"}}
    headers = headers_of(type_)
    subject = headers.pop("subject")
    event = decode(subject, headers, msgspec.json.encode(bare)).event
    assert not isinstance(event, Unknown)
    written = json.loads(wire.encode(event, event_id=EVENT_ID).body)
    assert written == bare
    assert None not in written.values()


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_an_event_on_another_subject_is_malformed(type_: str) -> None:
    """Protects readers that filter by subject from events smuggled in elsewhere."""
    headers = headers_of(type_)
    subject = headers.pop("subject")
    for other in ("grantbook.client.other.gate", "grantbook.user.u.gate", f"{subject}.x", ""):
        with pytest.raises(Malformed, match="position 7"):
            decode(other, headers, body_of(type_))


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_a_header_of_another_type_is_malformed(type_: str) -> None:
    """Protects readers that dispatch on the header."""
    headers = headers_of(type_)
    subject = headers.pop("subject")
    for other in EVENT_TYPES:
        if other != type_:
            with pytest.raises(Malformed):
                decode(subject, headers | {"ce-type": other}, body_of(type_))


def test_a_type_from_the_future_is_unknown_and_keeps_its_bytes() -> None:
    """Protects readers from failing where each of them has a stated policy instead."""
    recorded = decode("grantbook.client.c.gate", {"ce-type": "client.frozen", "ce-id": "1"}, b"\xff not json")
    assert recorded.event == Unknown("client.frozen")
    assert (recorded.type, recorded.body) == ("client.frozen", b"\xff not json")


@pytest.mark.parametrize("headers", [None, {}, {"ce-type": "client.deleted"}, {"ce-id": "1"}])
def test_a_message_without_the_headers_is_malformed(headers: dict[str, str] | None) -> None:
    """Protects readers from messages that are no events."""
    with pytest.raises(Malformed, match="headers"):
        decode("grantbook.client.c-1f0e9d2c.gate", headers, body_of("client.deleted"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"type": "client.deleted"}',
        b'{"type": "client.deleted", "at": "2026-03-14T09:26:53Z", "by": {"kind": "admin"}, "client_id": 7}',
        b'{"type": "client.deleted", "at": "yesterday", "by": {"kind": "admin"}, "client_id": "c-1f0e9d2c"}',
        b'{"type": "client.deleted", "at": "2026-03-14T09:26:53Z", "by": "admin", "client_id": "c-1f0e9d2c"}',
        b'{"type": "client.deleted", "at": "2026-03-14T09:26:53Z", "by": {"kind": "a"}, "client_id": "\xed\xa0\x80"}',
        b'{"at": "2026-03-14T09:26:53Z", "by": {"kind": "admin"}, "client_id": "c-1f0e9d2c"}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_does_not_fit_is_malformed(body: bytes) -> None:
    """Protects readers from whoever gets to write to the bus: nothing but `Malformed` comes of it."""
    with pytest.raises(Malformed):
        decode("grantbook.client.c-1f0e9d2c.gate", {"ce-type": "client.deleted", "ce-id": "1"}, body)


def test_a_body_that_is_too_deep_is_malformed() -> None:
    """Protects readers from a message made to exhaust the stack, where a member may hold anything."""
    headers = headers_of("client.registered")
    deep = b'"jwks":{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"},"
    body = body_of("client.registered").replace(b'"software_id"', deep + b'"software_id"')
    with pytest.raises(Malformed, match="does not decode"):
        decode(headers.pop("subject"), headers, body)


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_a_time_without_its_offset_is_malformed(type_: str) -> None:
    """Protects readers from comparing a time of nobody knows where."""
    headers = headers_of(type_)
    subject = headers.pop("subject")
    for name, value in json.loads(body_of(type_)).items():
        if isinstance(value, str) and value.endswith("Z") and value.startswith("2026"):
            body = msgspec.json.encode(json.loads(body_of(type_)) | {name: value.removesuffix("Z")})
            with pytest.raises(Malformed, match=name):
                decode(subject, headers, body)


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_the_tag_is_the_type(type_: str) -> None:
    """Protects the dispatch on `ce-type` from a tag that differs from it."""
    assert type_of(EXAMPLES[type_]) == type_ == json.loads(body_of(type_))["type"]
