"""Answers of the read API, `/admin/v1` and `/audit/v1`. Unset members are absent, never `null`.

Times are RFC 3339 UTC, but for OAuth's own `client_id_issued_at`, which is a number of seconds since 1970. Pages have a
`next_cursor`, absent on the last one, and a `previous_cursor`, absent on the first.
"""

from datetime import datetime
from typing import Any

from msgspec import UNSET, Struct, UnsetType


class ClientItem(Struct, frozen=True, kw_only=True):
    """A client as the list shows it."""

    client_id: str
    client_key: str | UnsetType = UNSET
    """The client's name in paths, given where it differs from `client_id`."""
    client_name: str | UnsetType = UNSET
    redirect_uris: list[str]
    scope: str | UnsetType = UNSET
    grant_types: list[str]
    token_endpoint_auth_method: str
    client_id_issued_at: int
    created_at: datetime
    source: str
    status: str
    """`active`, `suspended` or `deleted`."""
    active_grants: int
    active_users: int
    last_activity_at: datetime | UnsetType = UNSET
    family: str
    flags: list[str]
    """What an admin should look at; `ClientDetail.why_flagged` has a sentence for each."""
    activity: list[int] | UnsetType = UNSET
    """How often it was used on each of the days that were asked for (UTC), the last of which is today."""


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """One thing that happened to a client."""

    position: str
    type: str
    at: datetime
    by: dict[str, str]
    reason: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    changed: list[str] | UnsetType = UNSET


class ClientDetail(ClientItem, frozen=True, kw_only=True):
    """A client with its whole registration (RFC 7591, secrets excepted) and its history, oldest first."""

    metadata: dict[str, Any]
    metadata_sha256: str
    """Fingerprint of the metadata as it is now: see `grantbook.fingerprints`."""
    why_flagged: dict[str, str] | UnsetType = UNSET
    """For each of `flags`, in a sentence, what it says. Absent where there is none."""
    history: list[HistoryEntry]


class GrantItem(Struct, frozen=True, kw_only=True):
    """A grant as lists show it."""

    grant_id: str
    client_id: str
    client_name: str | UnsetType = UNSET
    """Given in lists across clients."""
    user_id: str
    username: str | UnsetType = UNSET
    """Absent once the user was erased."""
    scopes: list[str]
    issued_at: datetime
    last_activity_at: datetime | UnsetType = UNSET
    expires_at: datetime
    status: str
    """`active`, `suspended` (its client is), `expired` or `revoked`."""
    ended_at: datetime | UnsetType = UNSET
    ended_reason: str | UnsetType = UNSET
    metadata_sha256: str | UnsetType = UNSET
    """Of the client's metadata as the user was shown it. Absent where it was not recorded."""


class UserItem(Struct, frozen=True, kw_only=True):
    """A user who ever let a client in."""

    user_id: str
    user_key: str | UnsetType = UNSET
    """The user's name in paths, given where it differs from `user_id`."""
    username: str | UnsetType = UNSET
    """As the latest grant has it. Absent once the user was erased."""
    active_grants: int
    grants: int
    """All that there ever were."""
    last_activity_at: datetime | UnsetType = UNSET


class UserPage(Struct, frozen=True, kw_only=True):
    """A page of users."""

    items: list[UserItem]
    next_cursor: str | UnsetType = UNSET
    previous_cursor: str | UnsetType = UNSET
    total: int | UnsetType = UNSET


class Trend(Struct, frozen=True, kw_only=True):
    """How many there were in the time from `since` on, a day or an hour long, by the log's time."""

    since: datetime
    registered: int
    granted: int
    revoked: int
    """Grants, also those of clients that were deleted."""
    users_cut_off: int
    suspended: int
    deleted: int


class Trends(Struct, frozen=True, kw_only=True):
    """What happened over time, oldest first, times in which nothing happened included; the last is not over yet."""

    by: str
    items: list[Trend]


class FamilyItem(Struct, frozen=True, kw_only=True):
    """Identical registrations, grouped. Deleted clients do not count."""

    family: str
    client_name: str | UnsetType = UNSET
    redirect_uris: list[str]
    clients: int
    active_grants: int
    flags: list[str]
    """All that any of the clients has, but for `never_used`, which is each client's own."""
    first_seen_at: datetime
    last_seen_at: datetime


class Preview(Struct, frozen=True, kw_only=True):
    """What deleting a client, or a whole family, would end now."""

    family: str
    client_id: str | UnsetType = UNSET
    """Given where it is about one client."""
    clients: int
    """Clients that are not deleted yet."""
    active_grants: int
    suspended_grants: int
    """Grants of suspended clients: denied now, and given back if they were resumed instead."""
    users: int
    """Users who have an active grant."""
    scopes: list[str]
    """What the active grants allow, in order of name; the first 100."""
    last_activity_at: datetime | UnsetType = UNSET


class StaleClient(ClientItem, frozen=True, kw_only=True):
    """A client that nobody has used for long.

    `last_used_at` is the latest of its activity, its grants being issued or extended, and its registration.
    """

    last_used_at: datetime


class ClientPage(Struct, frozen=True, kw_only=True):
    """A page of clients."""

    items: list[ClientItem]
    next_cursor: str | UnsetType = UNSET
    previous_cursor: str | UnsetType = UNSET
    total: int | UnsetType = UNSET


