"""Every flow of the console in a real browser, with and without script, and what no mouse is needed for."""

from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, Page, expect

from tests.console.conftest import Console, House
from tests.console.test_in_a_browser import visiting

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
MAX_TABS: Final = 200
SCRIPT: Final = pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])


async def denied(house: House, client: str, grant: str) -> bool:
    answer = await house.ask("GET", f"/idp/v1/clients/{client}/grants/{grant}", role="idp")
    return answer.status_code == 410 or answer.json() == {"active": False}


async def arrived(page: Page) -> None:
    await expect(page.get_by_role("heading", name="Did it arrive?")).to_be_visible()


@SCRIPT
async def test_a_client_is_suspended_and_resumed(house: House, browser: Browser, *, script: bool) -> None:
    """An admin who is not sure yet: nothing is lost by being careful."""
    client = await house.register("Odd")
    grant = await house.grant(client)
    await house.settled()
    async with visiting(browser, house, java_script_enabled=script) as page:
        await page.goto(f"{house.url}/console/clients/{client}")
        await page.get_by_role("link", name="Suspend").click()
        await expect(page.get_by_text("This holds up 1 active grant of 1 user.")).to_be_visible()
        await page.get_by_label("Why, for those who read the audit").fill("looks odd")
        await page.get_by_role("button", name="Suspend", exact=True).click()
        await arrived(page)
        assert await denied(house, client, grant)
        await page.goto(f"{house.url}/console/clients/{client}")
        await page.get_by_role("link", name="Resume").click()
        await expect(page.get_by_text("Its 1 grant is good again.")).to_be_visible()
        await page.get_by_role("button", name="Resume", exact=True).click()
        await arrived(page)
        assert not await denied(house, client, grant)
        await page.goto(f"{house.url}/console/clients/{client}/history")
        await expect(page.get_by_text("looks odd")).to_be_visible()


@SCRIPT
async def test_those_selected_are_deleted_with_a_result(house: House, browser: Browser, *, script: bool) -> None:
    """An admin with a handful of bad ones: all of them in one go, and the honest one stays."""
    bad = [await house.register(f"Bad {number}") for number in range(3)]
    honest = await house.register("Honest")
    await house.settled()
    async with visiting(browser, house, java_script_enabled=script) as page:
        await page.goto(f"{house.url}/console/clients?name=bad")
        for number in range(3):
            await page.get_by_role("checkbox", name=f"Bad {number}").check()
        await page.get_by_role("button", name="Delete selected").click()
        await expect(page.get_by_role("heading", name="Delete 3 clients")).to_be_visible()
        await page.get_by_label("To go on, type").fill("delete 3")
        await page.get_by_role("button", name="Delete 3", exact=True).click()
        await expect(page.get_by_text("Finished: 3 done, 0 failed.")).to_be_visible(timeout=15_000)
        await page.get_by_role("link", name="Did it arrive at the token services?").click()
        await arrived(page)
    for each in bad:
        assert (await house.ask("GET", f"/idp/v1/clients/{each}", role="idp")).status_code == 410
    assert (await house.ask("GET", f"/idp/v1/clients/{honest}", role="idp")).status_code == 200


@SCRIPT
async def test_all_that_match_and_what_nobody_uses_go(house: House, browser: Browser, *, script: bool) -> None:
    """An admin after a flood: a filter and one act, and the clearing up with its dry run."""
    for number in range(26):
        await house.register(f"Flood {number}")
    idle = await house.register("Idle")
    await house.settled()
    async with visiting(browser, house, java_script_enabled=script) as page:
        await page.goto(f"{house.url}/console/clients?name=flood&limit=25")
        await page.get_by_role("button", name="Suspend all 26 matching").click()
        await page.get_by_label("To go on, type").fill("suspend 26")
        await page.get_by_role("button", name="Suspend 26", exact=True).click()
        await expect(page.get_by_text("Finished: 26 done, 0 failed.")).to_be_visible(timeout=15_000)
        await house.settled()
        await page.get_by_role("link", name="Unused").click()
        await page.get_by_label("Unused for").fill("0s")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("heading", name="Delete all 27")).to_be_visible()
        await page.get_by_label("To go on, type").fill("delete 27")
        await page.get_by_role("button", name="Delete 27", exact=True).click()
        await expect(page.get_by_text("Finished: 27 done, 0 failed.")).to_be_visible(timeout=15_000)
    assert (await house.ask("GET", f"/idp/v1/clients/{idle}", role="idp")).status_code == 410


@SCRIPT
async def test_all_that_a_user_let_in_ends(house: House, browser: Browser, *, script: bool) -> None:
    """An admin when somebody leaves: found by name, and out everywhere."""
    clients = [await house.register(f"App {number}") for number in range(2)]
    grants = [await house.grant(each, "ada", name="Ada Lovelace") for each in clients]
    other = await house.grant(clients[0], "grace")
    await house.settled()
    async with visiting(browser, house, java_script_enabled=script) as page:
        await page.get_by_role("link", name="Users", exact=True).click()
        await page.get_by_label("Part of the name, or the whole id").fill("lovelace")
        await page.get_by_role("button", name="Search").click()
        await page.get_by_role("link", name="Ada Lovelace").click()
        await expect(page.get_by_role("heading", name="Connected apps")).to_be_visible()
        await page.get_by_role("link", name="Revoke all of this user's grants").click()
        await page.get_by_label("To go on, type").fill("revoke 2")
        await page.get_by_role("button", name="Revoke all", exact=True).click()
        await arrived(page)
    assert [await denied(house, client, grant) for client, grant in zip(clients, grants, strict=True)] == [True, True]
    assert not await denied(house, clients[0], other)


