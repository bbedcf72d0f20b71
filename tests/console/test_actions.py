"""Cutting off from the console, as the server answers it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from html import unescape
from typing import Any, Final, Literal

import httpx
import pytest
from msgspec import UNSET
from playwright.async_api import Browser, expect

from console.app import create_app
from console.pages import actions
from console.settings import Settings
from deploy.dev.servers import free_port
from door import serving
from grantbook import positions
from grantbook.admin import Delivery, SubscriberDelivery
from grantbook.receipts import Receipt
from grantbook.sdk.connection import connect
from grantbook.sdk.subscription import put_receipt
from tests.console.conftest import START_SECONDS, Console, House, signed_in
from tests.console.test_in_a_browser import visiting
from tests.projector import given

pytestmark = pytest.mark.browser

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def beside(house: House, *, registry_url: str, projector_url: str) -> AsyncIterator[Console]:
    """An admin at a console of its own beside the product, that is told where both services are."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = Settings(
        url=url,
        registry_url=registry_url,
        projector_url=projector_url,
        token=house.kept.console_token,
        link_key=bytes.fromhex(house.kept.link_key),
    )
    server = serving.Server(create_app(settings), host="127.0.0.1", port=port, on_exit=lambda: None)
    task = asyncio.create_task(server._serve())
    try:
        async with asyncio.timeout(START_SECONDS):
            while not server.started:
                assert not task.done(), task
                await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            yield await signed_in(House(url, house.kept, house.data, http))
    finally:
        server.stop()
        await task


def nobody() -> str:
    """Where nothing answers."""
    return f"http://127.0.0.1:{free_port()}"


async def active(house: House, client: str, grant: str) -> bool:
    answer = await house.ask("GET", f"/idp/v1/clients/{client}/grants/{grant}", role="idp")
    return bool(answer.json()["active"])


async def test_a_revoked_grant_is_over_and_others_are_not(console: Console, house: House) -> None:
    """A user whose laptop was lost, and all others of the same client."""
    client = await house.register()
    lost, kept = await house.grant(client, "u-1"), await house.grant(client, "u-2")
    path = f"/console/clients/{client}/grants/{lost}/revoke"
    assert "ends 1 grant of 1 user" in (await console.get(path)).text
    done = await console.post(path, {"reason": "user"})
    assert done.headers["location"].startswith("/console/deliveries/")
    assert not await active(house, client, lost)
    assert await active(house, client, kept)


async def test_deleting_says_its_consequences_and_wants_them_typed(console: Console, house: House) -> None:
    """An admin in a hurry, in the wrong row."""
    client = await house.register()
    grants = [await house.grant(client, f"u-{number}") for number in range(3)]
    path = f"/console/clients/{client}/delete"
    page = unescape((await console.get(path)).text)
    assert "This ends 3 active grants of 3 users." in page
    assert "type “delete 3”" in page
    again = await console.post(path, {"typed": "delete", "detail": "because"}, answers=400)
    assert "Nothing was done" in again.text
    assert "because" in again.text
    assert await active(house, client, grants[0])
    await console.post(path, {"typed": " Delete  3 ", "reason": "policy"})
    assert not await active(house, client, grants[0])
    assert "Deleted: its grants have ended" in (await console.get(f"/console/clients/{client}")).text


async def test_the_log_says_which_admin_did_it(console: Console, house: House) -> None:
    """Auditors: the console acts for people, and is none itself."""
    client = await house.register()
    await console.post(f"/console/clients/{client}/delete", {"typed": "delete 0", "detail": "odd"})
    history = (await house.ask("GET", f"/admin/v1/clients/{client}?at_least={console.house.position}")).json()[
        "history"
    ]
    await console.get(f"/console/clients/{client}")  # waits for what was just done
    history = (await house.ask("GET", f"/admin/v1/clients/{client}")).json()["history"]
    assert history[-1]["by"] == {"kind": "admin", "id": "local-admin"}
    assert (history[-1]["reason"], history[-1]["detail"]) == ("admin", "odd")


async def test_a_suspended_client_is_resumed_with_its_grants(console: Console, house: House) -> None:
    """An admin who wanted to look first."""
    client = await house.register()
    grant = await house.grant(client)
    await console.post(f"/console/clients/{client}/suspend")
    assert not await active(house, client, grant)
    assert "Resume" in (await console.get(f"/console/clients/{client}")).text
    await console.post(f"/console/clients/{client}/resume")
    assert await active(house, client, grant)