class StaleClientPage(Struct, frozen=True, kw_only=True):
    """A page of clients that nobody has used since a moment, which is the same on all pages of a list.

    `as_of` and `activity_as_of` are positions of the two logs that the page holds for. With them the command that
    deletes the clients of a list spares those that came into use since.
    """

    items: list[StaleClient]
    next_cursor: str | UnsetType = UNSET
    previous_cursor: str | UnsetType = UNSET
    total: int | UnsetType = UNSET
    active_grants: int | UnsetType = UNSET
    """Active grants of all clients of the list. Given with `total`."""
    users: int | UnsetType = UNSET
    """Users who have one of these. Given with `total`."""
    unused_since: datetime
    as_of: str
    activity_as_of: str


class GrantPage(Struct, frozen=True, kw_only=True):
    """A page of grants."""

    items: list[GrantItem]
    next_cursor: str | UnsetType = UNSET
    previous_cursor: str | UnsetType = UNSET
    total: int | UnsetType = UNSET


class FamilyPage(Struct, frozen=True, kw_only=True):
    """A page of families."""

    items: list[FamilyItem]
    next_cursor: str | UnsetType = UNSET
    previous_cursor: str | UnsetType = UNSET
    total: int | UnsetType = UNSET


class ReadModelStatus(Struct, frozen=True, kw_only=True):
    """How far a read model is. `halted` says why it stopped, and is absent while it runs."""

    position: str
    lag_events: int
    lag_seconds: float
    halted: str | UnsetType = UNSET


class Totals(Struct, frozen=True, kw_only=True):
    """Counts over the whole register."""

    clients: int
    active_clients: int
    suspended_clients: int
    deleted_clients: int
    grants: int
    active_grants: int
    users: int


class SubscriberStatus(Struct, frozen=True, kw_only=True):
    """A token service, as it said itself when it last did."""

    name: str
    instance: str
    state: str
    """`starting`, `fresh`, `stale` (it denies what it cannot prove), or `gone`: silent for more than 15 s."""
    lag_events: int
    """Revocations that it had not applied."""
    silent_seconds: float
    """Since its last receipt. A subscriber reports at least every 5 s."""


class SubscriberDelivery(Struct, frozen=True, kw_only=True):
    """Whether a token service has applied a revocation, and when."""

    name: str
    instance: str
    state: str
    """As in `SubscriberStatus`."""
    delivered: bool
    delivered_at: datetime | UnsetType = UNSET
    """Absent where it has it, but has applied so much since that it does not tell the time any more, or started
    later."""
    took_ms: float | UnsetType = UNSET
    """From the log's storing the revocation, by the log's clock; at most 20 ms more than it was."""
    silent_seconds: float


class Delivery(Struct, frozen=True, kw_only=True):
    """Which subscribers have applied everything that was revoked up to a position."""

    position: str
    revocation: str
    """Position of the last revocation up to there: that is the one waited for."""
    type: str
    recorded_at: datetime
    complete: bool
    """Every subscriber has it, those that are gone included, and all of them were looked at."""
    truncated: bool | UnsetType = UNSET
    """There are more subscribers than are looked at. Absent where there are not."""
    delivered: int
    waiting: int
    """Subscribers that are there and do not have it yet."""
    gone: int
    """Subscribers that fell silent before they had it. Nobody knows whether they still honour its tokens."""
    slowest: SubscriberDelivery | UnsetType = UNSET
    subscribers: list[SubscriberDelivery]
    """Those that do not have it come first."""


class Status(Struct, frozen=True, kw_only=True):
    """The log's position, each read model's, the token services that follow the revocations, and totals."""

    log_position: str | UnsetType = UNSET
    """Absent while the log cannot be reached."""
    activity_position: str | UnsetType = UNSET
    read_models: dict[str, ReadModelStatus]
    subscribers: list[SubscriberStatus] | UnsetType = UNSET
    """Absent while the log cannot be reached."""
    totals: Totals


class AuditEvent(Struct, frozen=True, kw_only=True):
    """An event as auditors read it: `data` is the event's body as it stands in the log."""

    position: str
    id: str
    type: str
    recorded_at: datetime
    actor: dict[str, str]
    data: dict[str, Any]


class AuditPage(Struct, frozen=True, kw_only=True):
    """A page of events, in the order of the log."""

    items: list[AuditEvent]
    next_cursor: str | UnsetType = UNSET
    previous_cursor: str | UnsetType = UNSET
    total: int | UnsetType = UNSET


class GrantAsOf(Struct, frozen=True, kw_only=True):
    """A grant as it was at a moment."""

    grant_id: str
    user_id: str
    scopes: list[str]
    issued_at: datetime
    expires_at: datetime
    status: str
    ended_at: datetime | UnsetType = UNSET
    ended_reason: str | UnsetType = UNSET
    metadata_sha256: str | UnsetType = UNSET
    """Of the client's metadata as the user was shown it. Absent where it was not recorded."""


class ClientAsOf(Struct, frozen=True, kw_only=True):
    """A client and its grants as they were at a moment, from the log."""

    as_of: str
    """The position that the answer holds for."""
    client_id: str
    status: str
    source: str
    created_at: datetime
    metadata: dict[str, Any]
    metadata_sha256: str
    """Fingerprint of `metadata`: see `grantbook.fingerprints`."""
    grants: list[GrantAsOf]
