"""The whole product on servers of the test's own, in this process, and admins who are signed in to its console."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from nats.aio.client import Client as Nats
from playwright.async_api import Browser, async_playwright

from console import links
from console.sessions import COOKIE
from deploy.dev import up
from deploy.dev.servers import free_port
from door import roles, serving
from grantbook import subjects
from grantbook.sdk.connection import connect
from projector.api.revocations import end_streams
from registry import streams

BROWSER: Final = {
    "executable_path": "/usr/bin/chromium",
    "args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
}
START_SECONDS: Final = 20.0
EXPIRES: Final = "2099-01-01T00:00:00Z"


class House:
    """A running product: what agents, the identity provider and admins do with it over HTTP."""

    def __init__(self, url: str, kept: up.Kept, data: Path, http: httpx.AsyncClient) -> None:
        self.url = url
        self.kept = kept
        self.data = data
        self.http = http
        self.position = ""

    async def register(self, name: str | None = "Agent", **members: Any) -> str:
        """An agent registers; its client id."""
        said = {
            "client_name": name,
            "redirect_uris": ["https://agent.example/callback"],
            "token_endpoint_auth_method": "none",
            "grant_types": ["authorization_code", "refresh_token"],
            **members,
        }
        body = {name: value for name, value in said.items() if value is not None}
        answer = await self.http.post("/auth/connect/register", json=body)
        assert answer.status_code == 201, answer.text
        self.position = answer.headers.get("grantbook-position", self.position)
        return str(answer.json()["client_id"])

    async def grant(
        self, client_id: str, user: str = "u-1", *, name: str | None = None, scopes: tuple[str, ...] = ()
    ) -> str:
        """A user lets a client in; the grant's id."""
        body = {
            "user_id": user,
            "username": name or f"{user}@example.com",
            "scopes": list(scopes) or ["tools"],
            "expires_at": EXPIRES,
        }
        answer = await self.ask("POST", f"/idp/v1/clients/{subjects.token(client_id)}/grants", role="idp", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["grant_id"])

    async def use(self, client_id: str, grant_id: str, at: str, *, count: int = 1) -> None:
        """The client was used."""
        entry = {"client_id": client_id, "grant_id": grant_id, "kind": "tool_call", "at": at, "count": count}
        answer = await self.ask("POST", "/idp/v1/activity", role="idp", json={"activity": [entry]})
        assert answer.status_code == 202, answer.text

    async def ask(self, method: str, path: str, *, role: str = "admin", **more: Any) -> httpx.Response:
        """Call the API itself, past the console."""
        answer = await self.http.request(
            method, path, headers={"Authorization": f"Bearer {self.kept.tokens[role]}"}, **more
        )
        self.position = answer.headers.get("grantbook-position", self.position) if method != "GET" else self.position
        return answer

    async def settled(self) -> None:
        """Wait until the lists have all that was written."""
        if self.position:
            answer = await self.ask("GET", f"/admin/v1/clients?limit=1&at_least={self.position}")
            assert answer.status_code == 200, answer.text

    def link(self) -> str:
        """A one-time link that signs in."""
        return up.sign_in_link(self.data, self.url)


class Console:
    """An admin who is signed in, without a browser: what the server answers is what is looked at."""

    def __init__(self, house: House, cookie: str) -> None:
        self.house = house
        self.cookie = cookie

    async def get(
        self,
        path: str,
        *,
        answers: int = 200,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> httpx.Response:
        """A page. Waits first until the lists have all that was written."""
        await self.house.settled()
        answer = await self.house.http.get(path, headers=self._headers() | (headers or {}), params=params)
        assert answer.status_code == answers, (answer.status_code, answer.text[:2_000])
        return answer

    async def post(
        self,
        path: str,
        form: dict[str, Any] | None = None,
        *,
        answers: int = 303,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """A form of our own pages is sent."""
        await self.house.settled()
        sent = self._headers() | {"Origin": self.house.url, "Sec-Fetch-Site": "same-origin"} | (headers or {})
        answer = await self.house.http.post(path, data=form or {}, headers=sent)
        assert answer.status_code == answers, (answer.status_code, answer.text[:2_000])
        return answer

    def _headers(self) -> dict[str, str]:
        return {"Cookie": f"{COOKIE}={self.cookie}"}


@asynccontextmanager
async def running(nats_url: str, database_url: str, data: Path) -> AsyncIterator[House]:
    """The all-in-one on given servers, on a port of its own."""
    nats: Nats = await connect(nats_url, name="test")
    await streams.ensure(nats)
    await nats.close()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    kept = up._keep(data)
    place = up.Place(
        url=url,
        nats_url=nats_url,
        nats_monitor_url=None,
        database_url=database_url,
        tokens_file=up._token_file(data, kept),
        kept=kept,
    )
    application = up.create_app(place)
    server = serving.Server(application, host="127.0.0.1", port=port, on_exit=lambda: end_streams(application))
    task = asyncio.create_task(server._serve())
    try:
        async with asyncio.timeout(START_SECONDS):
            while not server.started:
                assert not task.done(), task
                await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            yield House(url, kept, data, http)
    finally:
        server.stop()
        await task


@pytest.fixture
async def house(nats_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    """The product, empty."""
    async with running(nats_url, database_url, tmp_path / "data") as house:
        yield house


async def signed_in(house: House) -> Console:
    """Somebody who opened a link of `make console`."""
    link = house.link().partition("link=")[2]
    answer = await house.http.post(
        "/console/sign-in", data={"link": link}, headers={"Origin": house.url, "Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 303, answer.text
    said = answer.headers["set-cookie"]
    return Console(house, said.partition(f"{COOKIE}=")[2].partition(";")[0])


@pytest.fixture
async def console(house: House) -> Console:
    """An admin at the console of an empty product."""
    return await signed_in(house)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**BROWSER)  # type: ignore[arg-type]  # two arguments, by name
        yield browser
        await browser.close()


def new_link(key: str, now: float) -> str:
    """A link made by somebody else's hand."""
    return links.new_link(bytes.fromhex(key), secrets.token_bytes(links.NONCE_BYTES), now)


def token(role: roles.Role) -> str:
    """Some token of a role."""
    return roles.new_token(role, secrets.token_bytes(32))