async def test_all_of_a_users_grants_end_at_once(console: Console, house: House) -> None:
    """Whoever left the company."""
    clients = [await house.register(f"A{number}") for number in range(2)]
    grants = [await house.grant(each, "u-gone") for each in clients]
    page = unescape((await console.get("/console/users/u-gone")).text)
    assert "<bdi>A0</bdi>" in page
    assert "<bdi>A1</bdi>" in page
    await console.post("/console/users/u-gone/revoke", {"typed": "revoke 2", "reason": "offboarded"})
    assert [await active(house, *each) for each in zip(clients, grants, strict=True)] == [False, False]
    assert "No grant stands" in (await console.get("/console/users/u-gone")).text


async def test_a_family_is_deleted_whole(console: Console, house: House) -> None:
    """An admin with a flood of the same client."""
    clients = [await house.register("Flood", redirect_uris=["https://flood.example/cb"]) for _ in range(3)]
    await house.settled()
    family = (await house.ask("GET", f"/admin/v1/clients/{clients[0]}")).json()["family"]
    path = f"/console/families/{family}/delete"
    assert "These are 3 clients." in (await console.get(path)).text
    await console.post(path, {"typed": "delete 3"})
    assert "No client has registered yet" in (await console.get("/console/clients")).text


async def test_a_delivery_that_nobody_reports_says_so(console: Console, house: House) -> None:
    """An admin who takes silence for success."""
    client = await house.register()
    done = await console.post(f"/console/clients/{client}/delete", {"typed": "delete 0"})
    assert "No token service reports here" in (await console.get(done.headers["location"])).text


async def test_an_address_cannot_make_the_console_link_elsewhere(console: Console, house: House) -> None:
    """An admin who was sent a link to our own page."""
    client = await house.register()
    done = await console.post(f"/console/clients/{client}/delete", {"typed": "delete 0"})
    path = done.headers["location"].partition("?")[0]
    for back in ("https://evil.example/", "//evil.example", "/console/../x", "/console/\\evil", "javascript:alert(1)"):
        assert ">Back</a>" not in (await console.get(f"{path}?back={back}")).text, back


async def test_a_client_is_cut_off_by_its_id_while_the_lists_are_away(house: House) -> None:
    """An admin at night with a broken database: cutting off needs the register alone."""
    client = await house.register()
    grant = await house.grant(client)
    async with beside(house, registry_url=house.url, projector_url=nobody()) as console:
        asks = (await console.get("/console/cut-off")).text
        assert 'name="client_id"' in asks
        page = unescape((await console.get(f"/console/cut-off?client_id=%20{client}%20")).text)
        assert "cannot be counted" in page
        assert "type “delete”" in page
        assert f'action="/console/clients/{client}/delete"' in page
        again = unescape((await console.post(f"/console/clients/{client}/delete", {"typed": ""}, answers=400)).text)
        assert "Nothing was done" in again
        assert await active(house, client, grant)
        done = await console.post(f"/console/clients/{client}/delete", {"typed": "delete", "reason": "policy"})
        assert not await active(house, client, grant)
        after = unescape((await console.get(done.headers["location"])).text)
        assert "It is done" in after
        assert "cannot be told right now" in after
        assert "data-live" in after  # told as soon as it can be


async def test_a_number_that_was_shown_before_the_lists_went_away_still_holds(house: House) -> None:
    """An admin half-way through the form when the database breaks."""
    client = await house.register()
    grant = await house.grant(client)
    async with beside(house, registry_url=house.url, projector_url=nobody()) as console:
        await console.post(f"/console/clients/{client}/delete", {"typed": "remove 1"}, answers=400)
        assert await active(house, client, grant)
        await console.post(f"/console/clients/{client}/delete", {"typed": "delete 1"})
    assert not await active(house, client, grant)


async def test_a_client_that_the_lists_do_not_have_yet_is_cut_off_by_its_id(
    console: Console, house: House, nats_url: str
) -> None:
    """An admin whose lists have halted, with an attacker who came after that."""
    log = await connect(nats_url, name="test")
    await given.write_raw(log, "grantbook.client.c2.gate", "client.renamed", b"{}")
    await log.close()
    async with asyncio.timeout(START_SECONDS):
        while "halted" not in (await house.ask("GET", "/admin/v1/status")).json()["read_models"]["log"]:
            await asyncio.sleep(0.02)
    client = await house.register()
    grant = await house.grant(client)
    house.position = ""  # the lists never come as far
    page = unescape((await console.get(f"/console/cut-off?client_id={client}")).text)
    assert "The lists do not have this client" in page
    await console.post(f"/console/clients/{client}/delete", {"typed": "delete"})
    assert not await active(house, client, grant)


