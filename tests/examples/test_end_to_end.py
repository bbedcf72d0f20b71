"""A real agent, the official MCP client, feels a revocation on its next call."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from tests.examples.demo import Demo, Refused, consent, running

LETTERS = ["Minutes of Tuesday's meeting", "Your invoice", "Lunch?"]
CALLBACK = "http://localhost:7777/callback"
SECONDS = 30.0
pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("demo")) as it:
        yield it


class Agent:
    """An application that hosts the official MCP client: it keeps its credentials, and has a user with a browser."""

    def __init__(self, demo: Demo, user: str) -> None:
        self.demo = demo
        self.user = user
        self.client_info: OAuthClientInformationFull | None = None
        self.tokens: OAuthToken | None = None
        self.consents = 0
        self.refusals = 0
        self._sent_to = ""

    # What the SDK stores with the application.

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client_info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client_info = client_info

    @property
    def client_id(self) -> str:
        assert self.client_info is not None
        assert self.client_info.client_id is not None
        return self.client_info.client_id

    async def open_browser(self, url: str) -> None:
        self._sent_to = await consent(url, self.user)
        self.consents += 1

    async def come_back(self) -> AuthorizationCodeResult:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self._sent_to).query).items()}
        return AuthorizationCodeResult(code=query["code"], state=query.get("state"), iss=query.get("iss"))

    async def seen(self, response: httpx2.Response) -> None:
        if response.status_code == 401 and str(response.url) == self.demo.mcp:
            self.refusals += 1

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Client]:
        metadata = OAuthClientMetadata(
            redirect_uris=[CALLBACK],  # type: ignore[list-item]  # pydantic makes a URL of it
            client_name=f"Agent of {self.user}",
            token_endpoint_auth_method="none",
            grant_types=["authorization_code", "refresh_token"],
        )
        auth = OAuthClientProvider(self.demo.mcp, metadata, self, self.open_browser, self.come_back)
        hooks: Any = {"response": [self.seen]}
        async with (
            httpx2.AsyncClient(auth=auth, timeout=SECONDS, event_hooks=hooks) as http,
            Client(streamable_http_client(self.demo.mcp, http_client=http)) as client,
        ):
            yield client

    async def call(self, tool: str = "subjects") -> Any:
        async with self.session() as client:
            result = await client.call_tool(tool)
        assert not result.is_error, result
        structured: Any = result.structured_content
        assert structured is not None
        return structured["result"]


async def grants_of(demo: Demo, client_id: str, position: str | None = None) -> list[dict[str, Any]]:
    at_least = "" if position is None else f"&at_least={position}"
    answer = await asyncio.to_thread(demo.admin(), "GET", f"/admin/v1/clients/{client_id}/grants?status=any{at_least}")
    found: list[dict[str, Any]] = answer.body["items"]
    return found


async def refused_after(demo: Demo, token: str) -> float:
    """Seconds until a bare call with a token is refused."""
    started = time.perf_counter()
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
        while (await http.post(demo.mcp, json={}, headers=headers)).status_code != 401:
            assert time.perf_counter() - started < SECONDS
    return time.perf_counter() - started


async def test_a_real_agent_feels_it_on_its_next_call(demo: Demo) -> None:
    """Users: what an admin cuts off is off on the agent's next call, and nobody else notices."""
    other, agent = Agent(demo, "grace"), Agent(demo, "ada")
    assert await other.call("whoami") == "grace"
    calls = failures = 0
    done = asyncio.Event()

    async def keep_calling() -> None:
        nonlocal calls, failures
        async with other.session() as client:
            while not done.is_set():
                result = await client.call_tool("subjects")
                calls += 1
                failures += result.is_error
                await asyncio.sleep(0.02)  # the pace of calls

    undisturbed = asyncio.create_task(keep_calling())

    # It discovers, registers, asks for consent, and calls.
    assert await agent.call() == LETTERS
    first = agent.client_id
    assert (agent.consents, agent.refusals) == (1, 1)
    [grant] = [each for each in await grants_of(demo, first) if each["status"] == "active"]
    assert (grant["user_id"], grant["username"]) == ("ada", "ada@example.com")
    assert agent.tokens is not None

    # Its grant is revoked: the next call is refused, and it asks the user again. Same client, another grant.
    old = agent.tokens
    revoke = f"/admin/v1/clients/{first}/grants/{grant['grant_id']}/revoke"
    revoked = await asyncio.to_thread(demo.admin(), "POST", revoke, {})
    assert revoked.status == 204
    took = await refused_after(demo, old.access_token)
    assert await refreshed(demo, first, old) == (400, "invalid_grant")
    assert await agent.call() == LETTERS
    assert (agent.consents, agent.refusals) == (2, 2)
    assert agent.client_id == first
    statuses = {each["grant_id"]: each["status"] for each in await grants_of(demo, first, revoked.position)}
    assert sorted(statuses.values()) == ["active", "revoked"]
    assert statuses[grant["grant_id"]] == "revoked"

    # Its client is deleted: the next call is refused, no refresh helps, the user is told.
    gone = agent.tokens
    deleted = await asyncio.to_thread(demo.admin(), "DELETE", f"/admin/v1/clients/{first}")
    assert deleted.status == 204
    took_deletion = await refused_after(demo, gone.access_token)
    assert await refreshed(demo, first, gone) == (401, "invalid_client")
    with pytest.raises(BaseException) as caught:
        await agent.call()
    assert any("invalid_client" in str(each) for each in unwrapped(caught.value))

    # This SDK does not drop its registration by itself: its host does. Then it registers anew.
    agent.client_info = agent.tokens = None
    assert await agent.call() == LETTERS
    assert agent.client_id != first
    listed = await asyncio.to_thread(demo.admin(), "GET", f"/admin/v1/clients/{first}?at_least={deleted.position}")
    assert (listed.body["status"], listed.body["active_grants"]) == ("deleted", 0)

    done.set()
    await undisturbed
    assert calls > 10
    assert (failures, other.consents, other.refusals) == (0, 1, 1)
    print(  # noqa: T201  a figure for people
        f"revoked to refused: {took * 1_000:.0f} ms, deleted to refused: {took_deletion * 1_000:.0f} ms; "
        f"{calls} calls of another went on"
    )
    await shows_delivery(demo, deleted.position)


