"""Clients known by a client ID metadata document, and clients that an admin adds."""

from typing import Any

import pytest
from httpx import Response

from grantbook import subjects
from grantbook.events import ClientMetadataChanged, ClientRegistered, GrantExtended, GrantIssued
from grantbook.sdk.log import LogReader
from tests.registry.over_http import GRANT, PUBLIC, Http, as_

PATH = "/idp/v1/metadata-clients"
ID = "https://agent.example/client.json"
KEY = subjects.token(ID)
DOCUMENT = {
    "client_id": ID,
    "client_name": "Agent",
    "redirect_uris": ["https://agent.example/cb"],
    "grant_types": ["authorization_code", "refresh_token"],
}


async def see(http: Http, document: Any, client_id: Any = ID) -> Response:
    return await http.put(PATH, json={"client_id": client_id, "metadata": document}, headers=as_("idp"))


async def record(reader: LogReader) -> Any:
    subject = subjects.client_record(KEY)
    return (await reader.last_on_leader([subject]))[subject].recorded().event


async def test_the_first_sight_of_a_document_registers_its_client(http: Http, reader: LogReader) -> None:
    """Admins: a client that never registered itself is on the register all the same."""
    answer = await see(http, DOCUMENT)
    assert answer.status_code == 201
    body = answer.json()
    assert body["client_id"] == ID
    assert body["client_key"] == KEY
    assert body["source"] == "cimd"
    assert body["token_endpoint_auth_method"] == "none"
    assert isinstance(await record(reader), ClientRegistered)
    seen = await http.get(f"/idp/v1/clients/{KEY}", headers=as_("idp"))
    assert seen.json() == body


async def test_the_same_document_changes_nothing(http: Http, reader: LogReader) -> None:
    """Operators: every authorization sees the document; the log does not grow by it."""
    await see(http, DOCUMENT)
    before = (await reader.state()).last
    answer = await see(http, DOCUMENT | {"unknown": 1})
    assert answer.status_code == 200
    assert (await reader.state()).last == before


async def test_a_document_that_changed_is_recorded_with_what_changed(http: Http, reader: LogReader) -> None:
    """Auditors: whoever holds the URL can change what a client is, and the log says when, and what."""
    first = (await see(http, DOCUMENT)).json()
    answer = await see(http, DOCUMENT | {"client_name": "Agency", "redirect_uris": ["https://agent.example/cb2"]})
    assert answer.status_code == 200
    assert answer.json()["client_name"] == "Agency"
    assert answer.json()["metadata_sha256"] != first["metadata_sha256"]
    event = await record(reader)
    assert isinstance(event, ClientMetadataChanged)
    assert event.source == "cimd"
    assert event.changed == ("redirect_uris", "client_name")
    assert event.by.kind == "idp"


async def test_a_grant_keeps_the_fingerprint_of_what_the_user_was_shown(http: Http, reader: LogReader) -> None:
    """Users and auditors: what a client said of itself when it was let in stays with the grant, also when extended."""
    shown = (await see(http, DOCUMENT)).json()["metadata_sha256"]
    expires = {"expires_at": "2030-01-01T00:00:00Z", "grant_id": "g1"}
    assert (await http.post(f"/idp/v1/clients/{KEY}/grants", json=GRANT | expires, headers=as_("idp"))).is_success
    await see(http, DOCUMENT | {"client_name": "Other"})
    subject = subjects.grant_record(KEY, "g1")
    issued = (await reader.last_on_leader([subject]))[subject].recorded().event
    assert isinstance(issued, GrantIssued)
    assert issued.metadata_sha256 == shown
    use = {"client_id": ID, "grant_id": "g1", "kind": "refresh", "at": "2026-11-23T12:00:00Z"}
    report = {"activity": [use | {"expires_at": "2033-01-01T00:00:00Z"}]}
    assert (await http.post("/idp/v1/activity", json=report, headers=as_("idp"))).json()["recorded"] == 1
    extended = (await reader.last_on_leader([subject]))[subject].recorded().event
    assert isinstance(extended, GrantExtended)
    assert extended.metadata_sha256 == shown


