"""Putting a client on the register, whoever brings it: credentials, the event, and what the client is told.

Used by registration (RFC 7591), by its management (RFC 7592), and by admins.
"""

import base64
import hashlib
from datetime import datetime
from functools import partial
from typing import Final

from msgspec import Struct

from grantbook.events import Actor, ClientMetadata, ClientRegistered
from grantbook.fingerprints import metadata_sha256
from registry import clients, credentials, metadata
from registry.credentials import Issued
from registry.register import Register
from registry.store import Contended, LogFull, client

PATH: Final = "/auth/connect/register"
MAX_GENERATIONS: Final = 16
"""So often may one of many identical clients be deleted before the next ones get ids of their own again."""
_IDENTICAL_ID_BYTES: Final = 18


class Enrolled(Struct, frozen=True):
    """A client on the register, and where in the log that stands. `issued` is None where others share it."""

    client_id: str
    registered_at: datetime
    metadata: ClientMetadata
    position: int
    issued: Issued | None


async def enrol(
    register: Register, said: ClientMetadata, *, source: str, by: Actor, traceparent: str | None
) -> Enrolled:
    """Put a new client on the register. Raises `LogFull`, `Contended`, `Unavailable` and the `AppendFailed`s."""
    if register.log.only_gates:
        raise LogFull  # before anything is written for it
    # The hashes before the event that makes them count: an orphan is harmless, a client without its token is not.
    blank = await register.ahead.take(with_secret=metadata.needs_secret(said))
    event = ClientRegistered(client_id=blank.client_id, source=source, metadata=said, at=register.now(), by=by)
    position = await register.log.record_new(event, traceparent=traceparent)
    return Enrolled(blank.client_id, event.at, said, position, blank.issued)


async def enrol_identical(register: Register, said: ClientMetadata, *, traceparent: str | None) -> Enrolled | None:
    """Put a public client on the register, or give the one that is there and says just the same.

    Its id follows from what it says, so that two instances that are asked at once agree. Nobody is given a
    registration access token: anybody who says the same would hold it. A deleted one stays deleted, and the next has
    another id; after `MAX_GENERATIONS` of those: None.
    """
    for generation in range(MAX_GENERATIONS):
        client_id = _identical_id(said, generation)
        at = register.now()
        decide = partial(clients.register, client_id=client_id, source="dcr", metadata=said, at=at, by=Actor("agent"))
        receipt = await register.log.transact(client(client_id), decide, traceparent=traceparent)
        found = receipt.state
        if found is None:
            return Enrolled(client_id, at, said, receipt.position, None)
        if found.status != "deleted":
            return Enrolled(client_id, found.registered_at, found.metadata, receipt.position, None)
    return None


def information(register: Register, enrolled: Enrolled) -> dict[str, object]:
    """The client information response (RFC 7591 section 3.2.1): every registered member at its final value."""
    answer: dict[str, object] = {
        "client_id": enrolled.client_id,
        "client_id_issued_at": int(enrolled.registered_at.timestamp()),
    }
    issued = enrolled.issued
    if issued is not None:
        answer["registration_access_token"] = issued.registration_access_token
        answer["registration_client_uri"] = f"{register.base_url}{PATH}/{enrolled.client_id}"
        if issued.client_secret is not None:
            answer |= {"client_secret": issued.client_secret, "client_secret_expires_at": 0}
    return answer | metadata.render(enrolled.metadata)


async def replace_credentials(
    register: Register, token: str, kept: credentials.Kept, issued: Issued
) -> credentials.Kept:
    """Claim the place of a client's credentials for new ones, before the event that makes them count.

    Those that stand there stay valid until `settle_credentials`. Raises `Contended` where others were faster.
    """
    claimed = credentials.Credentials(
        kept.credentials.registration_access_token_sha256, kept.credentials.client_secret_sha256, issued.kept
    )
    revision = await credentials.replace(register.credentials, token, claimed, revision=kept.revision)
    if revision is None:
        message = "the client's credentials are being replaced by another request"
        raise Contended(message)
    return credentials.Kept(claimed, revision)


async def settle_credentials(register: Register, token: str, claimed: credentials.Kept, issued: Issued) -> None:
    """Make the new credentials the only ones. Raises `Contended` where another update has taken their place."""
    if await credentials.replace(register.credentials, token, issued.kept, revision=claimed.revision) is None:
        message = "the client's credentials were replaced by another request"
        raise Contended(message)


def _identical_id(said: ClientMetadata, generation: int) -> str:
    digest = hashlib.sha256(f"{metadata_sha256(said)} {generation}".encode()).digest()[:_IDENTICAL_ID_BYTES]
    # Never one that another rule of ours could give: ids of clients with a place of their own are UUIDs.
    return "same_" + base64.urlsafe_b64encode(digest).decode()
