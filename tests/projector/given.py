"""What the tests of this folder write into the two logs: events as the registry writes them."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Final

from nats.aio.client import Client

from grantbook import positions, subjects, wire
from grantbook.events import (
    ActivityRecorded,
    Actor,
    ClientDeleted,
    ClientMetadata,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    Event,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
    Window,
)
from grantbook.sdk.log import LogReader
from grantbook.sealed import Note, Sealed, actor_key_id, seal, seal_note, user_key_id

ADMIN: Final = Actor("admin")
AGENT: Final = Actor("agent")
IDP: Final = Actor("idp", "login")
KIM: Final = actor_key_id("admin", "kim")
PUBLISHED_AT_ONCE: Final = 500
_numbers: Final = itertools.count(1)


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return f"0195934e-2d00-7000-8000-{next(_numbers):012x}"


def key_of(key_id: str) -> bytes:
    """The data key that a test gives to a person."""
    return key_id.encode().ljust(32, b"\0")[:32]


def metadata(name: str | None = "Agent", **members: object) -> ClientMetadata:
    said: dict[str, object] = {
        "redirect_uris": ("https://agent.example/callback",),
        "token_endpoint_auth_method": "none",
        "grant_types": ("authorization_code",),
        "response_types": ("code",),
        "client_name": name,
    }
    return ClientMetadata(**(said | members))  # type: ignore[arg-type]


def registered(
    client_id: str, about: ClientMetadata | None = None, *, at: datetime | None = None, source: str = "dcr"
) -> ClientRegistered:
    return ClientRegistered(client_id=client_id, source=source, metadata=about or metadata(), at=at or now(), by=AGENT)


def changed(client_id: str, about: ClientMetadata, *names: str) -> ClientMetadataChanged:
    return ClientMetadataChanged(
        client_id=client_id, source="dcr", metadata=about, registered_at=now(), changed=names, at=now(), by=AGENT
    )


def suspended(client_id: str) -> ClientSuspended:
    return ClientSuspended(client_id=client_id, reason="policy", at=now(), by=ADMIN)


def resumed(client_id: str) -> ClientResumed:
    return ClientResumed(client_id=client_id, at=now(), by=ADMIN)


def deleted(client_id: str, *, detail: str | None = None) -> ClientDeleted:
    note = None if detail is None else seal_note(Note("kim", detail), key_id=KIM, key=key_of(KIM), nonce=bytes(12))
    return ClientDeleted(client_id=client_id, reason="admin", note=note, at=now(), by=ADMIN)


def name_of(user_id: str, username: str) -> Sealed:
    key_id = user_key_id(user_id)
    return seal(username.encode(), key_id=key_id, key=key_of(key_id), nonce=bytes(12))


def issued(
    client_id: str,
    grant_id: str,
    user_id: str,
    *,
    username: str | None = None,
    at: datetime | None = None,
    lifetime: timedelta = timedelta(days=30),
    scopes: tuple[str, ...] = ("mail.read",),
) -> GrantIssued:
    at = at or now()
    return GrantIssued(
        client_id=client_id,
        grant_id=grant_id,
        user_id=user_id,
        username=name_of(user_id, username or f"{user_id}@example.com"),
        scopes=scopes,
        expires_at=at + lifetime,
        at=at,
        by=IDP,
    )


def extended(grant: GrantIssued, position: int, by: timedelta) -> GrantExtended:
    return GrantExtended(
        client_id=grant.client_id,
        grant_id=grant.grant_id,
        user_id=grant.user_id,
        username=grant.username,
        scopes=grant.scopes,
        expires_at=grant.expires_at + by,
        issued_at=grant.at,
        issued_expires_at=grant.expires_at,
        issued_position=position,
        at=now(),
        by=IDP,
    )


def revoked(client_id: str, grant_id: str, user_id: str = "u", *, reason: str = "admin") -> GrantRevoked:
    return GrantRevoked(client_id=client_id, grant_id=grant_id, user_id=user_id, reason=reason, at=now(), by=ADMIN)


def cut_off(user_id: str, *, reason: str | None = "offboarded") -> UserGrantsRevoked:
    return UserGrantsRevoked(user_key=subjects.token(user_id), user_id=user_id, reason=reason, at=now(), by=ADMIN)


def used(
    *uses: tuple[str, str], at: datetime | None = None, count: int = 1, expires_at: datetime | None = None
) -> ActivityRecorded:
    windows = tuple(
        Window(
            client_id=client,
            grant_id=grant,
            kind="tool_call" if expires_at is None else "refresh",
            count=count,
            first_at=at or now(),
            last_at=at or now(),
            expires_at=expires_at,
        )
        for client, grant in uses
    )
    return ActivityRecorded(windows=windows, at=now(), by=IDP)


async def write(connection: Client, *events: Event) -> list[int]:
    """Publish events in their order. Their positions."""
    positions_: list[int] = []
    stream = connection.jetstream()
    for start in range(0, len(events), PUBLISHED_AT_ONCE):
        answers = []
        for event in events[start : start + PUBLISHED_AT_ONCE]:
            outgoing = wire.encode(event, event_id=new_id())
            answers.append(await stream.publish_async(outgoing.subject, outgoing.body, headers=outgoing.headers))
        positions_ += [each.seq for each in await asyncio.gather(*answers)]
    return positions_


async def write_raw(connection: Client, subject: str, type_: str, body: bytes) -> int:
    """Publish what no writer of ours would."""
    headers = {"ce-specversion": "1.0", "ce-id": new_id(), "ce-source": wire.SOURCE, "ce-type": type_}
    return (await connection.jetstream().publish(subject, body, headers=headers)).seq


async def write_keys(connection: Client, *key_ids: str) -> None:
    """Store the data keys of people."""
    for each in key_ids:
        await connection.jetstream().publish(subjects.bucket_key(subjects.USER_KEYS, each), key_of(each))


async def erase_key(connection: Client, key_id: str) -> None:
    """Purge a person's data key, as an erasure does."""
    headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
    await connection.jetstream().publish(subjects.bucket_key(subjects.USER_KEYS, key_id), b"", headers=headers)


async def position(connection: Client, stream: str, sequence: int) -> str:
    """The token of a place in one of the two logs."""
    state = await LogReader(connection, stream).state()
    return str(positions.Position("log" if stream == subjects.LOG else "activity", state.identity, sequence))
