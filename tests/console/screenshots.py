"""`make screenshots`: the README's pictures, of made-up clients, from a product that is started for it and ended."""

import asyncio
import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from playwright.async_api import async_playwright

from deploy.dev.servers import nats_server, postgres_server
from tests.console.conftest import BROWSER, House, running

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
SIZE: Final = {"width": 1280, "height": 760}
AGENTS: Final = (
    ("Claude", "https://claude.ai/api/mcp/auth_callback"),
    ("Claude Code", "http://localhost:57470/callback"),
    ("Cursor", "cursor://anysphere.cursor-mcp/oauth/callback"),
    ("ChatGPT", "https://chatgpt.com/connector_platform_oauth_redirect"),
    ("MCP Inspector", "http://localhost:6274/oauth/callback"),
    ("Claude Desktop", "https://claude-login.example.net/cb"),
)


async def seed(house: House) -> None:
    """Some clients, users and use; the same each time, but for ids and times."""
    chance = random.Random(7)
    now = datetime.now(UTC)
    for number in range(42):
        name, redirect = AGENTS[number % len(AGENTS)] if number % 7 else AGENTS[-1 if number == 35 else 0]
        client = await house.register(name, redirect_uris=[redirect], scope="tools:read tools:write")
        for _ in range(chance.choice([0, 1, 1, 2, 4])):
            grant = await house.grant(client, f"u-{chance.randrange(30)}", scopes=("tools:read",))
            for day in chance.sample(range(14), chance.randrange(1, 14)):
                at = now - timedelta(days=day, minutes=chance.randrange(1, 60))
                await house.use(client, grant, at.isoformat(), count=chance.randrange(1, 40))
        if number % 9 == 8:
            await house.ask("DELETE", f"/admin/v1/clients/{client}")
    await house.settled()
    while any(
        model["lag_events"] for model in (await house.ask("GET", "/admin/v1/status")).json()["read_models"].values()
    ):
        await asyncio.sleep(0.1)


async def main() -> None:
    """Start, seed, look, end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            nats_server(folder / "nats") as nats,
            postgres_server(folder / "postgres", password="of-pictures", durable=False) as postgres,
        ):
            async with running(nats.url, postgres.url, folder / "data") as house, async_playwright() as playwright:
                await seed(house)
                browser = await playwright.chromium.launch(**BROWSER)  # type: ignore[arg-type]  # two arguments, by name
                page = await browser.new_page(viewport=SIZE)  # type: ignore[arg-type]  # the same
                await page.goto(house.link())
                await page.get_by_role("button", name="Sign in").click()
                await page.wait_for_url("**/console/clients")
                await page.screenshot(path=IMAGES / "clients.png")
                await page.get_by_role("link", name="Claude Desktop").first.click()
                await page.get_by_role("heading", name="Client active").wait_for()
                await page.screenshot(path=IMAGES / "client.png")
                await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