async def test_the_register_has_the_last_word_on_an_id_that_was_typed(console: Console) -> None:
    """Whoever pastes half an id."""
    page = await console.get("/console/cut-off?client_id=https://a.example/%3Cb%3E")
    assert "<code>https://a.example/&lt;b&gt;</code>" in page.text
    assert "type “delete”" in unescape(page.text)
    where = page.text.partition('<form method="post" action="/console/clients/')[2].partition('"')[0]
    path = f"/console/clients/{where}"
    page = await console.post(path, {"typed": "delete", "detail": "because"}, answers=404)
    assert "No client was ever registered" in page.text
    assert "Nothing was changed." in page.text
    assert "because" in page.text


async def test_what_nobody_knows_to_be_undone_is_not_said_to_be(house: House) -> None:
    """An admin whose connection broke after the register had written."""
    client = await house.register()
    await house.settled()
    async with beside(house, registry_url=nobody(), projector_url=house.url) as console:
        page = await console.post(
            f"/console/clients/{client}/delete", {"typed": "delete 0", "detail": "because"}, answers=503
        )
    assert "cannot be asked right now" in page.text
    assert "Perhaps it was done" in page.text
    assert "Nothing was changed" not in page.text
    assert "because" in page.text


@pytest.mark.parametrize("act", ["delete", "suspend", "resume"])
async def test_a_client_that_was_deleted_meanwhile_is_left_alone(console: Console, house: House, act: str) -> None:
    """Two admins with the same page open."""
    client = await house.register()
    await console.post(f"/console/clients/{client}/delete", {"typed": "delete 0"})
    before = (await house.ask("GET", "/admin/v1/status")).json()["log_position"]
    page = (await console.get(f"/console/clients/{client}/{act}", answers=410)).text
    assert "deleted already" in page
    assert "<form" not in page.partition("<main")[2].partition("</main>")[0]
    await console.post(f"/console/clients/{client}/{act}", {"typed": "delete 0"}, answers=410)
    assert (await house.ask("GET", "/admin/v1/status")).json()["log_position"] == before


async def test_revoking_one_grant_says_whose_it_is(console: Console, house: House) -> None:
    """An admin in the wrong row: the confirmation hides the list."""
    client = await house.register()
    grant = await house.grant(client, "u-<1>")
    await house.grant(client, "u-2")
    page = (await console.get(f"/console/clients/{client}/grants/{grant}/revoke")).text
    assert "<code>u-&lt;1&gt;</code>" in page
    assert "u-2" not in page


async def test_nothing_is_promised_of_a_grant_that_the_client_does_not_have(console: Console, house: House) -> None:
    """An admin with an address from elsewhere: neither a made-up grant nor another client's is said to end."""
    mine, other = await house.register("Mine"), await house.register("Other")
    grant = await house.grant(other, "somebody-else")
    for each in ("nonesuch", grant):
        page = unescape((await console.get(f"/console/clients/{mine}/grants/{each}/revoke")).text)
        assert "This ends 1 grant" not in page
        assert "Nobody knows right now whose grant this is" in page
        assert "somebody-else" not in page


async def test_grants_of_a_suspended_client_count_among_what_ends(console: Console, house: House) -> None:
    """An admin who reads that nobody loses anything, while somebody would."""
    client = await house.register()
    await house.grant(client, "u-1")
    await house.ask("POST", f"/admin/v1/clients/{client}/suspend")
    page = unescape((await console.get("/console/users/u-1/revoke")).text)
    assert "This ends 1 suspended grant." in page
    assert "type “revoke 1”" in page
    page = unescape((await console.get(f"/console/clients/{client}/delete")).text)
    assert "This ends 1 suspended grant." in page
    assert "Its 1 grant is good again." in (await console.get(f"/console/clients/{client}/resume")).text


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ((0, None, 0), "No grant stands, so nobody loses access by it."),
        ((1, 1, 0), "This ends 1 active grant of 1 user."),
        ((1_234, 1_000, 0), "This ends 1,234 active grants of 1,000 users."),
        ((2, None, 0), "This ends 2 active grants."),
        ((0, 0, 2), "This ends 2 suspended grants."),
        ((3, 2, 1), "This ends 3 active grants of 2 users, and 1 suspended grant."),
    ],
)
def test_what_ends_is_said_in_one_sentence(said: tuple[int, int | None, int], sentence: str) -> None:
    """Admins: the number that has to be typed is the sum of what stands there."""
    active_grants, users, suspended = said
    assert actions.ends(active_grants, users, suspended=suspended) == sentence


async def test_an_address_cannot_make_the_console_say_that_something_was_done(console: Console, house: House) -> None:
    """An admin who was sent a link to our own page, and takes its word for a deletion."""
    await house.register()
    at = positions.parse(house.position)
    for made_up in (
        "all-clients-are-safe",
        "log-00000000-1",
        f"log-{at.identity}-9999999999",
        f"activity-{at.identity}-1",
    ):
        page = (await console.get(f"/console/deliveries/{made_up}", answers=404)).text
        assert "It is done" not in page, made_up
        assert made_up not in page.partition("<main")[2], made_up