@SCRIPT
async def test_the_audit_is_searched_and_taken_away(
    house: House, browser: Browser, tmp_path: Path, *, script: bool
) -> None:
    """An auditor: what happened to one client, as a file, and the client as it was."""
    client = await house.register("Agent")
    await house.register("Other")
    await house.grant(client)
    await house.ask("DELETE", f"/admin/v1/clients/{client}")
    await house.settled()
    async with visiting(browser, house, java_script_enabled=script) as page:
        await page.get_by_role("link", name="Audit").click()
        await page.get_by_label("Client id").fill(client)
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator("tbody tr")).to_have_count(4)
        for name, lines in (("JSON Lines", 4), ("CSV", 5)):
            async with page.expect_download() as downloading:
                await page.get_by_role("link", name=name).click()
            await (await downloading.value).save_as(tmp_path / name)
            assert len((tmp_path / name).read_text().splitlines()) == lines
        await page.get_by_role("link", name="A client as it was at a moment").click()
        await page.get_by_label("Client id").fill(client)
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_text("deleted").first).to_be_visible()


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has the focus is called so: what cannot be reached so is not there for these people."""
    for _ in range(MAX_TABS):
        await page.keyboard.press("Tab")
        focused = await page.evaluate(
            "(it => it.getAttribute('aria-label') ?? it.labels?.[0]?.innerText ?? it.innerText)(document.activeElement)"
        )
        if focused.strip().startswith(name):
            return
    pytest.fail(f"{name!r} cannot be reached by keyboard")


async def test_the_keyboard_alone_finds_revokes_and_deletes(house: House, browser: Browser) -> None:
    """An admin who uses no mouse: from the list to the end of a grant, and of the client, by keys alone."""
    client = await house.register("Agent")
    grant = await house.grant(client)
    kept = await house.register("Kept")
    await house.settled()
    keys: list[str] = ["/", *"agent", "Enter"]
    async with visiting(browser, house) as page:
        for key in keys:
            await page.keyboard.press(key)
        await page.wait_for_url("**/console/clients?name=agent**")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Client active")).to_be_visible()
        await tab_to(page, "Connected users")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("link", name="Revoke grant 1")).to_be_visible()
        await tab_to(page, "Revoke grant 1")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Revoke this grant")).to_be_visible()
        await tab_to(page, "Revoke")
        await page.keyboard.press("Enter")
        await arrived(page)
        assert await denied(house, client, grant)
        await tab_to(page, "Clients")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/console/clients")
        await house.settled()
        for key in ("j", "j"):
            await page.keyboard.press(key)
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("calls itself Agent")).to_be_visible()
        await tab_to(page, "Delete")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Delete this client")).to_be_visible()
        await tab_to(page, "To go on, type")
        await page.keyboard.type("delete 0")
        await tab_to(page, "Delete")
        await page.keyboard.press("Enter")
        await arrived(page)
    assert (await house.ask("GET", f"/idp/v1/clients/{client}", role="idp")).status_code == 410
    assert (await house.ask("GET", f"/idp/v1/clients/{kept}", role="idp")).status_code == 200


async def test_two_admins_see_what_the_other_did(console: Console, house: House, browser: Browser) -> None:
    """Admins who work at once: who comes second is told, and does nothing twice."""
    client = await house.register("Agent")
    await house.settled()
    async with visiting(browser, house, refused=410) as page:
        await page.goto(f"{house.url}/console/clients/{client}/delete")
        await console.post(f"/console/clients/{client}/delete", {"typed": "delete 0"})
        await house.settled()
        await page.get_by_label("To go on, type").fill("delete 0")
        async with page.expect_response(f"**/{client}/delete") as answered:
            await page.get_by_role("button", name="Delete", exact=True).click()
        assert (await answered.value).status == 410
        await expect(page.get_by_text("This client is deleted already")).to_be_visible()


@SCRIPT
async def test_pages_lead_on_and_back_at_every_size(house: House, browser: Browser, *, script: bool) -> None:
    """Admins of a new register, and of one that has just outgrown its first page."""
    async with visiting(browser, house, java_script_enabled=script) as page:
        here = f"{house.url}/console/clients?limit=25"
        sizes = {0: None, 1: "1 to 1 of 1", 25: "1 to 25 of 25", 26: "1 to 25 of 26"}
        registered = 0
        for size, said in sizes.items():
            for number in range(registered, size):
                await house.register(f"Agent {number}")
            registered = size
            await house.settled()
            await page.goto(here)
            if said is None:
                await expect(page.get_by_role("heading", name="No client has registered yet")).to_be_visible()
                continue
            await expect(page.get_by_text(said, exact=True)).to_be_visible()
            await expect(page.locator("tbody tr")).to_have_count(min(size, 25))
            await expect(page.get_by_role("link", name="Next")).to_have_count(1 if size > 25 else 0)
        if script:
            await page.keyboard.press("n")
        else:
            await page.get_by_role("link", name="Next").click()
        await expect(page.get_by_text("26 to 26 of 26", exact=True)).to_be_visible()
        await expect(page.get_by_role("link", name="Next")).to_have_count(0)
        if script:
            await page.keyboard.press("p")
        else:
            await page.get_by_role("link", name="Previous").click()
        await expect(page.get_by_text("1 to 25 of 26", exact=True)).to_be_visible()
        await expect(page.get_by_role("link", name="Previous")).to_have_count(0)
