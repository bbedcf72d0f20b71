"""The contracts are understood outside of Python: their documents, and a token service in Node.js that follows them."""

import asyncio
import json
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import pytest
from msgspec.structs import fields
from nats.aio.client import Client

from deploy.dev.servers import nats_server
from grantbook import schema, subjects, wire
from grantbook.events import EVENT_TYPES, Event
from grantbook.sdk.revocations import RevocationFeed
from registry import streams
from tests.sdk.given import LIFETIME, deleted, new_id, opened_log, resumed, revoked, suspended, user_revoked, write

pytestmark = [pytest.mark.agents, pytest.mark.timeout(120)]

HERE: Final = Path(__file__).parent
EXAMPLE: Final = HERE.parents[1] / "examples" / "node"
SCHEMA: Final = Path(schema.__file__).parent
GATES: Final = {"client.suspended", "client.resumed", "client.deleted", "grant.revoked", "user.grants_revoked"}
SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.02
EVENTS: Final = 150
QUESTIONS: Final = 400
SEED: Final = 20_260_314

CLIENTS: Final = (
    *(f"client-{number}" for number in range(80)),
    "https://agent.example/oauth/client.json",
    "a.b",
    "*",
    "trailing\n",
    "x" * 64,
    "x" * 65,
    "Bücher-Agent",
)
GRANTS: Final = (*(f"g{number}" for number in range(3)), "g.6", "~g", "")
USERS: Final = (*(f"u{number}" for number in range(80)), "ada@example.com", "u>")
AGES_SECONDS: Final = (None, 3_800.0, 3_500.0, 1_900.0, 600.0, 1.0, 0.0, -3.0, -30.0)
"""How old the tokens are that are asked about: without `iat`, older than any may be, and from the future too."""
GARBAGE: Final = (b"{}", b"", b"\xff", b"null", b"[" * 50_000, b'{"type": "client.resumed"}')
TYPES: Final = ("client.frozen", "client.resumed", "client.deleted", "grant.revoked", "user.grants_revoked", "toString")

Question = tuple[str, str, str, float | None]


def node_with(folder: Path) -> str:
    """Node.js, with the packages that the folder pins."""
    found = shutil.which("node")
    assert found, "these tests need Node.js and npm: install them, then `make test-agents`"
    for package, version in json.loads((folder / "package.json").read_text())["dependencies"].items():
        installed = folder / "node_modules" / package / "package.json"
        assert installed.exists(), f"{package} is not installed: `make test-agents` does that"
        assert json.loads(installed.read_text())["version"] == version, f"{package} is not what is pinned"
    return found