async def shows_delivery(demo: Demo, position: str) -> None:
    """Admins: the MCP server is on the list, and has it."""
    async with asyncio.timeout(SECONDS):
        while True:
            told = await asyncio.to_thread(demo.admin(), "GET", f"/admin/v1/revocations/{position}/delivery")
            if told.status == 200 and told.body["complete"]:
                break
            await asyncio.sleep(0.05)
    [subscriber] = told.body["subscribers"]
    assert subscriber["name"] == "demo-mail"


def unwrapped(error: BaseException) -> list[BaseException]:
    """An exception and all that it wraps."""
    found = [error]
    if isinstance(error, BaseExceptionGroup):
        found += [each for one in error.exceptions for each in unwrapped(one)]
    for cause in (error.__cause__, error.__context__):
        if cause is not None:
            found += unwrapped(cause)
    return found


async def refreshed(demo: Demo, client_id: str, tokens: OAuthToken) -> tuple[int, str]:
    """What the token endpoint says to a refresh."""
    form = {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token or "", "client_id": client_id}
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        answer = await http.post(f"{demo.issuer}/token", data=form)
    return answer.status_code, answer.json().get("error", "")


def test_a_second_demo_in_the_same_folder_leaves_the_first_alone(demo: Demo) -> None:
    """Protects who types it twice: the first goes on, and keeps its logs."""
    log = demo.data / "demo-dev.log"
    before = log.stat().st_size
    second = subprocess.run(
        [sys.executable, "-m", "deploy.dev", "demo", "--data", str(demo.data)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert second.returncode == 1
    assert "a demo runs in" in second.stderr
    assert log.stat().st_size >= before > 0


async def test_use_is_reported(demo: Demo) -> None:
    """Admins: when an agent was last active is on the register soon after it called."""
    agent = Agent(demo, "ada")
    await agent.call()
    async with asyncio.timeout(SECONDS):
        while not any("last_activity_at" in each for each in await grants_of(demo, agent.client_id)):
            await asyncio.sleep(0.05)


async def test_a_user_may_say_no(demo: Demo) -> None:
    """Users: without consent there is no grant, and the agent hears `access_denied`."""
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        made = await http.post(
            f"{demo.grantbook}/auth/connect/register",
            json={"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"},
        )
    client = made.json()["client_id"]
    url = (
        f"{demo.issuer}/authorize?response_type=code&client_id={client}&redirect_uri={CALLBACK}&state=s"
        f"&code_challenge={'a' * 43}&code_challenge_method=S256"
    )
    place = await consent(url, "ada", decision="deny")
    assert parse_qs(urlsplit(place).query) == {"error": ["access_denied"], "state": ["s"], "iss": [demo.issuer]} | (
        {"error_description": parse_qs(urlsplit(place).query)["error_description"]}
    )
    assert await grants_of(demo, client) == []
    with pytest.raises(Refused, match="cannot be used"):
        await consent(url.replace(CALLBACK, "https://evil.example/"), "ada")
