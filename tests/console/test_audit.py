"""The audit's pages and files, and the status."""

import csv
import io
import json
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import export
from console.pages.audit import differences
from grantbook.receipts import Receipt
from grantbook.sdk.connection import connect
from grantbook.sdk.subscription import put_receipt
from tests.console.conftest import Console, House

pytestmark = pytest.mark.browser


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_no_cell_is_a_formula_and_none_is_changed_otherwise(texts: list[str]) -> None:
    """Auditors with a spreadsheet: a client's name runs nothing on their machine."""
    written = export.row(texts).decode()
    [back] = list(csv.reader(io.StringIO(written, newline="")))
    for text, cell in zip(texts, back, strict=True):
        plain = text.replace(";", export.SEMICOLON)
        assert cell in {plain, f"'{plain}"}
        if cell == plain:
            assert export._FORMULA.match(plain) is None
    assert ";" not in written


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@a", "\t=1", " =1", "\r=1", "\uff1d1", '"=1', "|x", "%0A", "\ufeff=1"]
)
def test_what_spreadsheets_run_is_text(text: str) -> None:
    """The same, for what is known to be run."""
    assert export.safe_cell(text) == f"'{text}"


def test_differences_name_what_came_went_and_changed() -> None:
    """Auditors who ask what a client was when a user said yes."""
    then, now = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": 4}
    assert differences(then, now) == [("b", "2", "3"), ("c", "3", ""), ("d", "", "4")]


async def test_events_are_browsed_filtered_and_taken_along(console: Console, house: House) -> None:
    """An auditor with a question, and one with a script."""
    client, other = await house.register("=cmd|'/c calc'!A0"), await house.register("Other")
    await house.grant(client)
    page = unescape((await console.get(f"/console/audit?client_id={client}&type=client.registered")).text)
    assert "1 to 1 of 1" in page
    lines = (await console.get(f"/console/audit/export/events.jsonl?client_id={client}")).text.splitlines()
    assert [json.loads(each)["type"] for each in lines] == ["client.registered", "grant.issued"]
    file = await console.get("/console/audit/export/events.csv")
    rows = list(csv.DictReader(io.StringIO(file.text, newline="")))
    assert [each["client_id"] for each in rows if each["type"] == "client.registered"] == [client, other]
    assert file.headers["content-disposition"] == 'attachment; filename="events.csv"'
    await console.get("/console/audit/export/events.exe", answers=404)
    assert "from" in (await console.get("/console/audit/export/events.csv?from=yesterday", answers=400)).text


async def test_a_client_as_it_was_is_shown_beside_what_it_is(console: Console, house: House) -> None:
    """An auditor: what did it say it was, before it changed?"""
    client = await house.register("Before")
    await house.settled()
    position = (await house.ask("GET", f"/admin/v1/clients/{client}")).json()["history"][0]["position"]
    await console.post(f"/console/clients/{client}/suspend")
    page = unescape((await console.get(f"/console/audit/as-of?client_id={client}&as_of={position}")).text)
    assert 'class="status active"' in page
    assert "Nothing: it is what it was" in page


async def test_the_status_tells_who_is_gone_and_forgets_it_when_told(
    console: Console, house: House, nats_url: str
) -> None:
    """An admin after a token service was dismantled."""
    nats = await connect(nats_url, name="test")
    await put_receipt(nats, Receipt(name="mail", instance="host-1", state="fresh"))
    page = unescape((await console.get("/console/status")).text)
    assert "<bdi>mail</bdi>" in page
    assert "Read models" in page
    assert "Forget this token service" in (await console.get("/console/subscribers/mail/host-1/forget")).text
    await console.post("/console/subscribers/mail/host-1/forget")
    await console.post("/console/subscribers/mail/host-1/forget", answers=404)
    await nats.close()


async def test_what_ends_a_line_elsewhere_ends_none_here(console: Console, house: House) -> None:
    """Auditors: one odd id of a user, which is in the log for ever, must not spoil each file that has it."""
    client = await house.register("x;=HYPERLINK(1)")
    await house.grant(client, "u\u0085\u2028\u20291")
    for name in ("csv", "jsonl"):
        body = (await console.get(f"/console/audit/export/events.{name}")).content.decode()
        if name == "jsonl":
            assert [json.loads(each)["type"] for each in body.strip("\n").split("\n")] == [
                "client.registered",
                "grant.issued",
            ]
        else:
            assert len(list(csv.reader(io.StringIO(body, newline="")))) == 3
            assert ";" not in body
            assert json.loads(list(csv.reader(io.StringIO(body, newline="")))[1][-1])["client_id"] == client


async def test_no_page_is_heavy(console: Console, house: House) -> None:
    """Admins on a train: a page of any list, full, is at most 60 KB."""
    for number in range(50):
        client = await house.register(f"Agent {number}", redirect_uris=[f"https://h{number}.example/cb"], scope="tools")
        await house.grant(client, f"user-{number}", name=f"user.{number}@company.example")
    for path in ("clients", "families", "users", "audit", "stale-clients?unused_for=0s", "status"):
        assert len((await console.get(f"/console/{path}")).content) <= 60_000, path
