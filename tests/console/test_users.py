"""Users at the console: found by what an admin was told, and shown with what they let in."""

from html import unescape
from typing import Final

import pytest

from tests.console.conftest import Console, House

pytestmark = pytest.mark.browser
ODD: Final = "auth0|5f7/..?x"


@pytest.mark.parametrize("said", ["ADA", "auth0|5f7/..?x"])
async def test_a_user_is_found_by_name_or_id(console: Console, house: House, said: str) -> None:
    """An admin with a name from a phone call, or an id out of a ticket, whatever characters it has."""
    client = await house.register("Theirs")
    await house.grant(client, ODD, name="Ada <b>Lovelace</b>")
    await house.grant(client, "other", name="Grace")
    page = (await console.get("/console/users", params={"user": said})).text
    assert "<bdi>Ada &lt;b&gt;Lovelace&lt;/b&gt;</bdi>" in page
    assert "Grace" not in page
    link = page.partition('<th scope="row" data-label="User"><a href="')[2].partition('"')[0]
    theirs = (await console.get(unescape(link))).text
    assert "<bdi>Theirs</bdi>" in theirs
    assert ODD in unescape(theirs)


async def test_users_are_listed_page_by_page_and_back(console: Console, house: House) -> None:
    """An admin who looks through: each page leads on, and back to the one before."""
    client = await house.register()
    for number in range(5):
        await house.grant(client, f"u-{number}")
    seen = []
    page = unescape((await console.get("/console/users?limit=2")).text)
    while 'rel="next"' in page:
        seen.append(page)
        page = unescape((await console.get(_link(page, "next"))).text)
    assert "5 to 5 of 5" in page
    for before in reversed(seen):
        page = unescape((await console.get(_link(page, "prev"))).text)
        assert _rows(page) == _rows(before)
    assert 'rel="prev"' not in page
    assert "1 to 2 of 5" in page


async def test_no_user_is_said_in_words(console: Console, house: House) -> None:
    """An admin on the first day, and one who mistyped."""
    assert "No user has let a client in yet" in (await console.get("/console/users")).text
    assert "No user matches" in (await console.get("/console/users?user=zzz")).text


def _link(page: str, rel: str) -> str:
    return page.partition(f'rel="{rel}" href="')[2].partition('"')[0]


def _rows(page: str) -> str:
    return page.partition("<tbody>")[2].partition("</tbody>")[0]
