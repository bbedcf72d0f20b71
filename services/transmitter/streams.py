"""One event stream (SSF 1.0 section 8): its state, what a receiver may ask of it, and how it is shown.

Pure: what is stored goes in, what shall be stored comes out. A receiver's secret is here only as it was sealed.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from grantbook import subjects
from grantbook.sealed import Sealed
from transmitter.identifiers import MAX_SUBJECT_BYTES, Rule, is_identifier, with_rule
from transmitter.sets import SUPPORTED

PUSH: Final = "urn:ietf:rfc:8935"
POLL: Final = "urn:ietf:rfc:8936"
METHODS: Final = (PUSH, POLL)
Status = Literal["enabled", "paused", "disabled"]

MAX_EVENTS_REQUESTED: Final = 64
MAX_EVENT_TYPE_CHARACTERS: Final = 256
MAX_URL_CHARACTERS: Final = 2_048
MAX_AUTHORIZATION_CHARACTERS: Final = 4_096
MAX_DESCRIPTION_CHARACTERS: Final = 256
"""A longer one is cut, as SSF allows."""
MAX_REASON_CHARACTERS: Final = 256
MAX_STATE_CHARACTERS: Final = 1_024
MAX_VERIFICATIONS: Final = 4
"""That wait to be delivered: a receiver that is away cannot pile them up."""

EventType = Annotated[str, Meta(max_length=MAX_EVENT_TYPE_CHARACTERS)]


class Refused(Exception):
    """What was asked cannot be: the member that is wrong, and what was expected. Neither repeats what was sent."""

    def __init__(self, member: str, expected: str) -> None:
        super().__init__(member, expected)
        self.member: Final = member
        self.expected: Final = expected


class TooSoon(Exception):
    """A verification was asked for again too soon, or too many wait; so many seconds later it is worth another try."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds: Final = seconds


class Delivery(Struct, frozen=True, omit_defaults=True):
    """How SETs come to the receiver. By push it says where, and what to send as `Authorization`, sealed."""

    method: str
    endpoint_url: str | None = None
    authorization: Sealed | None = None


class Verification(Struct, frozen=True, omit_defaults=True):
    """A verification event that was asked for, until it is delivered."""

    id: str
    at: datetime
    state: str | None = None


class Stream(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stream as it is stored. `owner` is the name of the token that made it, and so its audience."""

    stream_id: str
    owner: str
    start_at: datetime
    """From when on (UTC, by the feed's clock) it hears of events: its making, or the end of its being disabled."""
    delivery: Delivery
    events_requested: tuple[str, ...] | None = None
    description: str | None = None
    status: Status = "enabled"
    reason: str | None = None
    rules: tuple[Rule, ...] = ()
    verifications: tuple[Verification, ...] = ()
    verified_at: datetime | None = None

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return key(self.owner, self.stream_id)

    @property
    def consumer(self) -> str:
        """Name of its durable consumer of the feed."""
        return f"ssf-{self.stream_id}"

    @property
    def events_delivered(self) -> tuple[str, ...]:
        """What was requested, of what there is; a receiver that requested nothing gets everything."""
        requested = SUPPORTED if self.events_requested is None else self.events_requested
        return tuple(each for each in SUPPORTED if each in requested)


def key(owner: str, stream_id: str) -> str:
    """The bucket's key of a receiver's stream: nobody reaches another's, whatever id they give."""
    return f"{subjects.token(owner)}.{subjects.token(stream_id)}"


class DeliveryAsked(Struct, frozen=True):
    """`delivery` as a receiver sends it."""

    method: str
    endpoint_url: Annotated[str, Meta(max_length=MAX_URL_CHARACTERS)] | UnsetType = UNSET
    authorization_header: Annotated[str, Meta(max_length=MAX_AUTHORIZATION_CHARACTERS)] | UnsetType = UNSET


class Asked(Struct, frozen=True):
    """What a receiver supplies of a stream's configuration (SSF 1.0 section 8.1.1)."""

    delivery: DeliveryAsked | UnsetType = UNSET
    events_requested: Annotated[tuple[EventType, ...], Meta(max_length=MAX_EVENTS_REQUESTED)] | UnsetType = UNSET
    description: str | UnsetType = UNSET


class ChangeAsked(Asked, frozen=True, kw_only=True):
    """The same for a stream that there is. What the transmitter supplies may stand there, and must then be right."""

    stream_id: str
    iss: Any = UNSET
    aud: Any = UNSET
    events_supported: Any = UNSET
    events_delivered: Any = UNSET
    min_verification_interval: Any = UNSET


class StatusAsked(Struct, frozen=True):
    """SSF 1.0 section 8.1.2.2."""

    stream_id: str
    status: str
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARACTERS)] | UnsetType = UNSET