async def test_what_revoked_nothing_is_no_delivery(console: Console, house: House) -> None:
    """An auditor with the position of a registration."""
    client = await house.register()
    registered = house.position
    await house.ask("DELETE", f"/admin/v1/clients/{client}")
    page = (await console.get(f"/console/deliveries/{registered}", answers=404)).text
    assert "Nothing was revoked up to there" in page
    assert "It is done" not in page


async def test_a_later_position_is_told_from_the_revocation_before_it(console: Console, house: House) -> None:
    """An admin who was sent the address of something else, which looks as if it had been revoked."""
    client = await house.register()
    await house.ask("DELETE", f"/admin/v1/clients/{client}")
    revoked = house.position
    await house.register("Other")
    page = (await console.get(f"/console/deliveries/{house.position}")).text
    assert "It is done" not in page
    assert f"the last revocation before it, at <code>{revoked}</code>" in page
    assert "It is done" in (await console.get(f"/console/deliveries/{revoked}")).text


def receipt(at: positions.Position, name: str, state: Literal["fresh", "stale"], *, has: bool) -> Receipt:
    return Receipt(
        name=name, instance="one", state=state, log=at.identity, log_sequence=at.sequence if has else at.sequence - 1
    )


async def test_the_page_says_by_itself_when_all_have_it(house: House, browser: Browser, nats_url: str) -> None:
    """An admin who must be sure, one with a screen reader among them: nobody has to reload."""
    client = await house.register()
    done = await house.ask("DELETE", f"/admin/v1/clients/{client}")
    at = positions.parse(done.headers["grantbook-position"])
    log = await connect(nats_url, name="test")
    await put_receipt(log, receipt(at, "mail", "fresh", has=True))
    await put_receipt(log, receipt(at, "files", "stale", has=False))
    async with visiting(browser, house) as page:
        await page.goto(f"{house.url}/console/deliveries/{at}")
        await expect(page.get_by_text("1 of 2 token services have it. 1 does not yet.")).to_be_visible()
        await expect(page.locator("#delivery[data-live]")).to_have_count(1)
        await put_receipt(log, receipt(at, "files", "fresh", has=True))
        await expect(page.locator("#delivery").get_by_text("Every token service has it.")).to_be_visible()
        await expect(page.locator("#delivery[data-live]")).to_have_count(0)
        await expect(page.locator("#said")).to_contain_text("Every token service has it.")
    await log.close()


def delivery(*has: bool, **said: Any) -> Delivery:
    subscribers = [
        SubscriberDelivery(
            name=f"s{number}",
            instance="one",
            state="fresh",
            delivered=each,
            took_ms=2.5 if each else UNSET,
            silent_seconds=1,
        )
        for number, each in enumerate(has)
    ]
    kept: dict[str, Any] = {
        "position": "log-00000000-1",
        "revocation": "log-00000000-1",
        "type": "client.deleted",
        "recorded_at": NOW,
        "complete": all(has),
        "delivered": sum(has),
        "waiting": 0,
        "gone": 0,
        "slowest": next((each for each in subscribers if each.delivered), UNSET),
        "subscribers": subscribers,
    }
    return Delivery(**(kept | said))


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (delivery(), "No token service reports here, so nobody can say which of them have it."),
        (delivery(True, True), "Every token service has it. The slowest took 2.5 ms."),
        (delivery(True, False, waiting=1), "1 of 2 token services have it. 1 does not yet."),
        (delivery(False, False, waiting=2), "0 of 2 token services have it. 2 do not yet."),
        (
            delivery(True, False, gone=1),
            "1 of 2 token services have it. 1 fell silent before: nobody knows whether they still honour its tokens.",
        ),
        (
            delivery(False, False, waiting=1, gone=1),
            (
                "0 of 2 token services have it. 1 does not yet. 1 fell silent before: nobody knows whether they still "
                "honour its tokens."
            ),
        ),
        (
            delivery(True, True, complete=False, truncated=True),
            "2 of 2 token services have it. There are more than are looked at, so nobody can say that all have it.",
        ),
    ],
)
def test_nobody_is_told_more_than_is_known(told: Delivery, sentence: str) -> None:
    """An admin who takes silence, or what was not looked at, for success."""
    assert actions.arrival(told) == sentence


async def test_what_never_was_cannot_be_acted_on(console: Console) -> None:
    """Whoever edits an address."""
    assert "No client was ever registered" in (await console.get("/console/clients/nobody/delete", answers=404)).text
