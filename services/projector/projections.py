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

    position: int
    suspended_position: int | None = None
    deleted_position: int | None = None
    deleted_at: datetime | None = None


class LogBatch(Struct):
    """What a batch of the log changes: rows by key, in the order of the log."""

    events: list[Row] = []
    clients: dict[str, Row] = {}
    metadata: dict[str, Row] = {}
    hosts: dict[str, Row] = {}
    """Of every registration and change, the ones that are overtaken in the batch too."""
    client_gates: dict[str, ClientGate] = {}
    grants: dict[GrantKey, Row] = {}
    extensions: dict[GrantKey, Row] = {}
    granted: list[Row] = []
    revocations: dict[GrantKey, Row] = {}
    users: dict[str, bool] = {}
    """Whether they let a client in."""
    cut_offs: dict[tuple[str, int], Row] = {}
    hours: Counter[tuple[datetime, str]] = msgspec.field(default_factory=Counter)


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


def fold(  # noqa: C901  one case an event type
    batch: LogBatch, recorded: wire.Recorded, usernames: Mapping[Sealed, str]
) -> None:
    """Take the next event of the log into the batch. Raises `UnknownType` and `NotOfThisLog`."""
    position, at, event = recorded.position, recorded.recorded_at, recorded.event
    client = grant = user = None
    match event:
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
            _fold_gate(batch, client, ClientGate(position, suspended_position=position))
        case ClientResumed():
            client = subjects.token(event.client_id)
            _fold_gate(batch, client, ClientGate(position))
        case ClientDeleted():
            client = subjects.token(event.client_id)
            _fold_gate(batch, client, ClientGate(position, deleted_position=position, deleted_at=at))
        case GrantIssued():
            client, grant, user = map(subjects.token, (event.client_id, event.grant_id, event.user_id))
            name = usernames.get(event.username)
            batch.grants.setdefault(
                (client, grant),
                (
                    client,
                    grant,
                    _text(event.grant_id),
                    _text(event.client_id),
                    user,
                    _text(event.user_id),
                    None if name is None else _text(name),
                    "" if name is None else _folded(name),
                    _array(event.scopes),
                    position,
                    event.at,
                    event.expires_at,
                    _lapse(event.expires_at, extension_threshold(event.at, event.expires_at)),
                    None if event.metadata_sha256 is None else _text(event.metadata_sha256),
                ),
            )
            batch.granted.append((client, position, event.at))
            batch.users[user] = True
        case GrantExtended():
            client, grant, user = map(subjects.token, (event.client_id, event.grant_id, event.user_id))
            lapses_at = _lapse(event.expires_at, extension_threshold(event.issued_at, event.issued_expires_at))
            batch.extensions[client, grant] = (client, grant, position, event.expires_at, lapses_at)
            batch.granted.append((client, position, event.at))
        case GrantRevoked():
            client, grant, user = map(subjects.token, (event.client_id, event.grant_id, event.user_id))
            batch.revocations.setdefault((client, grant), (client, grant, position, at, _text(event.reason)))
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
    batch.hours[at.replace(minute=0, second=0, microsecond=0), recorded.type] += 1
    batch.events.append((position, recorded.id, recorded.type, at, client, grant, user, recorded.body.decode()))


def _fold_metadata(batch: LogBatch, metadata: ClientMetadata, position: int, at: datetime) -> "_Judged":
    judged = _judged(metadata)
    for host in judged.hosts:
        batch.hosts.setdefault(host, (host, position, at))
    return judged


