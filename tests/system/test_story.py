"""One story, with the product as separate processes: from three agents' registrations to a deletion that ends it all."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

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
        [sys.executable, "-m", "grantbook.sdk.replay", "replay", *arguments],
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


async def follow(  # noqa: PLR0915  one story is told in one go
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
            request = {"user_id": user, "username": f"{user}@example.com", "scopes": ["tools"], "expires_at": expires_at}
            answer = idp("POST", f"/idp/v1/clients/{client}/grants", request)
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
    revoked = admin_acts("POST", f"/admin/v1/clients/{code}/grants/{grants[code, 'ada']}/revoke", {"detail": "lost laptop"})
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
    for client, user in grants:
        states = admin_reads("GET", f"/admin/v1/clients/{client}/grants?status=any&at_least={last}").body["items"]
        listed_state = next(each for each in states if each["grant_id"] == grants[client, user])
        asked = idp("GET", f"/idp/v1/clients/{client}/grants/{grants[client, user]}").body["active"]
        denied = feed.is_revoked(client, grants[client, user], user, issued_at)
        assert (listed_state["status"] == "active") is asked is (not denied)
    as_of = auditor("GET", f"/audit/v1/clients/{code}?as_of={revoked.position}").body
    assert sorted(each["status"] for each in as_of["grants"]) == ["active", "active", "revoked"]
    assert "no differences" in await asyncio.to_thread(
        lambda: processes.run("projector", "verify", environment=product.environment)
    )


def test_the_official_mcp_client_registers(product: Product) -> None:
    """Agents: the SDK that most of them are built on sends its own request and reads our 201 with its own model."""
    import httpx  # noqa: PLC0415  what the SDK builds its requests with
    from mcp.client.auth import utils  # noqa: PLC0415
    from mcp.shared.auth import OAuthClientMetadata  # noqa: PLC0415

    with processes.service(product, "registry", "serve") as port:
        metadata = OAuthClientMetadata.model_validate(
            {"client_name": "MCP SDK", "redirect_uris": ["http://localhost:3030/callback"]}
        )
        request = utils.create_client_registration_request(None, metadata, f"http://127.0.0.1:{port}/auth/connect")
        with httpx.Client() as http:
            answer = http.send(httpx.Request(request.method, str(request.url), content=request.read(), headers=dict(request.headers)))

        class Answered:
            status_code = answer.status_code
            text = answer.text

            async def aread(self) -> bytes:
                return answer.content

        information = asyncio.run(utils.handle_registration_response(Answered()))  # type: ignore[arg-type]
    assert information.client_id
    assert information.client_name == "MCP SDK"