async def test_a_deleted_document_stays_deleted_and_a_suspended_one_says_so(http: Http) -> None:
    """Admins: seeing the document again does not bring its client back."""
    await see(http, DOCUMENT)
    await http.post(f"/admin/v1/clients/{KEY}/suspend", headers=as_("admin"))
    assert (await see(http, DOCUMENT)).json()["status"] == "suspended"
    await http.delete(f"/admin/v1/clients/{KEY}", headers=as_("admin"))
    answer = await see(http, DOCUMENT)
    assert answer.status_code == 410
    assert answer.json()["code"] == "client_deleted"


@pytest.mark.parametrize(
    "client_id",
    [
        "http://agent.example/client.json",
        "https://agent.example",
        "https://agent.example/client.json#x",
        "https://user@agent.example/client.json",
        "https://agent.example/a/../client.json",
        "https://agent.example/a/%2e%2E/client.json",
        "https://agent.example/./client.json",
        "https://agent.example/a/..",
        "https:agent.example/client.json",
        "HTTPS://agent.example/client.json",
        "javascript:alert(1)",
        "agent",
        "",
        "https://agent.example/" + "a" * 2_048,
    ],
)
async def test_an_id_that_is_no_https_url_is_refused(http: Http, reader: LogReader, client_id: str) -> None:
    """Identity providers: what could be fetched from elsewhere than it seems is no client's id."""
    answer = await see(http, DOCUMENT | {"client_id": client_id}, client_id)
    assert answer.status_code == 400
    assert answer.json()["code"] in {"invalid_client_metadata", "invalid_parameter"}
    assert (await reader.state()).last == 0


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"client_id": "https://agent.example/other.json"}, "invalid_client_metadata"),
        ({"client_id": None}, "invalid_client_metadata"),
        ({"client_secret": "x"}, "invalid_client_metadata"),
        ({"client_secret_expires_at": 0}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "client_secret_basic"}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "client_secret_post"}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ({"jwks": {"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": "x"}]}}, "invalid_client_metadata"),
        ({"redirect_uris": ["javascript:alert(1)"]}, "invalid_redirect_uri"),
        ({"contacts": ["a" * 300] * 10, "software_id": "b" * 256, "filler": "c" * 4_000}, "invalid_client_metadata"),
    ],
)
async def test_a_document_that_breaks_the_rules_is_refused(
    http: Http, reader: LogReader, members: dict[str, Any], code: str
) -> None:
    """Identity providers: the draft's section 4.1, and leaves no trace."""
    answer = await see(http, DOCUMENT | members)
    assert answer.status_code == 400
    assert answer.json()["code"] == code
    assert (await reader.state()).last == 0


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"client_id": 1, "metadata": {}}', b'{"client_id": "https://a.example/x"}', b"\xff"]
)
async def test_a_body_that_is_no_sighting_is_refused(http: Http, body: bytes) -> None:
    """Identity providers: what was expected is named."""
    answer = await http.put(PATH, content=body, headers=as_("idp"))
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_parameter"


async def test_an_admin_adds_a_client_by_hand(http: Http, reader: LogReader) -> None:
    """Admins: with the same rules, credentials that are shown once, and who did it in the log."""
    answer = await http.post(
        "/admin/v1/clients", json={"redirect_uris": ["https://a.example/cb"]}, headers=as_("admin")
    )
    assert answer.status_code == 201
    body = answer.json()
    subject = subjects.client_record(body["client_id"])
    event = (await reader.last_on_leader([subject]))[subject].recorded().event
    assert isinstance(event, ClientRegistered)
    assert (event.source, event.by.kind, event.by.id) == ("manual", "admin", "admin")
    assert body["client_secret"]
    own = {"Authorization": f"Bearer {body['registration_access_token']}"}
    path = body["registration_client_uri"].removeprefix("https://id.example")
    assert (await http.get(path, headers=own)).status_code == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("members", "code"),
    [({"redirect_uris": []}, "invalid_redirect_uri"), ({"client_name": 1}, "invalid_client_metadata")],
)
async def test_an_admins_client_is_checked_like_any_other(http: Http, members: dict[str, Any], code: str) -> None:
    """Admins: mistakes come back as problems that name them."""
    answer = await http.post("/admin/v1/clients", json=PUBLIC | members, headers=as_("admin"))
    assert answer.status_code == 400
    assert answer.json()["code"] == code
    assert answer.headers["content-type"] == "application/problem+json"
