"""Cutting off from the console, as the server answers it."""

from html import unescape

import pytest

from tests.console.conftest import Console, House

pytestmark = pytest.mark.browser


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


async def test_a_client_is_cut_off_by_its_id_when_lists_are_away(console: Console, house: House) -> None:
    """An admin at night with a broken database: cutting off needs the register alone."""
    client = await house.register()
    found = await console.get(f"/console/cut-off?client_id={client}", answers=303)
    assert found.headers["location"] == f"/console/clients/{client}/delete"


async def test_what_never_was_cannot_be_acted_on(console: Console) -> None:
    """Whoever edits an address."""
    assert "No client was ever registered" in (await console.get("/console/clients/nobody/delete", answers=404)).text
