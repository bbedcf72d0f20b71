"""Events to rows: a batch is folded in the order of the log, then applied with a few set-based statements.

The statements do not depend on how the log was cut into batches: a fact about something applies only where that was
recorded before it. So a rebuild with other batches gives the same rows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, assert_never

import msgspec
from msgspec import Struct

from appraisal import families, flags
from grantbook import subjects, wire
from grantbook.as_of import USER_GRANTS_REVOKED
from grantbook.events import (
    ActivityRecorded,
    ClientDeleted,
    ClientMetadata,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.lifetimes import extension_threshold
from grantbook.sealed import Sealed
from projector import copying
from projector.db import AnyConnection

DAYS_OF_ACTIVITY: Final = timedelta(days=90)
"""As long as the activity's stream holds it: uses by day are kept for so many days before the newest report's."""
SWEPT_AT_ONCE: Final = 5_000
REMEMBERED_SCOPES: Final = 4_096
REMEMBERED_METADATA: Final = 1_024
MAX_REMEMBERED_METADATA_BYTES: Final = 4_096
"""Larger metadata is judged each time: what is remembered stays within a few megabytes."""
NEW_HOST: Final = timedelta(seconds=flags.NEW_HOST_SECONDS)
BURST: Final = timedelta(seconds=flags.BURST_SECONDS)

_HOUR: Final = timedelta(hours=1)
_NOTHING: Final = timedelta(0)
_NEVER: Final = datetime.min.replace(tzinfo=UTC)

GrantKey = tuple[str, str]
Row = tuple[object, ...]

_json: Final = msgspec.json.Encoder()
_metadata: Final = msgspec.json.Decoder(ClientMetadata)


class UnknownType(Exception):
    """An event of a type that this version does not know. A wrong list is worse than a late one."""


class NotOfThisLog(Exception):
    """An event that has no place in the stream that it stands in."""


class ClientGate(Struct, frozen=True):
    """Whether a client is let in, from `position` on."""

    client_key: str
    position: int
    suspended_position: int | None = None
    deleted_position: int | None = None
    deleted_at: datetime | None = None


class LogBatch(Struct):
    """What a batch of the log changes: rows by key, in the order of the log."""

    events: bytearray = msgspec.field(default_factory=bytearray)
    """Rows as `copying` makes them."""
    clients: dict[str, Row] = {}
    metadata: dict[str, Row] = {}
    hosts: dict[str, Row] = {}
    """Of every registration and change, the ones that are overtaken in the batch too."""
    client_gates: dict[tuple[str, bool], ClientGate] = {}
    """By client, and whether the batch registered it before: if it was not before that, nothing earlier counts."""
    grants: dict[GrantKey, Row] = {}
    extensions: dict[GrantKey, Row] = {}
    granted: list[Row] = []
    """When grants were issued or extended, but for those in `grants`."""
    revocations: dict[tuple[str, str, bool], Row] = {}
    """By grant, and whether the batch issued it before: the same."""
    users: dict[str, bool] = {}
    """Whether they let a client in."""
    cut_offs: dict[tuple[str, int], Row] = {}
    hours: Counter[tuple[datetime, str]] = msgspec.field(default_factory=Counter)
    hour: datetime = _NEVER
    """Of the event before."""


class Use(Struct):
    """What a batch of the activity says of the use of one grant."""

    last_at: datetime
    uses: int
    expires_at: datetime | None


class ActivityBatch(Struct):
    """What a batch of the activity changes."""

    grants: dict[GrantKey, Use] = {}
    clients: dict[str, datetime] = {}
    days: Counter[tuple[date, str]] = msgspec.field(default_factory=Counter)
    """Uses of a client on a day."""
    kept_from: date = date.min
    """Days before it are told no more."""


def sealed_usernames(records: Sequence[wire.Recorded]) -> list[Sealed]:
    """The names that the batch's rows need opened."""
    return [each.event.username for each in records if isinstance(each.event, GrantIssued)]


