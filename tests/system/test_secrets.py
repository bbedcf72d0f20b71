"""What was issued once is nowhere: not in the log, not in any bucket, not in the database, not in what services say."""

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from deploy.dev import processes
from deploy.dev.processes import Product
from grantbook import subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader
from tests.system.http import Caller

STREAMS = (
    subjects.LOG,
    subjects.ACTIVITY,
    subjects.REVOCATIONS,
    *map(subjects.bucket_stream, (subjects.CREDENTIALS, subjects.USER_KEYS, subjects.FANOUT, subjects.SUBSCRIBERS)),
)
READ_SECONDS = 5.0
REGISTER = "/auth/connect/register"


@pytest.fixture
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("secrets")) as servers:
        yield servers


async def everything_in_nats(product: Product) -> bytes:
    """Every message of every stream, headers and subjects included."""
    nats = await connection.connect(product.nats_url, name="secrets")
    found = bytearray()
    try:
        for stream in STREAMS:
            async with LogReader(nats, stream) as reader:
                state = await reader.state()
                for sequence in range(max(1, state.first), state.last + 1):
                    raw = await reader.at_on_leader(sequence)
                    if raw is not None:
                        found += raw.subject.encode() + repr(raw.headers).encode() + raw.data
    finally:
        await connection.close(nats)
    return bytes(found)


async def everything_in_postgres(product: Product) -> bytes:
    """Every row of every table, as text."""
    database = await asyncpg.connect(product.database_url)
    found = bytearray()
    try:
        tables = await database.fetch(
            """
            SELECT table_schema, table_name FROM information_schema.tables
            WHERE table_type = 'BASE TABLE' AND table_schema LIKE 'grantbook%'
            """
        )
        assert len(tables) > 5
        for schema, table in tables:
            for row in await database.fetch(f'SELECT t::text FROM "{schema}"."{table}" t'):
                found += row[0].encode()
    finally:
        await database.close()
    return bytes(found)


def test_no_secret_that_was_issued_is_found_anywhere(product: Product) -> None:
    """Everyone: a dump of the log or the database, or a page of logs, opens nothing."""
    with (
        processes.service(product, "registry", "serve") as writes,
        processes.service(product, "projector", "project", serves=False),
        processes.service(product, "projector", "serve") as reads,
    ):
        agent = Caller(f"http://127.0.0.1:{writes}")
        idp = Caller(agent.url, product.tokens["idp"])
        admin = Caller(agent.url, product.tokens["admin"])
        reader = Caller(f"http://127.0.0.1:{reads}", product.tokens["admin"])
        issued: list[str] = []

        def keep(body: dict[str, Any]) -> dict[str, Any]:
            issued.extend(body[name] for name in ("client_secret", "registration_access_token") if name in body)
            return body

        sent = {
            "client_name": "Keeper",
            "redirect_uris": ["https://agent.example/cb"],
            "client_secret": "my-own-choice-0123",
        }
        body = keep(agent("POST", REGISTER, sent).body)
        own = Caller(agent.url, body["registration_access_token"])
        path = f"{REGISTER}/{body['client_id']}"
        assert own("GET", path).status == 200
        wrong = secrets.token_urlsafe(32)
        assert Caller(agent.url, wrong)("GET", path).status == 401
        update = {"client_id": body["client_id"], "client_secret": body["client_secret"], "client_name": "Kept"}
        new = keep(own("PUT", path, update | {"redirect_uris": ["https://agent.example/cb"]}).body)
        keep(admin("POST", "/admin/v1/clients", {"redirect_uris": ["https://b.example/cb"]}).body)
        checked = f"/idp/v1/clients/{body['client_id']}/authenticate"
        assert idp("POST", checked, {"client_secret": new["client_secret"]}).status == 204
        assert idp("POST", checked, {"client_secret": wrong}).status == 401
        username = f"ada-{secrets.token_hex(8)}@example.com"
        grant = {"user_id": "ada", "username": username, "scopes": [], "expires_at": "2099-01-01T00:00:00Z"}
        granted = idp("POST", f"/idp/v1/clients/{body['client_id']}/grants", grant).body
        use = {"client_id": body["client_id"], "grant_id": granted["grant_id"], "kind": "tool_call"}
        used = idp("POST", "/idp/v1/activity", {"activity": [use | {"at": "2026-11-23T12:00:00Z"}]})
        assert used.body["recorded"] == 1
        assert agent("POST", REGISTER, sent | {"client_name": f"a\u202e{wrong}"}).status == 400
        detail = f"because-{secrets.token_hex(8)}"
        done = admin("DELETE", f"/admin/v1/clients/{body['client_id']}", {"detail": detail})
        assert reader("GET", f"/admin/v1/clients?at_least={done.position}").status == 200

        nats = asyncio.run(everything_in_nats(product))
        postgres = asyncio.run(everything_in_postgres(product))
    said = b"".join(file.read_bytes() for file in product.folder.glob("*.log"))

    assert len(issued) == 6
    places = {"NATS": nats, "Postgres": postgres, "what services say": said}
    # What is looked through is what it should be: other things of these requests are in it.
    assert body["client_id"].encode() in nats
    assert body["client_id"].encode() in postgres
    assert b"/auth/connect/register/{client_id}" in said
    for secret in (*issued, wrong, "my-own-choice-0123", *product.tokens.values()):
        assert [place for place, text in places.items() if secret.encode() in text] == []
    # People's names and free text are sealed in the log; names are in the read models, which is where admins look.
    assert username.encode() not in nats + said
    assert detail.encode() not in nats + said
