"""One event of each type, with every member set: what the golden bytes were written from."""

from datetime import UTC, datetime
from typing import Final

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
    type_of,
)
from grantbook.sealed import Sealed

AT: Final = datetime(2026, 3, 14, 9, 26, 53, 589793, tzinfo=UTC)
LATER: Final = datetime(2026, 4, 13, 9, 26, 53, tzinfo=UTC)
CAUSE: Final = "0195934e-2d00-7000-8000-000000000001"
EVENT_ID: Final = "0195934e-2d00-7000-8000-000000000002"
TRACEPARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CLIENT: Final = "c-1f0e9d2c"
CIMD_CLIENT: Final = "https://agent.example/oauth/client.json"
NAME: Final = Sealed(key="user.u-42", nonce=bytes(range(12)), ciphertext=bytes(range(100, 132)))
NOTE: Final = Sealed(key="actor.ops-kim", nonce=bytes(range(12, 24)), ciphertext=bytes(range(200, 232)))
METADATA: Final = ClientMetadata(
    redirect_uris=("https://agent.example/callback", "http://127.0.0.1:8976/callback"),
    token_endpoint_auth_method="private_key_jwt",
    grant_types=("authorization_code", "refresh_token"),
    response_types=("code",),
    application_type="native",
    client_name="Näher Agent",
    client_uri="https://agent.example/",
    logo_uri="https://agent.example/logo.png",
    scope="mail.read mail.send",
    contacts=("ops@agent.example",),
    tos_uri="https://agent.example/terms",
    policy_uri="https://agent.example/policy",
    jwks_uri="https://agent.example/jwks.json",
    jwks={"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]},
    software_id="4NRB1-0XZABZI9E6-5SM3R",
    software_version="2.1.0",
    software_statement="e30.e30.c2ln",
    localized={"client_name#de": "Näherer Agent"},
)

_EVENTS: Final[tuple[Event, ...]] = (
    ClientRegistered(at=AT, by=Actor("agent"), caused_by=CAUSE, client_id=CLIENT, source="dcr", metadata=METADATA),
    ClientMetadataChanged(
        at=AT,
        by=Actor("idp", "login"),
        caused_by=CAUSE,
        client_id=CIMD_CLIENT,
        source="cimd",
        metadata=METADATA,
        registered_at=AT,
        changed=("client_name", "redirect_uris"),
    ),
    ClientSuspended(at=AT, by=Actor("admin"), caused_by=CAUSE, client_id=CLIENT, reason="policy", note=NOTE),
    ClientResumed(at=AT, by=Actor("admin"), caused_by=CAUSE, client_id=CLIENT, reason="admin", note=NOTE),
    ClientDeleted(at=AT, by=Actor("admin"), caused_by=CAUSE, client_id=CLIENT, reason="admin", note=NOTE),
    GrantIssued(
        at=AT,
        by=Actor("idp", "login"),
        caused_by=CAUSE,
        client_id=CLIENT,
        grant_id="g-7",
        user_id="u-42",
        username=NAME,
        scopes=("mail.read", "mail.send"),
        expires_at=LATER,
    ),
    GrantExtended(
        at=AT,
        by=Actor("idp", "login"),
        caused_by=CAUSE,
        client_id=CLIENT,
        grant_id="g-7",
        user_id="u-42",
        username=NAME,
        scopes=("mail.read", "mail.send"),
        expires_at=LATER,
        issued_at=AT,
        issued_expires_at=LATER,
        issued_position=17,
    ),
    GrantRevoked(
        at=AT,
        by=Actor("user"),
        caused_by=CAUSE,
        client_id=CLIENT,
        grant_id="g-7",
        user_id="u-42",
        reason="client_deleted",
        note=NOTE,
    ),
    UserGrantsRevoked(
        at=AT, by=Actor("admin"), caused_by=CAUSE, user_key="u-42", user_id="u-42", reason="offboarded", note=NOTE
    ),
    ActivityRecorded(
        at=AT,
        by=Actor("idp", "login"),
        caused_by=CAUSE,
        windows=(
            Window(
                client_id=CLIENT,
                grant_id="g-7",
                kind="refresh",
                count=3,
                first_at=AT,
                last_at=AT,
                expires_at=LATER,
            ),
        ),
        report_id="r-1",
    ),
)
EXAMPLES: Final[dict[str, Event]] = {type_of(each): each for each in _EVENTS}
