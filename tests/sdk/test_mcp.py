"""An MCP server of the official SDK behind Grantbook: the snippet of the documentation, run."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from nats.aio.client import Client

from deploy.dev.servers import free_port
from grantbook.sdk import revocations
from grantbook.sdk.mcp import GrantbookTokenVerifier
from grantbook.sdk.revocations import RevocationFeed
from grantbook.sdk.tokens import JwtVerifier
from tests.sdk.given import LIFETIME, revoked, write
from tests.sdk.tokens import AUDIENCE, ISSUER, KEYS, token

DOCS = Path(__file__).parents[2] / "docs" / "token-services.md"
SECONDS = 20.0


@pytest.fixture
async def feed(log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RevocationFeed]:
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.0)
    async with RevocationFeed(nats_url, LIFETIME) as opened:
        yield opened


async def test_a_token_counts_until_its_grant_is_revoked(feed: RevocationFeed, log: Client) -> None:
    """Users of an MCP server: its SDK is told who calls, and `None` once they were cut off."""
    uses = []

    class Heard:
        def report(self, client_id: str, grant_id: str, kind: str) -> None:
            uses.append((client_id, grant_id, kind))

    asking = GrantbookTokenVerifier(JwtVerifier(issuer=ISSUER, audience=AUDIENCE, keys=KEYS), feed, Heard())
    access = await asking.verify_token(token())
    assert access is not None
    assert (access.client_id, access.subject, access.scopes) == ("c", "ada", ["read", "write"])
    assert access.resource == AUDIENCE
    assert access.claims is not None
    assert access.claims["grant_id"] == "g"
    assert await asking.verify_token("nonsense") is None
    await write(log, revoked("c", "g"))
    async with asyncio.timeout(SECONDS):
        while await asking.verify_token(token()) is not None:
            await asyncio.sleep(0.01)
    assert feed.state == "fresh"  # it is refused for what was revoked, and not for want of knowledge
    assert await asking.verify_token(token(client_id="other")) is not None
    assert uses[0] == ("c", "g", "tool_call")


async def test_the_documented_server_answers_and_refuses(nats_url: str, log: Client, feed: RevocationFeed) -> None:
    """Whoever copies the snippet: it is what it says."""
    [snippet] = re.findall(r"```python\n(# an MCP server.*?)```", DOCS.read_text(), re.DOTALL)
    port = free_port()
    names: dict[str, object] = {}
    exec(compile(snippet, "docs", "exec"), names)  # noqa: S102  our own documentation
    verifier = GrantbookTokenVerifier(JwtVerifier(issuer=ISSUER, audience=AUDIENCE, keys=KEYS), feed)
    app = names["application"](verifier, ISSUER, f"http://127.0.0.1:{port}/mcp")  # type: ignore[operator]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False, ws="none"))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(SECONDS):
        while not server.started:
            await asyncio.sleep(0.01)
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    headers = {"Accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as http:
        answer = await http.post("/mcp", json=hello, headers=headers)
        assert answer.status_code == 401
        assert "resource_metadata" in answer.headers["www-authenticate"]
        signed = headers | {"Authorization": f"Bearer {token()}"}
        assert (await http.post("/mcp", json=hello, headers=signed)).status_code == 200
        await write(log, revoked("c", "g"))
        async with asyncio.timeout(SECONDS):
            while (await http.post("/mcp", json=hello, headers=signed)).status_code != 401:
                pass
    server.should_exit = True
    await task