class SubjectAsked(Struct, frozen=True):
    """SSF 1.0 sections 8.1.3.2 and 8.1.3.3. Whether the receiver verified the subject changes nothing here."""

    stream_id: str
    subject: dict[str, Any]
    verified: bool = True


class VerificationAsked(Struct, frozen=True):
    """SSF 1.0 section 8.1.4.2."""

    stream_id: str
    state: Annotated[str, Meta(max_length=MAX_STATE_CHARACTERS)] | UnsetType = UNSET


class Shown(Struct, frozen=True, kw_only=True):
    """A stream's configuration as receivers see it. A secret that they gave is never among it."""

    stream_id: str
    iss: str
    aud: str
    delivery: dict[str, str]
    events_supported: tuple[str, ...]
    events_requested: tuple[str, ...] | UnsetType
    events_delivered: tuple[str, ...]
    min_verification_interval: int
    description: str | UnsetType


class ShownStatus(Struct, frozen=True):
    """SSF 1.0 section 8.1.2.1."""

    stream_id: str
    status: str
    reason: str | UnsetType = UNSET


class Terms(Struct, frozen=True):
    """What is the same for every stream here. `check_url` raises `ValueError` for what must not be pushed to."""

    issuer: str
    base_url: str
    min_verification_interval_seconds: int
    check_url: Callable[[str], None]


Seal = Callable[[str, str], Sealed]
"""Seals the second for the stream with the id that is first."""


def shown(stream: Stream, terms: Terms) -> Shown:
    """The configuration of a stream."""
    if stream.delivery.method == PUSH:
        where = stream.delivery.endpoint_url or ""
    else:
        where = f"{terms.base_url}/ssf/v1/streams/{stream.stream_id}/poll"
    return Shown(
        stream_id=stream.stream_id,
        iss=terms.issuer,
        aud=stream.owner,
        delivery={"method": stream.delivery.method, "endpoint_url": where},
        events_supported=SUPPORTED,
        events_requested=UNSET if stream.events_requested is None else stream.events_requested,
        events_delivered=stream.events_delivered,
        min_verification_interval=terms.min_verification_interval_seconds,
        description=stream.description or UNSET,
    )


def shown_status(stream: Stream) -> ShownStatus:
    """The status of a stream."""
    return ShownStatus(stream.stream_id, stream.status, stream.reason or UNSET)


def create(asked: Asked, *, stream_id: str, owner: str, start_at: datetime, terms: Terms, seal: Seal) -> Stream:
    """A new stream, which hears of everything from `start_at` on. Raises `Refused`."""
    return Stream(
        stream_id=stream_id,
        owner=owner,
        start_at=start_at,
        delivery=_delivery(asked.delivery, None, stream_id=stream_id, terms=terms, seal=seal),
        events_requested=None if asked.events_requested is UNSET else _unique(asked.events_requested),
        description=_description(asked.description),
    )


def change(stream: Stream, asked: ChangeAsked, *, terms: Terms, seal: Seal) -> Stream:
    """PATCH: what is there counts, what is absent stays (SSF 1.0 section 8.1.1.3). Raises `Refused`."""
    _refuse_other(stream, asked, terms)
    changed: dict[str, Any] = {}
    if asked.delivery is not UNSET:
        changed["delivery"] = _delivery(
            asked.delivery, stream.delivery, stream_id=stream.stream_id, terms=terms, seal=seal
        )
    if asked.events_requested is not UNSET:
        changed["events_requested"] = _unique(asked.events_requested)
    if asked.description is not UNSET:
        changed["description"] = _description(asked.description)
    return structs.replace(stream, **changed)


def replace(stream: Stream, asked: ChangeAsked, *, terms: Terms, seal: Seal) -> Stream:
    """PUT: what is absent is gone (SSF 1.0 section 8.1.1.4). Raises `Refused`.

    But for the secret of a receiver whose `endpoint_url` stays: it is never shown, so whoever reads, changes and
    writes back cannot give it. The empty string takes it away.
    """
    _refuse_other(stream, asked, terms)
    return structs.replace(
        stream,
        delivery=_delivery(asked.delivery, stream.delivery, stream_id=stream.stream_id, terms=terms, seal=seal),
        events_requested=None if asked.events_requested is UNSET else _unique(asked.events_requested),
        description=_description(asked.description),
    )