def fold(  # noqa: C901, PLR0912, PLR0915  one case an event type
    batch: LogBatch, recorded: wire.Recorded, usernames: Mapping[Sealed, str]
) -> None:
    """Take the next event of the log into the batch. Raises `UnknownType` and `NotOfThisLog`."""
    position, at, event = recorded.position, recorded.recorded_at, recorded.event
    client = grant = user = None
    match event:  # the most frequent first
        case GrantIssued():
            client, grant, user = map(subjects.token, (event.client_id, event.grant_id, event.user_id))
            batch.users[user] = True
            if (client, grant) in batch.grants:
                batch.granted.append((client, position, event.at))
            else:
                name = usernames.get(event.username)
                folded = "" if name is None else _folded(name)
                batch.grants[client, grant] = (
                    client,
                    grant,
                    None if event.grant_id == grant else _text(event.grant_id),
                    None if event.client_id == client else _text(event.client_id),
                    user,
                    None if event.user_id == user else _text(event.user_id),
                    None if name is None else _text(name),
                    None if folded == name else folded,
                    _array(event.scopes),
                    position,
                    event.at,
                    event.expires_at,
                    _lapse(event.expires_at, extension_threshold(event.at, event.expires_at)),
                    None if event.metadata_sha256 is None else _text(event.metadata_sha256),
                )
        case GrantExtended():
            client, grant, user = map(subjects.token, (event.client_id, event.grant_id, event.user_id))
            lapses_at = _lapse(event.expires_at, extension_threshold(event.issued_at, event.issued_expires_at))
            batch.extensions[client, grant] = (client, grant, position, event.expires_at, lapses_at)
            batch.granted.append((client, position, event.at))
        case GrantRevoked():
            client, grant, user = map(subjects.token, (event.client_id, event.grant_id, event.user_id))
            which = (client, grant, (client, grant) in batch.grants)
            batch.revocations.setdefault(which, (client, grant, position, at, _text(event.reason)))
        case ClientRegistered():
            client = subjects.token(event.client_id)
            judged = _fold_metadata(batch, event.metadata, position, at)
            batch.clients.setdefault(
                client, (client, _text(event.client_id), position, at, event.at, _text(event.source), *judged.columns)
            )
        case ClientMetadataChanged():
            client = subjects.token(event.client_id)
            judged = _fold_metadata(batch, event.metadata, position, at)
            batch.metadata[client] = (client, position, at, *judged.columns)
        case ClientSuspended():
            client = subjects.token(event.client_id)
            _fold_gate(batch, ClientGate(client, position, suspended_position=position))
        case ClientResumed():
            client = subjects.token(event.client_id)
            _fold_gate(batch, ClientGate(client, position))
        case ClientDeleted():
            client = subjects.token(event.client_id)
            _fold_gate(batch, ClientGate(client, position, deleted_position=position, deleted_at=at))
        case UserGrantsRevoked():
            user = event.user_key
            reason = _text(event.reason or USER_GRANTS_REVOKED)
            batch.cut_offs[user, position] = (user, position, at, reason)
            batch.users.setdefault(user, False)
        case ActivityRecorded():
            message = f"position {position} of the log is activity, which has a stream of its own"
            raise NotOfThisLog(message)
        case wire.Unknown():
            message = f"position {position} is a {event.type!r}, which this version does not know"
            raise UnknownType(message)
        case _:
            assert_never(event)
    if not _NOTHING <= at - batch.hour < _HOUR:
        batch.hour = at.replace(minute=0, second=0, microsecond=0)
    batch.hours[batch.hour, recorded.type] += 1
    batch.events += copying.event(position, recorded.id, recorded.type, at, client, grant, user, recorded.body)


def _fold_metadata(batch: LogBatch, metadata: ClientMetadata, position: int, at: datetime) -> "_Judged":
    judged = _judged(metadata)
    for host in judged.hosts:
        batch.hosts.setdefault(host, (host, position, at))
    return judged


def _fold_gate(batch: LogBatch, gate: ClientGate) -> None:
    which = (gate.client_key, gate.client_key in batch.clients)
    before = batch.client_gates.get(which)
    if before is None or before.deleted_position is None:  # nothing follows a deletion
        batch.client_gates[which] = gate


def _lapse(expires_at: datetime, grace: timedelta) -> datetime:
    """When a grant counts as expired. One that expires at the end of time never does."""
    try:
        return expires_at + grace
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def fold_activity(batch: ActivityBatch, recorded: wire.Recorded) -> None:
    """Take the next event of the activity into the batch. Raises `UnknownType` and `NotOfThisLog`."""
    event = recorded.event
    if isinstance(event, wire.Unknown):
        message = f"position {recorded.position} of the activity is a {event.type!r}, which this version does not know"
        raise UnknownType(message)
    if not isinstance(event, ActivityRecorded):
        message = f"position {recorded.position} of the activity is a {recorded.type}, which belongs in the log"
        raise NotOfThisLog(message)
    kept_from = recorded.recorded_at.date() - DAYS_OF_ACTIVITY
    batch.kept_from = max(batch.kept_from, kept_from)
    for window in event.windows:
        client, grant = subjects.token(window.client_id), subjects.token(window.grant_id)
        use = batch.grants.get((client, grant))
        if use is None:
            batch.grants[client, grant] = Use(window.last_at, window.count, window.expires_at)
        else:
            use.last_at = max(use.last_at, window.last_at)
            use.uses += window.count
            if window.expires_at is not None:
                use.expires_at = max(window.expires_at, use.expires_at or window.expires_at)
        batch.clients[client] = max(window.last_at, batch.clients.get(client, window.last_at))
        day = window.last_at.astimezone(UTC).date()
        if day >= kept_from:
            batch.days[day, client] += window.count