def _fold_gate(batch: LogBatch, client: str, gate: ClientGate) -> None:
    before = batch.client_gates.get(client)
    if before is None or before.deleted_position is None:  # nothing follows a deletion
        batch.client_gates[client] = gate


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
    """Write what the batch changes. In a transaction, after its checkpoint was moved."""
    await connection.execute(
        """
        INSERT INTO events (position, event_id, type, recorded_at, client_key, grant_key, user_key, body)
        SELECT * FROM unnest(
            $1::bigint[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::json[])
        """,
        *_columns(batch.events),
    )
    if batch.hours:
        await connection.execute(
            """
            INSERT INTO hours (hour, type, events) SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::bigint[])
            ON CONFLICT (hour, type) DO UPDATE SET events = hours.events + excluded.events
            """,
            *_columns((hour, type_, number) for (hour, type_), number in batch.hours.items()),
        )
    if batch.hosts:
        await connection.execute(
            """
            INSERT INTO redirect_hosts (host, first_position, first_seen_at)
            SELECT * FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) ON CONFLICT DO NOTHING
            """,
            *_columns(batch.hosts.values()),
        )
    await _apply_clients(connection, batch)
    if batch.client_gates:
        await connection.execute(
            """
            UPDATE clients c SET suspended_position = n.suspended_position, deleted_position = n.deleted_position,
                deleted_at = n.deleted_at
            FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[])
                AS n (client_key, position, suspended_position, deleted_position, deleted_at)
            WHERE c.client_key = n.client_key AND c.registered_position < n.position AND c.deleted_position IS NULL
            """,
            *_columns(
                (key, gate.position, gate.suspended_position, gate.deleted_position, gate.deleted_at)
                for key, gate in batch.client_gates.items()
            ),
        )
        await connection.execute(
            """
            UPDATE standings s SET gated = n.gated
            FROM (
                SELECT client_key, suspended_position IS NOT NULL OR deleted_position IS NOT NULL AS gated FROM clients
                WHERE client_key = ANY($1::text[])
            ) n
            WHERE s.client_key = n.client_key AND s.gated <> n.gated
            """,
            list(batch.client_gates),
        )
    await _apply_grants(connection, batch)
    if batch.users:
        await connection.execute(
            """
            INSERT INTO users AS u (user_key, granted) SELECT * FROM unnest($1::text[], $2::boolean[])
            ON CONFLICT (user_key) DO UPDATE SET granted = true WHERE excluded.granted AND NOT u.granted
            """,
            *_columns(batch.users.items()),
        )
    if batch.cut_offs:
        await connection.execute(
            """
            WITH n AS (
                INSERT INTO cut_offs (user_key, position, recorded_at, reason)
                SELECT * FROM unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[])
                RETURNING user_key, position
            )
            UPDATE users u SET cut_off_position = last.position
            FROM (SELECT user_key, max(position) AS position FROM n GROUP BY user_key) last
            WHERE u.user_key = last.user_key
            """,
            *_columns(batch.cut_offs.values()),
        )
    if batch.extensions or batch.cut_offs:
        await connection.execute(
            f"""
            WITH touched AS (
                SELECT g.client_key, g.grant_key FROM unnest($1::text[], $2::text[]) AS k (client_key, grant_key)
                JOIN grants g USING (client_key, grant_key)
                UNION
                SELECT g.client_key, g.grant_key FROM grants g WHERE g.user_key = ANY($3::text[]) AND g.open
            ), changed AS (
                UPDATE grants g SET open = NOT g.open
                FROM touched t JOIN grants o USING (client_key, grant_key) LEFT JOIN users u USING (user_key)
                WHERE g.client_key = t.client_key AND g.grant_key = t.grant_key AND o.open <> (
                    o.revoked_position IS NULL AND coalesce(u.cut_off_position, 0) < o.issued_position
                    AND o.lapses_at > now()
                )
                RETURNING g.client_key, g.user_key, 0 AS issued, CASE WHEN g.open THEN 1 ELSE -1 END AS opened
            ){_COUNTED}
            """,
            *(_columns(batch.extensions) or ([], [])),
            list({user for user, _ in batch.cut_offs}),
        )


_COUNTED: Final = """
    , by_user AS (
        SELECT client_key, user_key, sum(issued) AS issued, sum(opened) AS opened FROM changed GROUP BY 1, 2
    ), counted AS (
        INSERT INTO client_users AS u (client_key, user_key, open_grants)
        SELECT client_key, user_key, opened FROM by_user WHERE opened <> 0
        ON CONFLICT (client_key, user_key) DO UPDATE SET open_grants = u.open_grants + excluded.open_grants
        RETURNING client_key, user_key, open_grants
    )
    INSERT INTO standings AS s (client_key, grants, open_grants, open_users)
    SELECT b.client_key, sum(b.issued), sum(b.opened),
        coalesce(sum((c.open_grants > 0)::int - (c.open_grants - b.opened > 0)::int), 0)
    FROM by_user b LEFT JOIN counted c USING (client_key, user_key)
    WHERE b.issued <> 0 OR b.opened <> 0
    GROUP BY b.client_key
    ON CONFLICT (client_key) DO UPDATE SET grants = s.grants + excluded.grants,
        open_grants = s.open_grants + excluded.open_grants, open_users = s.open_users + excluded.open_users
"""
"""The end of a statement whose `changed` are grants that were issued or that opened (1) or closed (-1)."""


