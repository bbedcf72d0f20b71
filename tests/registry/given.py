"""What tests of the registry are given: some facts, people and moments. Values only."""

from datetime import UTC, datetime, timedelta

from grantbook.events import (
    Actor,
    ClientDeleted,
    ClientMetadata,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    GrantIssued,
    GrantRevoked,
)
from grantbook.fingerprints import metadata_sha256
from grantbook.sealed import Sealed
from registry.clients import Intent
from registry.grants import Proposal

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SEALED = Sealed("user.ada", b"n" * 12, b"c" * 24)

IDP = Actor("idp", "login")
ADMIN = Actor("admin")

CLAUDE = ClientMetadata(
    redirect_uris=("https://claude.ai/api/mcp/auth_callback",),
    token_endpoint_auth_method="none",
    grant_types=("authorization_code", "refresh_token"),
    response_types=("code",),
    client_name="Claude",
)
REGISTERED = ClientRegistered(client_id="c1", source="dcr", metadata=CLAUDE, at=NOON, by=Actor("agent"))
SUSPENDED = ClientSuspended(client_id="c1", at=NOON, by=ADMIN)
RESUMED = ClientResumed(client_id="c1", at=NOON, by=ADMIN)
DELETED = ClientDeleted(client_id="c1", reason="admin", at=NOON, by=ADMIN)
ISSUED = GrantIssued(
    client_id="c1",
    grant_id="g1",
    user_id="ada",
    username=SEALED,
    scopes=("read", "write"),
    expires_at=NOON + 8 * HOUR,
    metadata_sha256=metadata_sha256(CLAUDE),
    at=NOON,
    by=IDP,
)
REVOKED = GrantRevoked(client_id="c1", grant_id="g1", user_id="ada", reason="admin", at=NOON, by=ADMIN)

BY_ADMIN = Intent(reason="admin", note=None, at=NOON, by=ADMIN)
PROPOSED = Proposal(
    grant_id="g1",
    user_id="ada",
    username=SEALED,
    scopes=("read", "write"),
    expires_at=NOON + 8 * HOUR,
    at=NOON,
    by=IDP,
)
