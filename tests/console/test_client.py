"""One client's page, as the server sends it."""

import json
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import highlight
from console.pages.client import definition
from grantbook.admin import ClientDetail
from tests.console.conftest import Console, House

pytestmark = pytest.mark.browser


async def test_the_definition_is_the_whole_registration_as_text(console: Console, house: House) -> None:
    """An admin who judges a client: all that it said, and nothing of it runs or leads anywhere."""
    client = await house.register("<b>A</b>", client_uri="https://agent.example/<x>".replace("<x>", "x"), scope="tools")
    page = (await console.get(f"/console/clients/{client}")).text
    assert "&lt;b&gt;A&lt;/b&gt;" in page
    assert "<b>A</b>" not in page
    assert 'href="https://agent.example' not in page
    file = await console.get(f"/console/clients/{client}/definition.json")
    assert json.loads(file.content)["client_uri"] == "https://agent.example/x"
    assert file.headers["content-disposition"] == 'attachment; filename="client.json"'


async def test_a_registration_cannot_say_under_which_id_or_from_where_it_came(console: Console, house: House) -> None:
    """An admin who reads the definition: what the register knows is not for the client to say."""
    said: dict[str, Any] = {"client_id": "trusted", "client_id_issued_at": 1, "source": "manual"}
    client = await house.register(**said)
    file = json.loads((await console.get(f"/console/clients/{client}/definition.json")).content)
    assert (file["client_id"], file["source"]) == (client, "dcr")
    assert file["client_id_issued_at"] > 1


def test_what_the_register_knows_wins_over_what_the_client_says() -> None:
    """The same, whatever the register should ever keep of a registration."""
    client = ClientDetail(
        client_id="c",
        redirect_uris=[],
        grant_types=[],
        token_endpoint_auth_method="none",
        client_id_issued_at=5,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        source="dcr",
        status="active",
        active_grants=0,
        active_users=0,
        family="f",
        flags=[],
        metadata={"client_id": "trusted", "client_id_issued_at": 1, "source": "manual", "client_name": "A"},
        metadata_sha256="0",
        history=[],
    )
    assert definition(client) == {"client_id": "c", "client_id_issued_at": 5, "client_name": "A", "source": "dcr"}


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists, max_leaves=10))
def test_highlighting_changes_nothing_but_colours(value: object) -> None:
    """Admins: what is shown is what was registered, letter for letter, and no letter of it is markup."""
    text = highlight.pretty(value)
    shown = highlight.highlighted(text)
    assert unescape(_without_spans(shown)) == text


def _without_spans(shown: str) -> str:
    for name in ("name", "string", "number", "constant"):
        shown = shown.replace(f'<span class="json-{name}">', "")
    shown = shown.replace("</span>", "")
    assert "<" not in shown
    return shown


async def test_connected_users_are_found_and_each_can_be_revoked(console: Console, house: House) -> None:
    """An admin who looks for one of many."""
    client = await house.register()
    ada, grant = await house.grant(client, "u-ada", name="Ada <i>"), await house.grant(client, "u-bob", name="Bob")
    page = (await console.get(f"/console/clients/{client}/users?user=ada")).text
    assert "<bdi>Ada &lt;i&gt;</bdi>" in page
    assert "Bob" not in page
    assert f"/console/clients/{client}/grants/{ada}/revoke" in page
    assert grant not in page


async def test_history_says_who_did_what_and_where_it_stands(console: Console, house: House) -> None:
    """An auditor's first question."""
    client = await house.register()
    await console.post(f"/console/clients/{client}/suspend", {"reason": "policy", "detail": "looks odd"})
    page = unescape((await console.get(f"/console/clients/{client}/history")).text)
    assert "client.suspended" in page
    assert "<bdi>local-admin</bdi>" in page
    assert "<bdi>looks odd</bdi>" in page
    assert "/console/audit/as-of?client_id=" in page


async def test_why_flagged_is_a_sentence_for_each(console: Console, house: House) -> None:
    """An admin who has not learned our words."""
    client = await house.register("Claude", redirect_uris=["https://claude-login.example/cb"])
    page = unescape((await console.get(f"/console/clients/{client}/flags")).text)
    assert "a redirect leads elsewhere than that product's" in page


async def test_a_client_that_never_was_is_no_page(console: Console) -> None:
    """Whoever follows an old link."""
    assert "No client was ever registered" in (await console.get("/console/clients/nobody", answers=404)).text


async def test_a_part_comes_without_what_is_around_it(console: Console, house: House) -> None:
    """The dialog: a page in a page would have two heads."""
    client = await house.register()
    part = (await console.get(f"/console/clients/{client}", headers={"Grantbook-Fragment": "1"})).text
    assert "<html" not in part
    assert "<h1>Client" in part
