"""The contracts for other languages: JSON Schema (2020-12) of every event, and AsyncAPI 3.0 of the log and the feed.

Generated from `grantbook.events`; `python -m grantbook.schema` writes the files anew. They describe what writers of
this version write; a reader accepts more, because contracts grow: members that it does not know, it ignores.
"""

import inspect
from typing import Any, Final

import msgspec

from grantbook import subjects, wire
from grantbook.events import EVENT_TYPES, Event

EVENTS_FILE: Final = "events.schema.json"
ASYNCAPI_FILE: Final = "asyncapi.json"

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_HEADERS: Final[dict[str, str]] = {
    "ce-specversion": "CloudEvents version: 1.0.",
    "ce-id": "The event's id, a UUIDv7 (RFC 9562).",
    "ce-source": f"Who wrote it: {wire.SOURCE}.",
    "ce-type": "The event's type. Dispatch on it before decoding the body.",
    "ce-time": "When it was decided, RFC 3339 in UTC.",
}
_GATES: Final = ("clientGate", "grantGate", "userGate")


def documents() -> dict[str, str]:
    """The text of every generated file, by its name."""
    return {name: _text(document) for name, document in ((EVENTS_FILE, events()), (ASYNCAPI_FILE, asyncapi()))}


def events() -> dict[str, Any]:
    """JSON Schema of the body of every event."""
    [union], definitions = msgspec.json.schema_components([Event], ref_template="#/$defs/{name}")
    document = {
        "$schema": _DRAFT,
        "title": "Events of Grantbook",
        "description": "The body of an event. Its header `ce-type` says which. Unset members are absent, never null.",
        **union,
        "$defs": definitions,
    }
    without_null: dict[str, Any] = _without_null(document)
    return without_null


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 of the subjects of the log and the feed, and what stands on each."""
    channels: dict[str, Any] = {}
    for name, (address, description) in _addresses().items():
        channels[name] = {
            "address": address,
            "description": description,
            "parameters": {
                each: {"description": _PARAMETERS[each]} for each in _PARAMETERS if f"{{{each}}}" in address
            },
            "messages": {
                type_: {"$ref": f"#/components/messages/{type_}"}
                for type_, channel in _channel_of_type().items()
                if channel == name
            },
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Grantbook: the log and the feed",
            "version": "1.0.0",
            "description": (
                f"Stream {subjects.LOG} has every decision for ever, {subjects.ACTIVITY} the use of grants, and "
                f"{subjects.REVOCATIONS} is sourced from the gates of the log for token services."
            ),
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            f"follow{name[0].upper()}{name[1:]}": {
                "action": "receive",
                "summary": f"Follow {address}, from the stream {_stream(name)}.",
                "channel": {"$ref": f"#/channels/{name}"},
            }
            for name, (address, _) in _addresses().items()
        },
        "components": {
            "messages": {
                type_: {
                    "name": type_,
                    "title": type_,
                    "summary": inspect.cleandoc(event.__doc__ or "").partition("\n")[0],
                    "contentType": "application/json",
                    "headers": {"$ref": "#/components/schemas/headers"},
                    "payload": {
                        "schemaFormat": "application/schema+json;version=2020-12",
                        "schema": {"$ref": f"{EVENTS_FILE}#/$defs/{event.__name__}"},
                    },
                }
                for type_, event in EVENT_TYPES.items()
            },
            "schemas": {
                "headers": {
                    "type": "object",
                    "required": list(_HEADERS),
                    "properties": {
                        **{name: {"type": "string", "description": text} for name, text in _HEADERS.items()},
                        "traceparent": {"type": "string", "description": "W3C Trace Context of the request."},
                    },
                }
            },
        },
    }


_PARAMETERS: Final = {
    "client": "Subject token of the client's id.",
    "grant": "Subject token of the grant's id.",
    "user": "Subject token of the user's id.",
    "reporter": "Subject token of who reported.",
}


def _addresses() -> dict[str, tuple[str, str]]:
    return {
        "clientRecord": (subjects.client_record("{client}"), "What the client is."),
        "clientGate": (subjects.client_gate("{client}"), "Whether the client is let in."),
        "grantRecord": (subjects.grant_record("{client}", "{grant}"), "What was granted."),
        "grantGate": (subjects.grant_gate("{client}", "{grant}"), "Whether the grant still stands."),
        "userGate": (subjects.user_gate("{user}"), "All grants of the user up to here end."),
        "activity": (subjects.ACTIVITY_SUBJECTS[0].replace(">", "{reporter}"), "Use of grants, in windows."),
    }


def _channel_of_type() -> dict[str, str]:
    return {
        "client.registered": "clientRecord",
        "client.metadata_changed": "clientRecord",
        "client.suspended": "clientGate",
        "client.resumed": "clientGate",
        "client.deleted": "clientGate",
        "grant.issued": "grantRecord",
        "grant.extended": "grantRecord",
        "grant.revoked": "grantGate",
        "user.grants_revoked": "userGate",
        "activity.recorded": "activity",
    }


def _stream(channel: str) -> str:
    if channel == "activity":
        return subjects.ACTIVITY
    return f"{subjects.LOG}, or {subjects.REVOCATIONS} for this alone" if channel in _GATES else subjects.LOG


def _without_null(schema: Any) -> Any:
    """What writers write: a member that is not set is absent, and never `null`."""
    if isinstance(schema, list):
        return [_without_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: _without_null(value) for name, value in schema.items() if not (name == "default" and value is None)}
    choices = [each for each in kept.get("anyOf", []) if each != {"type": "null"}]
    if len(choices) == 1:
        del kept["anyOf"]
        kept |= choices[0]
    return kept


def _text(document: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
