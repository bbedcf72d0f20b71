"""A seeded generator of mixed events, straight into the log: what a register that has been used for a while holds."""

import random
from datetime import UTC, datetime, timedelta
from typing import Final

import uuid_utils
from nats.aio.client import Client

from grantbook import subjects, wire
from grantbook.events import Actor, ClientDeleted, ClientMetadata, ClientRegistered, Event, GrantIssued, GrantRevoked
from grantbook.sealed import KEY_BYTES, NONCE_BYTES, seal, user_key_id

BATCH: Final = 500
GRANTS_A_CLIENT: Final = 8
USERS: Final = 5_000
REVOKED_SHARE: Final = 0.2
DELETED_SHARE: Final = 0.05
LIFETIME: Final = timedelta(days=30)
ACKNOWLEDGE_SECONDS: Final = 10.0


def mixed(number: int, keys: dict[str, bytes], *, seed_: int = 7) -> list[Event]:
    """`number` events in an order that can happen: clients register, users grant, some revoke, some clients go.

    Users are those of `keys`, by their data keys.
    """
    users = list(keys)
    dice = random.Random(seed_)
    now = datetime.now(UTC)
    events: list[Event] = []
    client = 0
    while len(events) < number:
        client += 1
        client_id = f"seed-{client}"
        metadata = ClientMetadata(
            redirect_uris=(f"https://agent-{client % 50}.example/callback",),
            token_endpoint_auth_method="none",  # noqa: S106  a method, no password
            grant_types=("authorization_code", "refresh_token"),
            response_types=("code",),
            client_name=f"Agent {client % 50}",
            scope="read write",
        )
        events.append(ClientRegistered(client_id=client_id, source="dcr", metadata=metadata, at=now, by=Actor("agent")))
        for grant in range(GRANTS_A_CLIENT):
            user = dice.choice(users)
            grant_id = f"{client_id}-{grant}"
            name = f"{user}@example.com".encode()
            username = seal(name, key_id=user_key_id(user), key=keys[user], nonce=dice.randbytes(NONCE_BYTES))
            events.append(
                GrantIssued(
                    client_id=client_id,
                    grant_id=grant_id,
                    user_id=user,
                    username=username,
                    scopes=("read", "write"),
                    expires_at=now + LIFETIME,
                    at=now,
                    by=Actor("idp", "seed"),
                )
            )
            if dice.random() < REVOKED_SHARE:
                events.append(
                    GrantRevoked(
                        client_id=client_id, grant_id=grant_id, user_id=user, reason="user", at=now, by=Actor("idp")
                    )
                )
        if dice.random() < DELETED_SHARE:
            events.append(ClientDeleted(client_id=client_id, reason="admin", at=now, by=Actor("admin")))
    return events[:number]


async def seed(nats: Client, *, events: int) -> None:
    """Append so many mixed events in atomic batches, after the data keys of their users."""
    dice = random.Random()
    keys = {f"user-{number}": dice.randbytes(KEY_BYTES) for number in range(USERS)}
    for user, key in keys.items():
        await nats.publish(subjects.bucket_key(subjects.USER_KEYS, user_key_id(user)), key)
    await nats.flush()
    outgoing = [wire.encode(each, event_id=str(uuid_utils.uuid7())) for each in mixed(events, keys)]
    for start in range(0, len(outgoing), BATCH):
        batch = outgoing[start : start + BATCH]
        for number, each in enumerate(batch, start=1):
            headers = each.headers | {"Nats-Batch-Id": f"seed-{start}", "Nats-Batch-Sequence": str(number)}
            if number < len(batch):
                await nats.publish(each.subject, each.body, headers=headers)
            else:
                headers["Nats-Batch-Commit"] = "1"
                answer = await nats.request(each.subject, each.body, headers=headers, timeout=ACKNOWLEDGE_SECONDS)
                assert b'"error"' not in answer.data, answer.data