async def sweep(connection: AnyConnection) -> int:
    """Close grants whose time is over, at most `SWEPT_AT_ONCE`; how many. In a transaction.

    Reads look at the time themselves: this keeps the counts of all clients, which cannot.
    """
    closed: int = await connection.fetchval(
        f"""
        WITH due AS (
            SELECT client_key, grant_key FROM grants WHERE open AND lapses_at <= now() ORDER BY lapses_at LIMIT $1
        ), changed AS (
            UPDATE grants g SET open = false FROM due d WHERE g.client_key = d.client_key AND g.grant_key = d.grant_key
            RETURNING g.client_key, g.user_key, 0 AS issued, -1 AS opened
        ){_COUNTED}
        RETURNING (SELECT count(*) FROM due)
        """,
        SWEPT_AT_ONCE,
    )
    return closed or 0


async def _apply_clients(connection: AnyConnection, batch: LogBatch) -> None:
    """Registrations and changed metadata. The batch's hosts must be there: when one was first seen is looked up."""
    if batch.clients:
        # An id is registered once. Should it ever stand in the log again, the first counts. A registration is one of
        # many if that which stands so many places before it, among those of its family, was shortly before it.
        await connection.execute(
            """
            WITH registered AS (
            WITH n AS MATERIALIZED (
                SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::timestamptz[],
                    $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[],
                    $14::text[], $15::text[], $16::text[], $17::json[], $18::text[])
                    AS n (client_key, client_id, position, registered_at, created_at, source, client_name, folded,
                    redirect_uris, redirect_text, labels, scope, grant_types, auth_method, family, flags, metadata,
                    redirect_hosts)
                WHERE NOT EXISTS (SELECT FROM clients c WHERE c.client_key = n.client_key)
            ), paced AS (
                SELECT position, registered_at - lag(registered_at, $20::int) OVER (
                    PARTITION BY family ORDER BY position
                ) <= $21::interval AS many
                FROM (
                    SELECT family, position, registered_at FROM n
                    UNION ALL
                    SELECT f.family, b.registered_position, b.registered_at
                    FROM (SELECT DISTINCT family FROM n) f
                    CROSS JOIN LATERAL (
                        SELECT c.registered_position, c.registered_at FROM clients c
                        WHERE c.registered_family = f.family ORDER BY c.registered_position DESC LIMIT $20::int
                    ) b
                ) all_of_family
            )
            INSERT INTO clients (client_key, client_id, registered_position, registered_at, created_at, source,
                client_name, client_name_folded, redirect_uris, redirect_text, labels, scope, grant_types,
                token_endpoint_auth_method, family, registered_family, flags, metadata, new_redirect_host,
                many_registrations)
            SELECT n.client_key, n.client_id, n.position, n.registered_at, n.created_at, n.source, n.client_name,
                n.folded, n.redirect_uris::text[], n.redirect_text, n.labels::text[] || ('source:' || n.source),
                n.scope, n.grant_types::text[],
                n.auth_method, n.family, n.family, n.flags::text[], n.metadata,
                EXISTS (
                    SELECT FROM redirect_hosts h
                    WHERE h.host = ANY(n.redirect_hosts::text[]) AND h.first_seen_at > n.registered_at - $19::interval
                ),
                coalesce(p.many, false)
            FROM n JOIN paced p USING (position)
            RETURNING client_key, registered_position
            )
            INSERT INTO standings AS s (client_key, registered_position) SELECT * FROM registered
            ON CONFLICT (client_key) DO UPDATE SET registered_position = excluded.registered_position
            """,
            *_columns(batch.clients.values()),
            NEW_HOST,
            flags.BURST_CLIENTS,
            BURST,
        )
    if batch.metadata:
        await connection.execute(
            """
            UPDATE clients c SET client_name = n.client_name, client_name_folded = n.folded,
                redirect_uris = n.redirect_uris::text[], redirect_text = n.redirect_text,
                labels = n.labels::text[] || ('source:' || c.source), scope = n.scope,
                grant_types = n.grant_types::text[], token_endpoint_auth_method = n.auth_method, family = n.family,
                flags = n.flags::text[], metadata = n.metadata,
                new_redirect_host = EXISTS (
                    SELECT FROM redirect_hosts h
                    WHERE h.host = ANY(n.redirect_hosts::text[]) AND h.first_seen_at > n.changed_at - $16::interval
                )
            FROM unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::json[], $15::text[])
                AS n (client_key, position, changed_at, client_name, folded, redirect_uris, redirect_text, labels,
                scope, grant_types, auth_method, family, flags, metadata, redirect_hosts)
            WHERE c.client_key = n.client_key AND c.registered_position < n.position
            """,
            *_columns(batch.metadata.values()),
            NEW_HOST,
        )


