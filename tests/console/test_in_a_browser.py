"""The console in a real browser: with and without script, by keyboard, and with names that attack it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.console.conftest import House

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

AXE: Final = Path(__file__).parent / "axe" / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE: Final = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "{{7*7}}",
    "${alert(1)}",
    "</title><script>alert(1)</script>",
    "</textarea><iframe src=javascript:alert(1)>",
    '=HYPERLINK("http://evil.example")',
    "javascript:alert(1)",
    "&lt;b&gt;",
    "<bdi dir=rtl>x",
    "a" * 200,
    "W" * 100 + " " + "W" * 90,
]


@asynccontextmanager
async def visiting(
    browser: Browser, house: House, *, refused: int | None = None, **options: Any
) -> AsyncIterator[Page]:
    """A browser that has signed in by a link; what its console complains of, and dialogs of scripts, fail the test.

    It complains of answers that are errors, too: `refused` is the one status that a test is after.
    """
    context: BrowserContext = await browser.new_context(**options)
    page = await context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    await page.goto(house.link())
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url("**/console/clients")
    yield page
    assert not [
        each for each in trouble if refused is None or f"the server responded with a status of {refused} " not in each
    ]
    await context.close()


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_client_is_judged_and_deleted(
    house: House, browser: Browser, *, script: bool, scheme: Literal["light", "dark"]
) -> None:
    """An admin, whatever their browser runs: from the list to the certainty that it is gone."""
    client = await house.register("Claude", redirect_uris=["https://claude-login.example/cb"])
    grant = await house.grant(client)
    await house.settled()
    async with visiting(browser, house, java_script_enabled=script, color_scheme=scheme) as page:
        await page.goto(f"{house.url}/console/clients")
        await page.get_by_role("link", name="Claude", exact=True).click()
        await expect(page.get_by_role("heading", name="Client active")).to_be_visible()
        await expect(page).to_have_url(f"{house.url}/console/clients/{client}")
        await page.get_by_role("link", name="Connected users").click()
        await expect(page.get_by_text("u-1@example.com")).to_be_visible()
        await page.get_by_role("link", name="Delete", exact=True).click()
        await expect(page.get_by_text("This ends 1 active grant of 1 user.")).to_be_visible()
        await page.get_by_label("To go on, type").fill("delete 1")
        await page.get_by_role("button", name="Delete", exact=True).click()
        await expect(page.get_by_role("heading", name="Did it arrive?")).to_be_visible()
    answer = await house.ask("GET", f"/idp/v1/clients/{client}/grants/{grant}", role="idp")
    assert answer.json() == {"active": False}


async def test_the_keys_are_told(house: House, browser: Browser) -> None:
    """An admin who uses no mouse: which keys there are is one key away."""
    async with visiting(browser, house) as page:
        await page.keyboard.press("?")
        await expect(page.get_by_role("heading", name="Keys")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("heading", name="Keys")).to_be_hidden()


async def test_a_dialog_has_an_address_and_back_closes_it(house: House, browser: Browser) -> None:
    """An admin who sends a colleague what is on the screen."""
    client = await house.register("Agent")
    await house.settled()
    async with visiting(browser, house) as page:
        await page.goto(f"{house.url}/console/clients")
        await page.get_by_role("link", name="Agent", exact=True).click()
        await expect(page.locator("dialog#dialog")).to_be_visible()
        await expect(page).to_have_url(f"{house.url}/console/clients/{client}")
        await page.go_back()
        await expect(page.locator("dialog#dialog")).to_be_hidden()
        await expect(page).to_have_url(f"{house.url}/console/clients")


@pytest.mark.parametrize("width", [320, 1_400])
async def test_hostile_names_are_text_and_break_no_layout(house: House, browser: Browser, width: int) -> None:
    """Admins: names are chosen by strangers, and read here."""
    plain = await house.register("Agent")
    registered = [plain]
    for each in HOSTILE:
        said = {
            "client_name": each,
            "redirect_uris": ["https://agent.example/cb"],
            "token_endpoint_auth_method": "none",
        }
        answer = await house.http.post("/auth/connect/register", json=said)
        # Some are refused at the door; as the name of a user they come in all the same.
        client = answer.json()["client_id"] if answer.status_code == 201 else plain
        registered.append(client)
        await house.grant(client, f"user {each}", name=each)
    await house.settled()
    async with visiting(browser, house, viewport={"width": width, "height": 900}) as page:
        for path in (
            "/console/clients",
            "/console/families",
            "/console/audit",
            "/console/status",
            "/console/users",
            "/console/users?user=nobody",
            "/console/cut-off",
            f"/console/cut-off?client_id={client}",
            "/console/cut-off?client_id=nobody",
            "/console/stale-clients?unused_for=0s",
            *(f"/console/clients/{each}" for each in dict.fromkeys(registered)),
            *(f"/console/clients/{each}/users" for each in dict.fromkeys(registered)),
            *(f"/console/clients/{each}/delete" for each in dict.fromkeys(registered[:3])),
        ):
            await page.goto(house.url + path)
            wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, path
            assert not await page.locator("main script, main iframe, main img").count(), path


async def test_another_site_can_do_nothing_here(house: House, browser: Browser) -> None:
    """An admin who has a hostile page open beside the console: its forms and scripts change nothing."""
    client = await house.register("Agent")
    grant = await house.grant(client)
    await house.settled()
    page_of_evil = (
        f'<form id=f method=post action="{house.url}/console/clients/{client}/delete">'
        '<input name=typed value="delete 1"></form>'
        f"<script>fetch('{house.url}/console/clients/{client}/delete', {{method: 'POST', mode: 'no-cors', "
        "credentials: 'include', body: new URLSearchParams({typed: 'delete 1'})}).finally(() => f.submit())</script>"
    ).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page_of_evil)}\r\n\r\n"
        writer.write(head.encode() + page_of_evil)
        await writer.drain()
        writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    async with await asyncio.start_server(serve, sock=listening):
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(house.link())
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url("**/console/clients")
        await page.goto(f"http://localhost:{listening.getsockname()[1]}/")
        await expect(page.get_by_role("heading", name="Not from here")).to_be_visible()
        await context.close()
    answer = await house.ask("GET", f"/idp/v1/clients/{client}/grants/{grant}", role="idp")
    assert answer.json()["active"] is True


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_on_any_page(
    house: House, browser: Browser, *, scheme: Literal["light", "dark"]
) -> None:
    """Admins with a screen reader, with little sight, or with the keyboard alone (WCAG 2.2, A and AA)."""
    client = await house.register("Claude", redirect_uris=["https://claude-login.example/cb"], scope="tools")
    grant = await house.grant(client, "u-1")
    await house.use(client, grant, datetime.now(UTC).isoformat())
    gone = await house.register("Gone")
    await house.ask("DELETE", f"/admin/v1/clients/{gone}")
    await house.settled()
    family = (await house.ask("GET", f"/admin/v1/clients/{client}")).json()["family"]
    here = f"/console/clients/{client}"
    async with visiting(browser, house, refused=404, color_scheme=scheme) as page:
        for path in (
            "/console/clients",
            "/console/clients?name=nobody",
            "/console/families",
            here,
            f"{here}/users",
            f"{here}/history",
            f"{here}/flags",
            f"{here}/suspend",
            f"{here}/delete",
            f"{here}/grants/{grant}/revoke",
            f"/console/clients/{gone}",
            f"/console/families/{family}/delete",
            f"/console/bulk?act=delete&select={client}",
            "/console/stale-clients?unused_for=0s",
            "/console/users",
            "/console/users?user=nobody",
            "/console/cut-off",
            f"/console/cut-off?client_id={client}",
            "/console/cut-off?client_id=nobody",
            "/console/users/u-1",
            "/console/users/u-1/revoke",
            "/console/audit",
            f"/console/audit/as-of?client_id={client}",
            f"/console/deliveries/{house.position}",
            "/console/deliveries/nowhere",
            "/console/nothing",
            "/console/status",
        ):
            await page.goto(house.url + path)
            await page.evaluate(AXE.read_text())
            found = await page.evaluate("axe.run()")
            assert found["passes"]
            assert not [
                (path, each["id"], each["help"], [node["html"][:200] for node in each["nodes"]][:3])
                for each in found["violations"]
            ]
