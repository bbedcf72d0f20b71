"""Every event of the register. The union `Event` at the end IS the list of event types.

How this contract evolves, said once:

- Contracts only grow. A new member comes last and has a default. A member is never renamed, re-typed or deleted.
  Otherwise it is a new event type, with a new tag.
- A reader ignores members that it does not know. For *types* that it does not know each reader states its policy
  (see `docs/events.md`): dispatch on the `ce-type` header before decoding.
- Vocabularies (`kind`, `source`, `reason`) are open strings on the wire, so that a new word never breaks an old
  reader. The words in use today are the constants beside them; writers are checked against those.
- Golden bytes of every type are written once, in `tests/contracts/golden/`, and decode for ever.

Every event says `at` (UTC, when it was decided) and `by` (who). Where it follows from another event, `caused_by` is
that event's id. Unset members are absent from the JSON, never `null` and never `""`.

Two sides of the log: events on a *record* subject carry the full record, events on a *gate* subject the full verdict,
so that the last message of a subject is the whole state. Gates reach every token service and so carry ids alone: free
text and the acting person's id stand in `note`, sealed.
"""

from datetime import datetime
from typing import Annotated, Any, Final, get_args

from msgspec import Meta, Struct

from grantbook.sealed import Sealed

ACTOR_KINDS: Final = ("agent", "idp", "admin", "user", "system")
SOURCES: Final = ("dcr", "cimd", "manual")
"""How a client became known: dynamic registration (RFC 7591), a client ID metadata document, or an admin."""
ACTIVITY_KINDS: Final = ("tool_call", "refresh")
REVOKE_REASONS: Final = ("user", "admin", "reuse_detected", "token_revoked", "offboarded", "policy")
"""What a caller may give as the reason of a revocation, a suspension or a deletion."""
CLIENT_DELETED: Final = "client_deleted"
"""The reason of a `grant.revoked` that the fan-out wrote because its client was deleted."""

Time = Annotated[datetime, Meta(tz=True)]
"""A moment, RFC 3339 with its offset; written in UTC. One without an offset is no moment, and does not decode."""


class Actor(Struct, frozen=True, omit_defaults=True):
    """Who decided. `kind` is one of `ACTOR_KINDS`; `id` is an account name, and absent on gates."""

    kind: str
    id: str | None = None


class ClientMetadata(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Client metadata as registered (RFC 7591 section 2), with its final values, defaults included.

    A closed list: members that a client sends beyond these are not stored. `localized` holds the
    `name#language-tag` members of section 2.2 under their full name as sent.
    """

    redirect_uris: tuple[str, ...] = ()
    token_endpoint_auth_method: str
    grant_types: tuple[str, ...]
    response_types: tuple[str, ...] = ()
    application_type: str | None = None
    client_name: str | None = None
    client_uri: str | None = None
    logo_uri: str | None = None
    scope: str | None = None
    contacts: tuple[str, ...] = ()
    tos_uri: str | None = None
    policy_uri: str | None = None
    jwks_uri: str | None = None
    jwks: dict[str, Any] | None = None
    software_id: str | None = None
    software_version: str | None = None
    software_statement: str | None = None
    localized: dict[str, str] = {}


class _Event(Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="type"):
    at: Time
    by: Actor
    caused_by: str | None = None


class ClientRegistered(_Event, frozen=True, kw_only=True, tag="client.registered"):
    """A client exists from here on. On its record."""

    client_id: str
    source: str
    metadata: ClientMetadata


class ClientMetadataChanged(_Event, frozen=True, kw_only=True, tag="client.metadata_changed"):
    """The client's metadata was replaced by `metadata`. On its record; `registered_at` is copied along."""

    client_id: str
    source: str
    metadata: ClientMetadata
    registered_at: Time
    changed: tuple[str, ...]
    """Names of the metadata members whose value differs from before."""


class ClientSuspended(_Event, frozen=True, kw_only=True, tag="client.suspended"):
    """The client's grants are denied and none is issued until it is resumed. On its gate."""

    client_id: str
    reason: str | None = None
    note: Sealed | None = None


class ClientResumed(_Event, frozen=True, kw_only=True, tag="client.resumed"):
    """The client is let in again, with the grants that it had. On its gate."""

    client_id: str
    reason: str | None = None
    note: Sealed | None = None


class ClientDeleted(_Event, frozen=True, kw_only=True, tag="client.deleted"):
    """The one fact that ends every grant of the client, for ever. On its gate; nothing on it follows."""

    client_id: str
    reason: str | None = None
    note: Sealed | None = None


class GrantIssued(_Event, frozen=True, kw_only=True, tag="grant.issued"):
    """A user let the client in. On the grant's record. `username` is sealed with the user's data key."""

    client_id: str
    grant_id: str
    user_id: str
    username: Sealed
    scopes: tuple[str, ...]
    expires_at: Time
    metadata_sha256: str | None = None
    """Of the client's metadata as the user was shown it: see `grantbook.fingerprints`. Absent in older events."""


class GrantExtended(_Event, frozen=True, kw_only=True, tag="grant.extended"):
    """A refresh moved the expiry far enough to be logged. On the grant's record, with all that was issued."""

    client_id: str
    grant_id: str
    user_id: str
    username: Sealed
    scopes: tuple[str, ...]
    expires_at: Time
    issued_at: Time
    issued_expires_at: Time
    issued_position: int
    """Sequence of the grant's `grant.issued` in the log: what a user's cut-off is compared with."""
    metadata_sha256: str | None = None
    """As it was issued."""


class GrantRevoked(_Event, frozen=True, kw_only=True, tag="grant.revoked"):
    """The grant stands no longer. On its gate."""

    client_id: str
    grant_id: str
    user_id: str
    reason: str
    note: Sealed | None = None


class UserGrantsRevoked(_Event, frozen=True, kw_only=True, tag="user.grants_revoked"):
    """Every grant of the user whose `grant.issued` stands before this in the log has ended. On the user's gate.

    `user_key` is the subject token of the user's id; `user_id` is absent when the caller knew the key alone.
    """

    user_key: str
    user_id: str | None = None
    reason: str | None = None
    note: Sealed | None = None


class Window(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Use of one grant between two moments, counted."""

    client_id: str
    grant_id: str
    kind: str
    count: int
    first_at: Time
    last_at: Time
    expires_at: Time | None = None
    """For a refresh: the expiry that it moved the grant to."""


class ActivityRecorded(_Event, frozen=True, kw_only=True, tag="activity.recorded"):
    """What a reporter saw of the use of grants: up to `MAX_WINDOWS` windows, never a message a call."""

    windows: tuple[Window, ...]
    report_id: str | None = None


MAX_WINDOWS: Final = 500

Event = (
    ClientRegistered
    | ClientMetadataChanged
    | ClientSuspended
    | ClientResumed
    | ClientDeleted
    | GrantIssued
    | GrantExtended
    | GrantRevoked
    | UserGrantsRevoked
    | ActivityRecorded
)
"""The union of all event types."""

EVENT_TYPES: Final[dict[str, type[Event]]] = {str(each.__struct_config__.tag): each for each in get_args(Event)}
"""Tag to Struct, for every type in the union."""
_TYPES: Final[dict[type[Event], str]] = {struct: tag for tag, struct in EVENT_TYPES.items()}


def type_of(event: Event) -> str:
    """The event's type tag, as in the `ce-type` header: `client.registered`, `grant.revoked`, ..."""
    return _TYPES[type(event)]
