"""The contracts for other languages: JSON Schema of every event, and AsyncAPI of the log, and of the feed.

- `events.schema.json`: JSON Schema 2020-12 of the body of every event.
- `asyncapi.json`: AsyncAPI 3.1 of the subjects of the log and the activity, with references to the former.
- `feed.asyncapi.json`: AsyncAPI 3.1 of the feed of revocations, for token services: all that one needs, in one file.

Generated from `grantbook.events`; `python -m grantbook.schema` writes the files anew. They describe what writers of
this version write; a reader accepts more, because contracts grow: members that it does not know, it ignores.

AsyncAPI's binding for NATS knows queue groups alone, and nobody may read the feed in one: each process needs all of it.
So there are no bindings; `x-jetstream` names the stream of an operation.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from grantbook import subjects, wire
from grantbook.events import EVENT_TYPES, Event

EVENTS_FILE: Final = "events.schema.json"
ASYNCAPI_FILE: Final = "asyncapi.json"
FEED_FILE: Final = "feed.asyncapi.json"

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_ASYNCAPI: Final = "3.1.0"
_VERSION: Final = "1.0.0"
_HEADERS: Final[dict[str, dict[str, str]]] = {
    "ce-specversion": {"description": "CloudEvents version: 1.0."},
    "ce-id": {"description": "The event's id, a UUIDv7 (RFC 9562).", "format": "uuid"},
    "ce-source": {"description": f"Who wrote it: {wire.SOURCE}."},
    "ce-type": {"description": "The event's type. Dispatch on it before decoding the body."},
    "ce-time": {"description": "When it was decided, RFC 3339 in UTC.", "format": "date-time"},
}
_SOURCE_HEADER: Final = {
    "description": (
        f"Where the log has it: the word {subjects.LOG}, a space, its sequence there. What follows is the server's own."
    ),
    "pattern": f"^{subjects.LOG} [0-9]+( |$)",
}
_EXAMPLE_SEQUENCE: Final = 7


class Example(Struct, frozen=True):
    """An event as it was written once: what the documents show."""

    subject: str
    headers: dict[str, str]
    payload: dict[str, Any]


def documents(examples: Mapping[str, Example]) -> dict[str, str]:
    """The text of every generated file, by its name. `examples` has one event of each type."""
    made = ((EVENTS_FILE, events()), (ASYNCAPI_FILE, asyncapi(examples)), (FEED_FILE, feed(examples)))
    return {name: _text(document) for name, document in made}


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


def asyncapi(examples: Mapping[str, Example]) -> dict[str, Any]:
    """AsyncAPI of the subjects of the log, the activity and the feed, and what stands on each."""
    return {
        "asyncapi": _ASYNCAPI,
        "info": {
            "title": "Grantbook: the log, the activity and the feed",
            "version": _VERSION,
            "description": (
                f"Stream {subjects.LOG} has every decision for ever, {subjects.ACTIVITY} the use of grants, and "
                f"{subjects.REVOCATIONS} is sourced from the gates of the log for token services: {FEED_FILE}."
            ),
            "license": _LICENSE,
        },
        "defaultContentType": _JSON,
        "servers": _SERVERS,
        "channels": _channels(_CHANNELS),
        "operations": _operations(_CHANNELS, _stream_of),
        "components": {
            "messages": {
                type_: _message(type_, examples[type_].headers, examples[type_].payload)
                | {
                    "payload": {
                        "schemaFormat": "application/schema+json;version=2020-12",
                        "schema": {"$ref": f"{EVENTS_FILE}#/$defs/{EVENT_TYPES[type_].__name__}"},
                    }
                }
                for channel in _CHANNELS
                for type_ in _TYPES[channel]
            },
            "schemas": {"headers": _headers({})},
            "securitySchemes": _SECURITY,
        },
    }


def feed(examples: Mapping[str, Example]) -> dict[str, Any]:
    """AsyncAPI of the feed of revocations, for token services, with all schemas in it."""
    types = [type_ for channel in _GATES for type_ in _TYPES[channel]]
    _, schemas = msgspec.json.schema_components(
        [EVENT_TYPES[each] for each in types], ref_template=f"{_SCHEMAS}{{name}}"
    )
    return {
        "asyncapi": _ASYNCAPI,
        "info": {
            "title": "Grantbook: the feed of revocations",
            "version": _VERSION,
            "description": _FEED,
            "license": _LICENSE,
        },
        "defaultContentType": _JSON,
        "servers": _SERVERS,
        "channels": _channels(_GATES),
        "operations": _operations(_GATES, lambda _: subjects.REVOCATIONS),
        "components": {
            "messages": {
                type_: _message(type_, _sourced(examples[type_]), examples[type_].payload)
                | {"payload": {"$ref": f"{_SCHEMAS}{EVENT_TYPES[type_].__name__}"}}
                for type_ in types
            },
            "schemas": {
                "headers": _headers({wire.STREAM_SOURCE_HEADER: _SOURCE_HEADER}),
                **_without_null(schemas),
            },
            "securitySchemes": _SECURITY,
        },
    }


_JSON: Final = "application/json"
_SCHEMAS: Final = "#/components/schemas/"
_LICENSE: Final = {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
_SERVERS: Final[dict[str, Any]] = {
    "nats": {
        "host": "{host}",
        "protocol": "nats",
        "description": "Any server of the cluster, with JetStream. A client is given several of them.",
        "variables": {"host": {"default": "localhost:4222", "description": "Host and port."}},
        "security": [{"$ref": "#/components/securitySchemes/user"}],
    }
}
_SECURITY: Final = {
    "user": {
        "type": "userPassword",
        "description": "A user of NATS who may read the stream, or whatever else the operator lets in.",
    }
}
_FEED: Final = f"""\
Every event that ends or suspends something, and nothing personal: stream `{subjects.REVOCATIONS}`, sourced from the
gates of the log. A token service reads it in order and without acknowledgements, with a consumer of its own in each
process; it begins where the stream was the longest lifetime of an access token ago, and then follows.

