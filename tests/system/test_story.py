"""One story, with the product as separate processes: from three agents' registrations to a deletion and after."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.auth import utils as mcp_client
from mcp.shared.auth import OAuthClientMetadata, OAuthMetadata

from deploy.dev import processes
from deploy.dev.processes import Product
from grantbook.sdk.revocations import RevocationFeed
from tests.system.http import Answer, Caller

LIFETIME = timedelta(hours=1)
DENIED_SECONDS = 10.0
EVENTUALLY_SECONDS = 15.0
AGENTS = json.loads((Path(__file__).parents[1] / "fixtures" / "agent-registrations.json").read_text())
STORY_AGENTS = ("Claude Code", "Cursor", "ChatGPT connector")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("story")) as servers:
        yield servers


def replay(product: Product, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "grantbook.sdk.replay", *arguments],
        env=product.environment,
        capture_output=True,
        check=True,
        timeout=EVENTUALLY_SECONDS,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


async def until_denied(feed: RevocationFeed, client: str, grant: str, user: str, issued_at: datetime) -> None:
    async with asyncio.timeout(DENIED_SECONDS):
        while not feed.is_revoked(client, grant, user, issued_at):
            await asyncio.sleep(0.001)


async def test_the_story(product: Product) -> None:
    """Everyone: list, inspect, feed, audit and a replay from nothing agree, at each turn."""
    with (
        processes.service(product, "registry", "serve") as writes,
        processes.service(product, "projector", "project", serves=False),
        processes.service(product, "projector", "serve") as reads,
    ):
        agent = Caller(f"http://127.0.0.1:{writes}")
        idp = Caller(f"http://127.0.0.1:{writes}", product.tokens["idp"])
        admin_acts = Caller(f"http://127.0.0.1:{writes}", product.tokens["admin"])
        admin_reads = Caller(f"http://127.0.0.1:{reads}", product.tokens["admin"])
        auditor = Caller(f"http://127.0.0.1:{reads}", product.tokens["auditor"])
        async with RevocationFeed(product.nats_url, LIFETIME) as feed:
            await follow(product, feed, agent, idp, admin_acts, admin_reads, auditor)


async def follow(
    product: Product,
    feed: RevocationFeed,
    agent: Caller,
    idp: Caller,
    admin_acts: Caller,
    admin_reads: Caller,
    auditor: Caller,
) -> None:
    def inspect(client: str, after: Answer) -> dict[str, Any]:
        answer = admin_reads("GET", f"/admin/v1/clients/{client}?at_least={after.position}")
        assert answer.status == 200, answer.body
        body: dict[str, Any] = answer.body
        return body

    # Three agents register.
    clients = {}
    for each in AGENTS:
        if each["agent"] in STORY_AGENTS:
            answer = agent("POST", "/auth/connect/register", each["request"])
            assert answer.status == 201, answer.body
            assert answer.body["client_name"] == each["request"]["client_name"]
            clients[each["agent"]] = answer.body["client_id"]
    code, cursor, chatgpt = (clients[each] for each in STORY_AGENTS)

    # Users grant; tools are called.
    expires_at = (datetime.now(UTC) + LIFETIME).isoformat()
    grants: dict[tuple[str, str], str] = {}
    for client in (code, cursor):
        for user in ("ada", "bob", "cy"):
            grant = {"user_id": user, "username": f"{user}@example.com", "scopes": ["tools"], "expires_at": expires_at}
            answer = idp("POST", f"/idp/v1/clients/{client}/grants", grant)
            assert answer.status == 201, answer.body
            grants[client, user] = answer.body["grant_id"]
    issued_at = datetime.now(UTC)
    at = datetime.now(UTC).isoformat()
    uses = [
        {"client_id": client, "grant_id": grant, "kind": "tool_call", "at": at} for (client, _), grant in grants.items()
    ]
    reported = idp("POST", "/idp/v1/activity", {"activity": [*uses, uses[0] | {"grant_id": "nobody's"}]})
    assert reported.status == 202
    assert reported.body["recorded"] == len(uses)
    assert [each["code"] for each in reported.body["rejected"]] == ["grant_not_found"]

    # The admin lists, filters, inspects.
    listed = admin_reads("GET", f"/admin/v1/clients?at_least={reported.position}&count=true")
    assert listed.body["total"] == 3
    found = {each["client_id"]: each for each in listed.body["items"]}
    assert (found[code]["active_grants"], found[code]["active_users"]) == (3, 3)
    assert found[chatgpt]["active_grants"] == 0
    assert found[code]["last_activity_at"]
    by_host = admin_reads("GET", "/admin/v1/clients?redirect_host=chatgpt.com")
    assert [each["client_id"] for each in by_host.body["items"]] == [chatgpt]

    # One grant is revoked; others stay.
    path = f"/admin/v1/clients/{code}/grants/{grants[code, 'ada']}/revoke"
    revoked = admin_acts("POST", path, {"detail": "lost laptop"})
    assert revoked.status == 204
    await until_denied(feed, code, grants[code, "ada"], "ada", issued_at)
    assert not feed.is_revoked(code, grants[code, "bob"], "bob", issued_at)
    assert idp("GET", f"/idp/v1/clients/{code}/grants/{grants[code, 'ada']}").body == {"active": False}
    assert idp("GET", f"/idp/v1/clients/{code}/grants/{grants[code, 'bob']}").body["active"] is True
    assert inspect(code, revoked)["active_grants"] == 2

    # A client is deleted: all its grants end, at once for the feed and the list, by name soon after.
    deleted = admin_acts("DELETE", f"/admin/v1/clients/{code}", {"reason": "policy"})
    assert deleted.status == 204
    await until_denied(feed, code, grants[code, "bob"], "bob", issued_at)
    assert not feed.is_revoked(cursor, grants[cursor, "bob"], "bob", issued_at)
    detail = inspect(code, deleted)
    assert (detail["status"], detail["active_grants"]) == ("deleted", 0)
    assert [each["type"] for each in detail["history"]] == ["client.registered", "client.deleted"]
    refused = idp(
        "POST",
        f"/idp/v1/clients/{code}/grants",
        {"user_id": "ada", "username": "ada", "scopes": [], "expires_at": expires_at},
    )
    assert (refused.status, refused.body["code"]) == (410, "client_deleted")
    again = agent("POST", "/auth/connect/register", AGENTS[1]["request"])
    assert again.status == 201
    assert again.body["client_id"] != code

    # All of a user's grants are revoked, over all clients.
    cut = admin_acts("POST", "/admin/v1/users/cy/revoke", {"reason": "offboarded"})
    assert cut.status == 204
    await until_denied(feed, cursor, grants[cursor, "cy"], "cy", issued_at)
    assert idp("GET", f"/idp/v1/clients/{cursor}/grants/{grants[cursor, 'cy']}").body == {"active": False}
    assert inspect(cursor, cut)["active_grants"] == 2

    # The fan-out has said each grant's end by name; then everybody who tells the story tells the same.
    async with asyncio.timeout(EVENTUALLY_SECONDS):
        while True:
            log = await asyncio.to_thread(replay, product)
            ended = {each["data"]["grant_id"] for each in log if each["type"] == "grant.revoked"}
            if ended == {grants[code, user] for user in ("ada", "bob", "cy")}:
                break
    last = log[-1]["position"]
    audited: list[dict[str, Any]] = []
    page = auditor("GET", f"/audit/v1/events?limit=5&at_least={last}")
    while True:
        assert page.status == 200, page.body
        audited += page.body["items"]
        if "next_cursor" not in page.body:
            break
        page = auditor("GET", f"/audit/v1/events?limit=5&cursor={page.body['next_cursor']}")
    assert [(each["position"], each["id"], each["type"]) for each in audited] == [
        (each["position"], each["id"], each["type"]) for each in log
    ]
    for (client, user), grant_id in grants.items():
        states = admin_reads("GET", f"/admin/v1/clients/{client}/grants?status=any&at_least={last}").body["items"]
        listed_state = next(each for each in states if each["grant_id"] == grant_id)
        asked = idp("GET", f"/idp/v1/clients/{client}/grants/{grant_id}").body["active"]
        denied = feed.is_revoked(client, grant_id, user, issued_at)
        assert (listed_state["status"] == "active") is asked is (not denied)
    as_of = auditor("GET", f"/audit/v1/clients/{code}?as_of={revoked.position}").body
    assert sorted(each["status"] for each in as_of["grants"]) == ["active", "active", "revoked"]
    assert "no differences" in await asyncio.to_thread(
        lambda: processes.run("projector", "verify", environment=product.environment)
    )


async def test_the_official_mcp_client_registers(product: Product) -> None:
    """Agents: the SDK that most of them are built on sends its own request and reads our 201 with its own model."""
    with processes.service(product, "registry", "serve") as port:
        server = OAuthMetadata.model_validate(
            {
                "issuer": "http://127.0.0.1",
                "authorization_endpoint": "http://127.0.0.1/authorize",
                "token_endpoint": "http://127.0.0.1/token",
                "registration_endpoint": f"http://127.0.0.1:{port}/auth/connect/register",
            }
        )
        client = OAuthClientMetadata.model_validate(
            {"client_name": "MCP SDK", "redirect_uris": ["http://localhost:3030/callback"]}
        )
        request = mcp_client.create_client_registration_request(server, client, "http://127.0.0.1")
        async with httpx2.AsyncClient() as http:
            answer = await http.send(request)
            information = await mcp_client.handle_registration_response(answer)
    assert information.client_id
    assert information.client_name == "MCP SDK"
