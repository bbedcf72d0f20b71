"""What the tests of this folder write into the log: events as the registry writes them, straight to the stream."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final

from nats.aio.client import Client

from grantbook import subjects, wire
from grantbook.events import (
    Actor,
    ClientDeleted,
    ClientMetadata,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    Event,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.sdk.connection import connect
from grantbook.sealed import Sealed, seal, user_key_id
from registry import streams

ADMIN: Final = Actor("admin")
LIFETIME: Final = timedelta(hours=1)
LOG_MAX_BYTES: Final = 64 * 1024**2
SOURCED_SECONDS: Final = 20.0
_numbers: Final = itertools.count(1)


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return f"0195934e-2d00-7000-8000-{next(_numbers):012x}"


def registered(client_id: str, name: str | None = None, at: datetime | None = None) -> ClientRegistered:
    metadata = ClientMetadata(
        redirect_uris=("https://agent.example/callback",),
        token_endpoint_auth_method="none",
        grant_types=("authorization_code",),
        response_types=("code",),
        client_name=name,
    )
    return ClientRegistered(client_id=client_id, source="dcr", metadata=metadata, at=at or now(), by=Actor("agent"))


def suspended(client_id: str, at: datetime | None = None) -> ClientSuspended:
    return ClientSuspended(client_id=client_id, reason="policy", at=at or now(), by=ADMIN)


def resumed(client_id: str, at: datetime | None = None) -> ClientResumed:
    return ClientResumed(client_id=client_id, at=at or now(), by=ADMIN)


def deleted(client_id: str, at: datetime | None = None) -> ClientDeleted:
    return ClientDeleted(client_id=client_id, reason="admin", at=at or now(), by=ADMIN)


def sealed_name(user_id: str, username: str, key: bytes = bytes(32)) -> Sealed:
    return seal(username.encode(), key_id=user_key_id(user_id), key=key, nonce=bytes(12))


def issued(
    client_id: str,
    grant_id: str,
    user_id: str,
    at: datetime | None = None,
    *,
    username: Sealed | None = None,
    lifetime: timedelta = timedelta(days=30),
) -> GrantIssued:
    at = at or now()
    return GrantIssued(
        client_id=client_id,
        grant_id=grant_id,
        user_id=user_id,
        username=username or sealed_name(user_id, f"{user_id}@example.com"),
        scopes=("mail.read",),
        expires_at=at + lifetime,
        at=at,
        by=Actor("idp"),
    )


def revoked(
    client_id: str, grant_id: str, user_id: str = "u", at: datetime | None = None, reason: str = "admin"
) -> GrantRevoked:
    return GrantRevoked(
        client_id=client_id, grant_id=grant_id, user_id=user_id, reason=reason, at=at or now(), by=ADMIN
    )


def user_revoked(user_id: str, at: datetime | None = None) -> UserGrantsRevoked:
    return UserGrantsRevoked(
        user_key=subjects.token(user_id), user_id=user_id, reason="offboarded", at=at or now(), by=ADMIN
    )


async def write(connection: Client, *events: Event) -> list[int]:
    """Publish events one after the other. Their positions."""
    positions = []
    for event in events:
        outgoing = wire.encode(event, event_id=new_id())
        stored = await connection.jetstream().publish(outgoing.subject, outgoing.body, headers=outgoing.headers)
        positions.append(stored.seq)
    return positions


async def write_raw(connection: Client, subject: str, type_: str, body: bytes) -> int:
    """Publish what no writer of ours would."""
    headers = {"ce-specversion": "1.0", "ce-id": new_id(), "ce-source": wire.SOURCE, "ce-type": type_}
    return (await connection.jetstream().publish(subject, body, headers=headers)).seq


async def sourced(connection: Client, messages: int) -> None:
    """Wait until the feed has so many messages."""
    manager = connection.jetstream()
    async with asyncio.timeout(SOURCED_SECONDS):
        while (await manager.stream_info(subjects.REVOCATIONS)).state.messages < messages:
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def opened_log(url: str) -> AsyncIterator[Client]:
    """A connection to a NATS that has the register's streams."""
    connection = await connect(url, name="test")
    try:
        await streams.ensure(connection, log_max_bytes=LOG_MAX_BYTES)
        yield connection
    finally:
        await connection.close()