async def apply(connection: AnyConnection, batch: LogBatch) -> None:
    """Write what the batch changes, but for its events. In a transaction, after its checkpoint was moved."""
    await connection.execute(
        "SELECT apply_log($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        [(hour, type_, number) for (hour, type_), number in batch.hours.items()],
        *map(
            list,
            (
                batch.hosts.values(),
                batch.clients.values(),
                batch.metadata.values(),
                map(msgspec.structs.astuple, batch.client_gates.values()),
                batch.grants.values(),
                batch.extensions.values(),
                batch.granted,
                batch.revocations.values(),
                batch.users.items(),
                batch.cut_offs.values(),
            ),
        ),
        NEW_HOST,
        flags.BURST_CLIENTS,
        BURST,
    )


async def sweep(connection: AnyConnection) -> int:
    """Close grants whose time is over, at most `SWEPT_AT_ONCE`; how many. In a transaction."""
    # Of a batch that another projector is applying, because it does not know yet that it lost its lock, all is seen or
    # nothing: under which name a client is counted must be what the counts are made from.
    await connection.execute("SELECT FROM checkpoints WHERE read_model = 'log' FOR NO KEY UPDATE")
    closed: int = await connection.fetchval("SELECT close_lapsed($1)", SWEPT_AT_ONCE)
    return closed


async def apply_activity(connection: AnyConnection, batch: ActivityBatch) -> None:
    """Write what the batch of activity changes. In a transaction, after its checkpoint was moved."""
    await connection.execute("DELETE FROM client_days WHERE day < $1", batch.kept_from)
    if not batch.grants:
        return
    await connection.execute(
        """
        UPDATE grants g SET uses = g.uses + n.uses, last_activity_at = greatest(g.last_activity_at, n.last_at),
            activity_expires_at = greatest(g.activity_expires_at, n.expires_at)
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::timestamptz[])
            AS n (client_key, grant_key, last_at, uses, expires_at)
        WHERE g.client_key = n.client_key AND g.grant_key = n.grant_key
        """,
        *_columns((*key, use.last_at, use.uses, use.expires_at) for key, use in batch.grants.items()),
    )
    await connection.execute(
        """
        UPDATE standings c SET last_activity_at = n.last_at
        FROM unnest($1::text[], $2::timestamptz[]) AS n (client_key, last_at)
        WHERE c.client_key = n.client_key AND c.last_activity_at < n.last_at
        """,
        *_columns(batch.clients.items()),
    )
    if days := [(day, client, uses) for (day, client), uses in batch.days.items() if day >= batch.kept_from]:
        await connection.execute(
            """
            INSERT INTO client_days (day, client_key, uses) SELECT * FROM unnest($1::date[], $2::text[], $3::bigint[])
            ON CONFLICT (day, client_key) DO UPDATE SET uses = client_days.uses + excluded.uses
            """,
            *_columns(days),
        )


class _Judged(Struct, frozen=True):
    """What rows say of metadata: columns of `clients`, and the hosts of its redirects."""

    columns: Row
    hosts: tuple[str, ...]


def _judged(metadata: ClientMetadata) -> _Judged:
    encoded = _json.encode(metadata)
    if len(encoded) > MAX_REMEMBERED_METADATA_BYTES:
        return _judgement(encoded)
    return _remembered_judgement(encoded)


def _judgement(encoded: bytes) -> _Judged:
    metadata = _metadata.decode(encoded)
    name = metadata.client_name
    hosts = tuple(map(_text, flags.redirect_hosts(metadata)))
    found = flags.of_metadata(metadata)
    labels = [
        *found,
        *(f"host:{each}" for each in families.redirect_domains(metadata)),
        *(f"grant:{each}" for each in dict.fromkeys(metadata.grant_types)),
    ]
    columns = (
        None if name is None else _text(name),
        "" if name is None else _folded(name),
        _array(metadata.redirect_uris),
        _text("\n".join(metadata.redirect_uris)),
        _array(labels),
        None if metadata.scope is None else _text(metadata.scope),
        _array(metadata.grant_types),
        _text(metadata.token_endpoint_auth_method),
        families.family(metadata),
        _array(found),
        encoded.decode(),
        _array(hosts),
    )
    return _Judged(columns, hosts)


_remembered_judgement: Final = lru_cache(maxsize=REMEMBERED_METADATA)(_judgement)
"""By the metadata's bytes: many registrations say the same, and judging names and hosts takes its time."""


def _columns(rows: Iterable[Row]) -> list[Sequence[object]]:
    return list(zip(*rows, strict=True))


def _text(value: str) -> str:
    """The value as Postgres can hold it: there is no NUL in `text`."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in value else value


def _folded(value: str) -> str:
    return _text(value).casefold()


def _array(values: Sequence[str]) -> str:
    """An array literal: `unnest` would flatten arrays of arrays, so arrays in rows travel as text."""
    return _remembered_array(tuple(values))


@lru_cache(maxsize=REMEMBERED_SCOPES)
def _remembered_array(values: tuple[str, ...]) -> str:
    quoted = (_text(each).replace("\\", "\\\\").replace('"', '\\"') for each in values)
    return "{" + ",".join(f'"{each}"' for each in quoted) + "}"
