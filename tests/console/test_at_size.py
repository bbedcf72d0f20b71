"""The console over a hundred thousand clients, and over everything that a hostile registration can hold."""

import asyncio
import itertools
from typing import Any, Final

import pytest
from playwright.async_api import Browser, expect

from grantbook import subjects
from grantbook.sdk.connection import connect
from tests.console.conftest import House
from tests.console.test_in_a_browser import visiting
from tests.projector import given

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

CLIENTS: Final = 100_000
WRITTEN_AT_ONCE: Final = 10_000
PAYLOADS: Final = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe src=javascript:alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "<style>*{display:none}</style>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<form action=//evil.example><button>x</button></form>",
    "{{constructor.constructor('alert(1)')()}}",
    "{% raw %}",
    "${alert(1)}",
    "=cmd|'/c calc'!A0",
    "@SUM(1)",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "</title></textarea></script><script>alert(1)</script>",
    "x" * 10_000,
    "\u202eevil",
)
AROUND: Final = ("{}", '"{}', "'{}", "`{}", ">{}", "-->{}", "]]>{}", "{}//", "a {} b", "\u00e9{}")
FIELDS: Final = (
    "client_name",
    "client_name#en",
    "scope",
    "contacts",
    "software_id",
    "software_version",
    "client_uri",
    "logo_uri",
    "tos_uri",
    "policy_uri",
    "redirect_uris",
)


def body(field: str, text: str) -> dict[str, Any]:
    """A registration with a hostile string in one member; in a URI, as its path."""
    value: Any = text
    if field in {"contacts", "redirect_uris"}:
        value = [text]
    elif field.endswith("_uri"):
        value = f"https://agent.example/{text}"
    plain = {"redirect_uris": ["https://agent.example/cb"], "token_endpoint_auth_method": "none"}
    return plain | {field: value}


async def test_two_hundred_hostile_strings_in_every_field_change_nothing(house: House, browser: Browser) -> None:
    """Admins: whatever gets through the door is text here, and runs, hides and moves nothing."""
    assert len(PAYLOADS) * len(AROUND) == 200
    let_in: dict[str, str] = {}
    for field, payload in itertools.product(FIELDS, PAYLOADS):
        bodies = [body(field, around.format(payload)) for around in AROUND]
        answers = await asyncio.gather(*(house.http.post("/auth/connect/register", json=each) for each in bodies))
        for answer in answers:
            assert answer.status_code in {201, 400}, answer.text
            if answer.status_code == 201:
                let_in.setdefault(f"{field} {payload}", answer.json()["client_id"])
    assert len(let_in) >= 40
    await house.settled()
    total = (await house.ask("GET", "/admin/v1/clients?limit=1&count=true")).json()["total"]
    async with visiting(browser, house, viewport={"width": 1_280, "height": 800}) as page:
        await page.goto(f"{house.url}/console/clients?limit=200")
        seen = 0
        while True:
            seen += await page.locator("[data-rows] tbody tr").count()
            assert not await page.locator("main script, main iframe, main img, main base, main style").count()
            assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            following = page.get_by_role("link", name="Next")
            if not await following.count():
                break
            await following.click()
            await page.wait_for_load_state()
        assert seen == total
        for client in let_in.values():
            await page.goto(f"{house.url}/console/clients/{client}")
            assert not await page.locator("main script, main iframe, main img, main base, main style").count()
            assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            assert not await page.locator('main a:not([href^="/console/"]):not([href^="?"])').count()


async def test_a_hundred_thousand_clients_are_paged_counted_and_found(
    house: House, browser: Browser, nats_url: str
) -> None:
    """Admins of a large installation: peers' pages die at a few thousand."""
    nats = await connect(nats_url, name="test")
    for start in range(0, CLIENTS, WRITTEN_AT_ONCE):
        last = await given.write(
            nats,
            *(
                given.registered(f"client-{number}", given.metadata(f"Agent {number}"))
                for number in range(start, start + WRITTEN_AT_ONCE)
            ),
        )
    reached = await given.position(nats, subjects.LOG, last[-1])
    await nats.close()
    for _ in range(60):
        answer = await house.ask("GET", f"/admin/v1/clients?limit=1&at_least={reached}")
        if answer.status_code == 200:
            break
    assert answer.status_code == 200
    async with visiting(browser, house) as page:
        await page.goto(f"{house.url}/console/clients")
        await expect(page.get_by_text("1 to 50 of 100,000")).to_be_visible()
        await page.get_by_role("link", name="Next").click()
        await expect(page.get_by_text("51 to 100 of 100,000")).to_be_visible()
        await page.get_by_label("Name", exact=True).fill("agent 99999")
        await page.get_by_role("button", name="Search").click()
        await expect(page.get_by_text("1 to 1 of 1")).to_be_visible()
        await page.goto(f"{house.url}/console/clients?sort=client_name&limit=200")
        await expect(page.get_by_text("1 to 200 of 100,000")).to_be_visible()