def with_status(stream: Stream, asked: StatusAsked, *, now: datetime) -> Stream:
    """The stream with another status. One that was disabled hears again from `now` on. Raises `Refused`."""
    if asked.status not in get_args(Status):
        raise Refused("status", f"one of {', '.join(get_args(Status))}")
    status: Status = msgspec.convert(asked.status, Status)
    woken = stream.status == "disabled" and status != "disabled"
    return structs.replace(
        stream,
        status=status,
        reason=None if asked.reason is UNSET else asked.reason or None,
        start_at=now if woken else stream.start_at,
        # Nothing is held for a stream that is disabled.
        verifications=() if status == "disabled" else stream.verifications,
    )


def with_subject(stream: Stream, asked: SubjectAsked, *, hears: bool) -> Stream:
    """The stream, hearing of a subject or not. Raises `Refused`, `TooManyRules`."""
    if not is_identifier(asked.subject):
        raise Refused("subject", "a subject identifier (RFC 9493)")
    if len(msgspec.json.encode(asked.subject)) > MAX_SUBJECT_BYTES:
        raise Refused("subject", f"at most {MAX_SUBJECT_BYTES} bytes")
    return structs.replace(stream, rules=with_rule(stream.rules, Rule(hears, asked.subject)))


def with_verification(
    stream: Stream, asked: VerificationAsked, *, verification_id: str, now: datetime, terms: Terms
) -> Stream:
    """The stream with a verification event to deliver. Raises `TooSoon`, and `Refused` where it is disabled."""
    if stream.status == "disabled":
        raise Refused("stream_id", "a stream that is not disabled: enable it first")
    interval = timedelta(seconds=terms.min_verification_interval_seconds)
    # A clock that jumped back must not lock anybody out.
    if stream.verified_at is not None and timedelta(0) <= now - stream.verified_at < interval:
        raise TooSoon(int((stream.verified_at + interval - now).total_seconds()) + 1)
    if len(stream.verifications) >= MAX_VERIFICATIONS:
        raise TooSoon(terms.min_verification_interval_seconds)
    verification = Verification(verification_id, now, None if asked.state is UNSET else asked.state)
    return structs.replace(stream, verifications=(*stream.verifications, verification), verified_at=now)


def without_verification(stream: Stream, verification_id: str) -> Stream:
    """The stream after a verification event was delivered."""
    left = tuple(each for each in stream.verifications if each.id != verification_id)
    return structs.replace(stream, verifications=left)


def _delivery(
    asked: DeliveryAsked | UnsetType, before: Delivery | None, *, stream_id: str, terms: Terms, seal: Seal
) -> Delivery:
    if asked is UNSET or asked.method == POLL:
        return Delivery(POLL)  # what SSF 1.0 section 8.1.1.1 has for those who say nothing
    if asked.method != PUSH:
        raise Refused("delivery.method", f"one of {', '.join(METHODS)}")
    if asked.endpoint_url is UNSET:
        raise Refused("delivery.endpoint_url", "the URL to push to")
    try:
        terms.check_url(asked.endpoint_url)
    except ValueError as error:
        raise Refused("delivery.endpoint_url", str(error)) from error
    header = asked.authorization_header
    if header is UNSET:
        same = before is not None and before.endpoint_url == asked.endpoint_url
        return Delivery(PUSH, asked.endpoint_url, before.authorization if before is not None and same else None)
    # RFC 9110 section 5.5: visible characters, spaces and tabs between them; anything else is no header.
    if not (header.isascii() and header.replace("\t", " ").isprintable() and header == header.strip()):
        raise Refused("delivery.authorization_header", "the value of an HTTP header")
    return Delivery(PUSH, asked.endpoint_url, seal(stream_id, header) if header else None)


def _refuse_other(stream: Stream, asked: ChangeAsked, terms: Terms) -> None:
    right = msgspec.to_builtins(shown(stream, terms))
    for name in ("iss", "aud", "events_supported", "events_delivered", "min_verification_interval"):
        given = getattr(asked, name)
        if given is not UNSET and not _same(name, given, right[name]):
            raise Refused(name, "what the transmitter supplies; it cannot be changed")


def _same(name: str, given: object, right: object) -> bool:
    if name == "aud" and isinstance(given, list):
        return given == [right]  # RFC 7519 section 4.1.3: one audience may stand in an array
    if isinstance(given, list) and isinstance(right, list | tuple):
        return sorted(map(str, given)) == sorted(right)  # a set, in any order
    return given == right


def _unique(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _description(given: str | UnsetType) -> str | None:
    return None if given is UNSET else given[:MAX_DESCRIPTION_CHARACTERS] or None