def said_of(document: Path) -> dict[str, Any]:
    """What the official parser says of an AsyncAPI document; see `validate_asyncapi.mjs`."""
    done = subprocess.run(
        [node_with(HERE), str(HERE / "validate_asyncapi.mjs"), str(document)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("file", [schema.ASYNCAPI_FILE, schema.FEED_FILE])
def test_the_official_parser_has_nothing_to_say(file: str) -> None:
    """Generators of code and documentation: the documents are what AsyncAPI says, and every reference resolves."""
    said = said_of(SCHEMA / file)
    assert said["diagnostics"] == []
    types = GATES if file == schema.FEED_FILE else set(EVENT_TYPES)
    assert {each["type"] for each in said["messages"]} == types
    for each in said["messages"]:
        assert {"ce-type", "ce-id"} <= set(each["headers"])
        assert set(each["payload"]) == {"type", *(field.encode_name for field in fields(EVENT_TYPES[each["type"]]))}
        assert each["examples"] == 1


@pytest.mark.parametrize("wrong", ["schema", "reference", "action"])
def test_the_official_parser_looks(tmp_path: Path, wrong: str) -> None:
    """Those who trust the test above: the parser does find what is wrong."""
    document = json.loads((SCHEMA / schema.FEED_FILE).read_text())
    match wrong:
        case "schema":
            document["components"]["schemas"]["ClientDeleted"]["required"] = "at"
        case "reference":
            document["components"]["messages"]["client.deleted"]["payload"]["$ref"] += "s"
        case _:
            document["operations"]["followUserGate"]["action"] = "follow"
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    assert said_of(tmp_path / "wrong.json")["diagnostics"] != []


class Example:
    """The example as a process, asked over its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def running(cls, nats_url: str) -> AsyncIterator[Self]:
        process = await asyncio.create_subprocess_exec(
            node_with(EXAMPLE),
            str(EXAMPLE / "deny.mjs"),
            f"{LIFETIME.total_seconds():.0f}",
            nats_url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield cls(process)
        finally:
            # By no signal: `node` may be a script that runs it. It ends with its questions: when we are killed, too.
            async with asyncio.timeout(SECONDS):
                await process.communicate(b"")

    async def denies(self, question: Question) -> bool:
        client, grant, user, iat = question
        asked = {"client_id": client, "grant_id": grant, "user_id": user} | ({} if iat is None else {"iat": iat})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        async with asyncio.timeout(SECONDS):
            said: bool = json.loads(await self._process.stdout.readline())
        return said

    async def until(self, question: Question, *, denied: bool) -> None:
        async with asyncio.timeout(SECONDS):
            while await self.denies(question) is not denied:
                await asyncio.sleep(POLL_SECONDS)


def a_question(dice: random.Random) -> Question:
    age = dice.choice(AGES_SECONDS)
    iat = None if age is None else datetime.now(UTC).timestamp() - age
    return dice.choice(CLIENTS), dice.choice(GRANTS), dice.choice(USERS), iat


UNTOUCHED: Final[Question] = ("nobody", "nothing", "no one", None)
"""Nothing ever happens to these: denied only while it is not proven what was revoked."""


def an_event(dice: random.Random, at: datetime) -> Event:
    client, grant, user = dice.choice(CLIENTS), dice.choice(GRANTS), dice.choice(USERS)
    decided = at - timedelta(minutes=dice.choice((0, 0, 25)))
    kinds: list[Callable[[], Event]] = [
        lambda: suspended(client, at),
        lambda: resumed(client, at),
        lambda: revoked(client, grant, user, at),
        lambda: user_revoked(user, decided),
    ]
    return deleted(client, at) if dice.random() < 0.02 else dice.choice(kinds)()


async def write_garbage(log: Client, dice: random.Random) -> None:
    """What no writer of ours would: a type of the future, a body that does not decode, another's subject or type."""
    event = an_event(dice, datetime.now(UTC))
    other = wire.encode(an_event(dice, datetime.now(UTC)), event_id=new_id())
    own = wire.encode(event, event_id=new_id())
    headers = own.headers
    match dice.randrange(4):
        case 0:
            body = dice.choice(GARBAGE)
        case 1:
            body = other.body
        case 2:
            body, headers = own.body, own.headers | {"ce-type": dice.choice(TYPES)}
        case _:
            at = {"at": dice.choice(["yesterday", None, 7])} | dice.choice([{}, {"by": "admin"}])
            body = msgspec.json.encode(json.loads(own.body) | at)
    await log.jetstream().publish(own.subject, body, headers=headers)


async def happen(log: Client, dice: random.Random, events: int, *, garbage: float) -> str:
    """Random events, and last a revocation of a grant that is named like nothing else: its id."""
    for _ in range(events):
        if dice.random() < garbage:
            await write_garbage(log, dice)
        else:
            await write(log, an_event(dice, datetime.now(UTC)))
    marker = f"marker-{dice.randrange(10**9)}"
    await write(log, revoked(marker, "g"))
    return marker


async def assert_equal(feed: RevocationFeed, node: Example, dice: random.Random, marker: str) -> None:
    await feed.wait_until_current(SECONDS)
    await node.until(UNTOUCHED, denied=False)
    await node.until((marker, "g", "no one", None), denied=True)
    assert not feed.is_revoked(*UNTOUCHED)
    assert feed.is_revoked(marker, "g", "no one", None)
    answers = []
    for _ in range(QUESTIONS):
        question = a_question(dice)
        answers.append(feed.is_revoked(*question))
        assert await node.denies(question) is answers[-1], question
    assert 0.1 < sum(answers) / len(answers) < 0.95, "nothing was compared"


async def test_a_token_service_in_node_denies_what_ours_denies(tmp_path: Path) -> None:
    """Token services in other languages: whoever writes one like the example denies the same tokens, always."""
    dice = random.Random(SEED)
    with nats_server(tmp_path / "nats", user="feed", password="feed-password") as server:
        async with opened_log(server.url) as log:
            await happen(log, dice, EVENTS, garbage=0.02)
            async with RevocationFeed(server.url, LIFETIME) as feed, Example.running(server.url) as node:
                assert await node.denies(UNTOUCHED), "it cannot know yet"
                marker = await happen(log, dice, EVENTS, garbage=0.05)
                await assert_equal(feed, node, dice, marker)

                server.kill()
                await node.until(UNTOUCHED, denied=True)
                for _ in range(50):
                    assert await node.denies(a_question(dice)), "nobody can know while the server is down"
                server.start()
                async with asyncio.timeout(SECONDS):
                    while not log.is_connected:
                        await asyncio.sleep(POLL_SECONDS)
                marker = await happen(log, dice, EVENTS, garbage=0.05)
                await assert_equal(feed, node, dice, marker)


async def test_a_token_service_in_node_outlives_its_feed_and_its_consumer(tmp_path: Path) -> None:
    """Those who restore a backup: a service that follows finds the new feed, and allows nothing in between."""
    dice = random.Random(SEED + 1)
    with nats_server(tmp_path / "nats") as server:
        async with opened_log(server.url) as log:
            before = await happen(log, dice, EVENTS, garbage=0.02)
            async with RevocationFeed(server.url, LIFETIME) as feed, Example.running(server.url) as node:
                await assert_equal(feed, node, dice, before)

                manager = log.jetstream()
                for consumer in await manager.consumers_info(subjects.REVOCATIONS):
                    await manager.delete_consumer(subjects.REVOCATIONS, consumer.name)
                marker = await happen(log, dice, EVENTS, garbage=0.05)
                await assert_equal(feed, node, dice, marker)

                await streams.rebuild_feed(log)
                marker = await happen(log, dice, 0, garbage=0.0)
                async with asyncio.timeout(SECONDS):
                    while not await node.denies((marker, "g", "no one", None)) or await node.denies(UNTOUCHED):
                        assert await node.denies((before, "g", "no one", None))
                await assert_equal(feed, node, dice, marker)
