"""Records of a stream as lines for people and programs: JSON Lines, and columns. Pure.

Names in events are chosen by anybody. Nothing that a terminal would act upon, or that would turn text around, is
printed as it stands: characters that do not print are escaped, in columns as in JSON.
"""

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from grantbook import positions, wire
from grantbook.events import (
    ActivityRecorded,
    ClientDeleted,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.sdk.log import Raw

COLUMNS: Final = f"{'RECORDED AT':<27}  {'POSITION':>9}  {'TYPE':<23}  {'BY':<16}  ABOUT"
MAX_SHOWN_CHARACTERS: Final = 80
"""Longer ids and names are cut in columns."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A record as a JSON line. `data` is the event's body as it stands in the log."""

    position: str
    id: str
    type: str
    recorded_at: str
    subject: str
    actor: dict[str, Any]
    data: msgspec.Raw
    unsealed: dict[str, Any] = {}
    """What was sealed in `data`, opened, where that was asked for."""
    erased: list[str] = []
    """Members of `data` that nobody can open any more: their person was erased."""


class MalformedLine(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the log and is no event of ours, as a JSON line. `body` is base64."""

    position: str
    recorded_at: str
    subject: str
    malformed: str
    headers: dict[str, str]
    body: str


def position_of(raw: Raw, kind: positions.Kind, identity: str) -> str:
    """The position token of a message."""
    return str(positions.Position(kind, identity, raw.sequence))


def event_line(
    recorded: wire.Recorded, position: str, unsealed: dict[str, Any], erased: list[str]
) -> Line | MalformedLine:
    """A record as a line. A body of an unknown type that is no JSON is as malformed as any."""
    try:
        data = msgspec.Raw(msgspec.json.format(recorded.body, indent=-1))
        actor = msgspec.json.decode(recorded.body, type=_Body).by
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return MalformedLine(
            position=position,
            recorded_at=wire.rfc3339(recorded.recorded_at),
            subject=recorded.subject,
            malformed=f"{recorded.type} has a body that is no event: {error}",
            headers={"ce-id": recorded.id, "ce-type": recorded.type},
            body=base64.b64encode(recorded.body).decode(),
        )
    return Line(
        position=position,
        id=recorded.id,
        type=recorded.type,
        recorded_at=wire.rfc3339(recorded.recorded_at),
        subject=recorded.subject,
        actor=actor,
        data=data,
        unsealed=unsealed,
        erased=erased,
    )


def malformed_line(raw: Raw, position: str, error: wire.Malformed) -> MalformedLine:
    """What is no event of ours, as a line."""
    return MalformedLine(
        position=position,
        recorded_at=wire.rfc3339(raw.stored_at),
        subject=raw.subject,
        malformed=str(error),
        headers=dict(raw.headers or {}),
        body=base64.b64encode(raw.data).decode(),
    )


def as_json(value: Any) -> str:
    """One line of JSON, in which every character that does not print is escaped."""
    line = msgspec.json.encode(value).decode("utf-8", "replace")
    return line if line.isprintable() else "".join(each if each.isprintable() else _json_escape(each) for each in line)


def as_columns(line: Line | MalformedLine, recorded: wire.Recorded | None) -> str:
    """One line for people. See `COLUMNS`."""
    number = line.position.rpartition("-")[2]
    if isinstance(line, MalformedLine):
        return f"{line.recorded_at:<27}  {number:>9}  {'(no event)':<23}  {'':<16}  {shown(line.malformed, 300)}"
    by = ":".join(str(line.actor[each]) for each in ("kind", "id") if each in line.actor)
    about = "" if recorded is None else _about(recorded)
    opened = " ".join(f"{name}={value}" for name, value in _flat(line.unsealed))
    gone = " ".join(f"{name}=(erased)" for name in line.erased)
    text = " ".join(each for each in (about, opened, gone) if each)
    return f"{line.recorded_at:<27}  {number:>9}  {shown(line.type, 23):<23}  {shown(by, 16):<16}  {shown(text, 300)}"


def shown(text: str, most: int = MAX_SHOWN_CHARACTERS) -> str:
    """Text as it may be shown at a terminal: what does not print is escaped, what is too long is cut."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class _Body(msgspec.Struct):
    by: dict[str, Any] = {}


def _about(recorded: wire.Recorded) -> str:
    match recorded.event:
        case ClientRegistered(client_id=client, metadata=metadata, source=source):
            return f"{client} {metadata.client_name or ''} ({source})"
        case ClientMetadataChanged(client_id=client, changed=changed):
            return f"{client} changed {', '.join(changed)}"
        case ClientSuspended() | ClientResumed() | ClientDeleted() as event:
            return f"{event.client_id} {event.reason or ''}".rstrip()
        case GrantIssued() | GrantExtended() as event:
            until = wire.rfc3339(event.expires_at)
            return f"{event.client_id} grant {event.grant_id} user {event.user_id} until {until}"
        case GrantRevoked() as event:
            return f"{event.client_id} grant {event.grant_id} user {event.user_id} {event.reason}"
        case UserGrantsRevoked() as event:
            return f"user {event.user_id or event.user_key} {event.reason or ''}".rstrip()
        case ActivityRecorded(windows=windows):
            uses = sum(each.count for each in windows)
            return f"{uses} uses of {len({(each.client_id, each.grant_id) for each in windows})} grants"
        case wire.Unknown():
            return recorded.subject


def _flat(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value) if isinstance(value, dict) else [(name, value)]
    return found


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