async def _apply_grants(connection: AnyConnection, batch: LogBatch) -> None:
    if batch.grants:
        # An id is issued once. Should a second `issued` ever stand in the log, the first counts.
        await connection.execute(
            f"""
            WITH changed AS (
            INSERT INTO grants (client_key, grant_key, grant_id, client_id, user_key, user_id, username,
                username_folded, scopes, issued_position, issued_at, logged_expires_at, lapses_at, metadata_sha256,
                open)
            SELECT n.client_key, n.grant_key, n.grant_id, n.client_id, n.user_key, n.user_id, n.username, n.folded,
                n.scopes::text[], n.position, n.issued_at, n.expires_at, n.lapses_at, n.metadata_sha256,
                n.lapses_at > now()
            FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::bigint[], $11::timestamptz[], $12::timestamptz[], $13::timestamptz[], $14::text[])
                AS n (client_key, grant_key, grant_id, client_id, user_key, user_id, username, folded, scopes, position,
                issued_at, expires_at, lapses_at, metadata_sha256)
            ON CONFLICT DO NOTHING
            RETURNING client_key, user_key, 1 AS issued, open::int AS opened
            ){_COUNTED}
            """,
            *_columns(batch.grants.values()),
        )
    if batch.extensions:
        await connection.execute(
            """
            UPDATE grants g SET logged_expires_at = n.expires_at, lapses_at = n.lapses_at
            FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::timestamptz[])
                AS n (client_key, grant_key, position, expires_at, lapses_at)
            WHERE g.client_key = n.client_key AND g.grant_key = n.grant_key AND g.issued_position < n.position
            """,
            *_columns(batch.extensions.values()),
        )
    if batch.granted:
        # Of what stands before the registration nothing counts, so each is compared before the latest is taken.
        await connection.execute(
            """
            UPDATE standings c SET last_granted_at = n.at
            FROM (
                SELECT g.client_key, max(g.at) AS at
                FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS g (client_key, position, at)
                JOIN standings r ON r.client_key = g.client_key AND r.registered_position < g.position
                GROUP BY g.client_key
            ) n
            WHERE c.client_key = n.client_key AND c.last_granted_at < n.at
            """,
            *_columns(batch.granted),
        )
    if batch.revocations:
        await connection.execute(
            f"""
            WITH changed AS (
                UPDATE grants g SET revoked_position = n.position, revoked_at = n.at, revoked_reason = n.reason,
                    open = false
                FROM (
                    SELECT n.*, o.open AS was_open
                    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[])
                        AS n (client_key, grant_key, position, at, reason)
                    JOIN grants o USING (client_key, grant_key)
                ) n
                WHERE g.client_key = n.client_key AND g.grant_key = n.grant_key AND g.issued_position < n.position
                    AND g.revoked_position IS NULL
                RETURNING g.client_key, g.user_key, 0 AS issued, CASE WHEN n.was_open THEN -1 ELSE 0 END AS opened
            ){_COUNTED}
            """,
            *_columns(batch.revocations.values()),
        )


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