- The last message of a subject is the whole state of what the subject names. Nothing follows `client.deleted`.
- `user.grants_revoked` denies tokens of the user whose `iat` is not later than the time at which it was stored, and
  5 s more for clocks that differ, and tokens without `iat`.
- What is not understood denies what its subject names: an unknown `ce-type`, a body that does not decode, an event on
  a subject that is not its own. Unknown members are ignored.
- All tokens are denied while it is not proven that everything was read: each second, at the stream's last sequence,
  with a source that was active within 3 s, has no `lag` and no `error`.

Subject tokens are ids themselves where these are 1 to 64 of `A-Z a-z 0-9 _ -`, else `~` and the base64url SHA-256.
"""
_TOKEN: Final = "the id itself if it is 1 to 64 of A-Z a-z 0-9 _ -, else ~ and its SHA-256 in base64url."  # noqa: S105  a subject's
_PARAMETERS: Final = {
    "client": f"Subject token of the client's id: {_TOKEN}",
    "grant": f"Subject token of the grant's id: {_TOKEN}",
    "user": f"Subject token of the user's id: {_TOKEN}",
    "reporter": f"Subject token of who reported: {_TOKEN}",
}
_CHANNELS: Final = {
    "clientRecord": (subjects.client_record("{client}"), "What the client is."),
    "clientGate": (subjects.client_gate("{client}"), "Whether the client is let in."),
    "grantRecord": (subjects.grant_record("{client}", "{grant}"), "What was granted."),
    "grantGate": (subjects.grant_gate("{client}", "{grant}"), "Whether the grant still stands."),
    "userGate": (subjects.user_gate("{user}"), "All grants of the user up to here end."),
    "activity": (subjects.ACTIVITY_SUBJECTS[0].replace(">", "{reporter}"), "Use of grants, in windows."),
}
_GATES: Final = ("clientGate", "grantGate", "userGate")
_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "clientRecord": ("client.registered", "client.metadata_changed"),
    "clientGate": ("client.suspended", "client.resumed", "client.deleted"),
    "grantRecord": ("grant.issued", "grant.extended"),
    "grantGate": ("grant.revoked",),
    "userGate": ("user.grants_revoked",),
    "activity": ("activity.recorded",),
}


def _channels(names: Iterable[str]) -> dict[str, Any]:
    return {
        name: {
            "address": (address := _CHANNELS[name][0]),
            "title": name,
            "description": _CHANNELS[name][1],
            "servers": [{"$ref": "#/servers/nats"}],
            "parameters": {
                each: {"description": text} for each, text in _PARAMETERS.items() if f"{{{each}}}" in address
            },
            "messages": {type_: {"$ref": f"#/components/messages/{type_}"} for type_ in _TYPES[name]},
        }
        for name in names
    }


def _operations(names: Iterable[str], stream_of: Callable[[str], str]) -> dict[str, Any]:
    return {
        f"follow{name[0].upper()}{name[1:]}": {
            "action": "receive",
            "title": f"Follow {_CHANNELS[name][0]}",
            "summary": f"{_CHANNELS[name][1]} From the stream {stream_of(name)}.",
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{type_}"} for type_ in _TYPES[name]],
            "x-jetstream": {"stream": stream_of(name)},
        }
        for name in names
    }


def _stream_of(channel: str) -> str:
    return subjects.ACTIVITY if channel == "activity" else subjects.LOG


def _message(type_: str, headers: Mapping[str, str], payload: Mapping[str, Any]) -> dict[str, Any]:
    summary = inspect.cleandoc(EVENT_TYPES[type_].__doc__ or "").partition("\n")[0]
    return {
        "name": type_,
        "title": type_,
        "summary": summary,
        "contentType": _JSON,
        "headers": {
            "allOf": [
                {"$ref": f"{_SCHEMAS}headers"},
                {"type": "object", "properties": {"ce-type": {"type": "string", "const": type_}}},
            ]
        },
        "examples": [{"name": type_.replace(".", "-"), "summary": summary, "headers": headers, "payload": payload}],
    }


def _headers(more: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    wanted = {**_HEADERS, **more}
    return {
        "type": "object",
        "required": list(wanted),
        "properties": {
            **{name: {"type": "string", **says} for name, says in wanted.items()},
            "traceparent": {"type": "string", "description": "W3C Trace Context of the request."},
        },
    }


def _sourced(example: Example) -> dict[str, str]:
    """The headers that an event of the log has in the feed."""
    gates = "\f".join(subjects.GATES)
    whole = "\f".join(">" for _ in subjects.GATES)
    source = f"{subjects.LOG} {_EXAMPLE_SEQUENCE} {gates} {whole} {example.subject}"
    return {**example.headers, wire.STREAM_SOURCE_HEADER: source}


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
