"""The list of clients, as the server sends it."""

import asyncio
from datetime import UTC, datetime
from html import unescape

import pytest

from console.pages.clients import LIMITS, VIEWS
from console.rendering import address
from tests.console.conftest import Console, House

pytestmark = pytest.mark.browser
SECONDS = 20.0


async def test_an_empty_register_says_what_will_stand_here(console: Console) -> None:
    """An admin on the first day: an empty table explains nothing."""
    assert "No client has registered yet" in (await console.get("/console/clients")).text


async def test_a_client_stands_in_a_row_with_its_host_and_its_flags_in_words(console: Console, house: House) -> None:
    """An admin: the host, and not the name, is what can be trusted."""
    client = await house.register("Claude", redirect_uris=["https://claude-login.example/cb"])
    await house.grant(client)
    page = unescape((await console.get("/console/clients")).text)
    assert "<bdi>Claude</bdi>" in page
    assert '<span class="host">claude-login.example</span>' in page
    assert "known name, unknown host" in page
    assert f'title="{client}"' in page
    assert f'data-copy="{client}"' in page


async def test_every_saved_view_is_a_list(console: Console, house: House) -> None:
    """Admins: a view that the read API refuses would be an error page behind a button."""
    await house.register()
    for view in VIEWS:
        await console.get(address("/console/clients", view.query))


async def test_filters_and_order_are_in_the_address_and_stay(console: Console, house: House) -> None:
    """Whoever sends a colleague the address of what is on the screen."""
    await house.register("Alpha")
    await house.register("Beta", redirect_uris=["https://beta.example/cb"])
    page = unescape(
        (await console.get("/console/clients?name=bet&redirect_uri=beta.ex&limit=25&sort=client_name")).text
    )
    assert "<bdi>Beta</bdi>" in page
    assert "<bdi>Alpha</bdi>" not in page
    assert 'name="name" value="bet"' in page
    assert "/console/clients?name=bet&redirect_uri=beta.ex&sort=-client_name&limit=25" in page
    assert 'aria-sort="ascending"' in page


async def test_no_match_is_not_an_empty_register(console: Console, house: House) -> None:
    """An admin who mistyped a name."""
    await house.register()
    assert "No client matches" in (await console.get("/console/clients?name=zzz")).text


@pytest.mark.parametrize("more", [0, 1])
async def test_pages_have_exact_totals_and_no_dead_ends(console: Console, house: House, more: int) -> None:
    """An admin: one page has no next page, and one client more has one of one client."""
    size = LIMITS[0]
    for number in range(size + more):
        await house.register(f"Agent {number}")
    page = unescape((await console.get(f"/console/clients?limit={size}")).text)
    assert f"1 to {size} of {size + more}" in page
    assert ('rel="next"' in page) == bool(more)
    if more:
        following = page.partition('rel="next" href="')[2].partition('"')[0]
        second = unescape((await console.get(following)).text)
        assert f"{size + 1} to {size + 1} of {size + 1}" in second
        assert 'rel="next"' not in second


async def test_a_filter_that_cannot_be_is_an_error_in_words(console: Console) -> None:
    """An admin who typed a date by hand."""
    page = await console.get("/console/clients?created_after=yesterday", answers=400)
    assert "created_after" in page.text


async def test_families_are_one_row(console: Console, house: House) -> None:
    """An admin with forty-two of the same."""
    for _ in range(3):
        await house.register("Claude Code", redirect_uris=["http://localhost:57470/callback"])
    page = (await console.get("/console/families")).text
    assert "<bdi>Claude Code</bdi> × 3" in page  # noqa: RUF001  a multiplication it is


async def test_a_page_is_small_and_asks_for_nothing_elsewhere(console: Console, house: House) -> None:
    """Admins on slow lines; and nobody else learns what they look at."""
    for number in range(50):
        client = await house.register(
            f"Agent {number}", redirect_uris=[f"https://agent{number}.example/callback"], scope="tools"
        )
        await house.grant(client, f"u-{number}")
    page = await console.get("/console/clients")
    assert len(page.content) <= 60 * 1_024
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"


async def test_use_by_day_is_drawn_where_there_was_any(console: Console, house: House) -> None:
    """An admin: which agents are in use, and which were, shows in the list without opening each."""
    client = await house.register("Busy")
    await house.register("Idle")
    now = datetime.now(UTC)
    grant = await house.grant(client)
    await house.use(client, grant, now.isoformat(), count=3)
    page = ""
    async with asyncio.timeout(SECONDS):
        while 'aria-label="3 uses in 14 days"' not in page:
            page = (await console.get("/console/clients")).text
    assert page.count('class="spark"') == 1
    assert '<path d="M54 16v-16"/>' in page


async def test_whoever_was_cut_off_lately_is_one_view(console: Console, house: House) -> None:
    """An admin after an incident: what was ended in the last days, deleted clients too, and nothing else."""
    kept = await house.register("Kept")
    await house.grant(kept)
    deleted, revoked = await house.register("Deleted"), await house.register("Revoked")
    grant = await house.grant(revoked)
    await house.ask("POST", f"/admin/v1/clients/{revoked}/grants/{grant}/revoke")
    await house.ask("DELETE", f"/admin/v1/clients/{deleted}")
    [view] = [each for each in VIEWS if each.name == "Revoked lately"]
    page = (await console.get(address("/console/clients", view.query))).text
    assert ["<bdi>Kept" in page, "<bdi>Deleted" in page, "<bdi>Revoked" in page] == [False, True, True]
