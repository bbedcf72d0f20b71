"""Ten thousand revocations, and token services that are killed, paused and cut off meanwhile."""

import asyncio
import json
import random
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.dev import processes
from deploy.dev.processes import Product
from deploy.dev.servers import dies_with_parent
from grantbook import subjects
from grantbook.events import ClientDeleted, ClientResumed, ClientSuspended, Event, GrantRevoked, UserGrantsRevoked
from grantbook.sdk.connection import connect
from grantbook.sdk.log import LogReader
from grantbook.sdk.reading import stretch
from grantbook.sdk.subscription import read_receipts
from tests.partition import Partition
from tests.projector.given import write
from tests.sdk.given import deleted, resumed, revoked, suspended, user_revoked

REVOCATIONS = 10_000
BATCH = 50
LIFETIME_SECONDS = 3_600.0
STALENESS_SECONDS = 2.0
KNOWN_SECONDS = 6.0
"""What was acknowledged so long ago is denied by whoever answers: it has applied it, or knows that it is stale."""
ASKED_MEANWHILE = 50
WAIT_SECONDS = 60.0
CLIENTS = 400
USERS = 50

Question = tuple[str, str, str, float]


class Subscriber:
    """A process, behind a network of its own."""

    def __init__(self, name: str, network: Partition, arguments: list[str]) -> None:
        self.name = name
        self.network = network
        self.paused = False
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.system.subscriber",
            self.name,
            str(LIFETIME_SECONDS),
            str(STALENESS_SECONDS),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**22,
            cwd=Path(__file__).parents[2],
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        self.paused = False

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self.paused = False

    async def ask(self, questions: list[Question]) -> dict[str, Any]:
        """What it answers, once it does: one that has just been started answers when it has caught up."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps(questions) + "\n").encode())
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer

    async def end(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), WAIT_SECONDS)


def drawn(rng: random.Random, number: int) -> Event:
    """The next thing that an admin, or a user, does."""
    client = f"c{rng.randrange(CLIENTS)}"
    match rng.choices(("grant", "suspend", "resume", "delete", "user"), (90, 4, 4, 1, 1))[0]:
        case "grant":
            return revoked(client, f"g{number}", f"u{rng.randrange(USERS)}")
        case "suspend":
            return suspended(client)
        case "resume":
            return resumed(client)
        case "delete":
            return deleted(client)
        case _:
            return user_revoked(f"u{rng.randrange(USERS)}")


def about(event: Event, iat: float) -> Question:
    """A token that the event ends."""
    match event:
        case GrantRevoked():
            return (event.client_id, event.grant_id, "nobody", iat)
        case ClientDeleted() | ClientSuspended() | ClientResumed():
            return (event.client_id, "any", "nobody", iat)
        case UserGrantsRevoked():
            return ("none", "any", event.user_id or "", iat)
        case _:
            raise AssertionError(event)


class Truth:
    """What the log says, computed as plainly as can be."""

    def __init__(self) -> None:
        self.clients: dict[str, str] = {}
        self.grants: set[tuple[str, str]] = set()
        self.cut_offs: dict[str, float] = {}

    def apply(self, event: Event, stored_at: datetime) -> None:
        match event:
            case GrantRevoked():
                self.grants.add((event.client_id, event.grant_id))
            case ClientDeleted():
                self.clients[event.client_id] = "deleted"
            case ClientSuspended() | ClientResumed():
                # In this test they may come after a deletion, which they never do in a log of ours.
                if self.clients.get(event.client_id) != "deleted":
                    self.clients[event.client_id] = "suspended" if isinstance(event, ClientSuspended) else "active"
            case UserGrantsRevoked():
                self.cut_offs[event.user_id or ""] = stored_at.timestamp()
            case _:
                raise AssertionError(event)

    def denies(self, question: Question) -> bool:
        client, grant, user, iat = question
        return (
            self.clients.get(client) in {"deleted", "suspended"}
            or (client, grant) in self.grants
            or iat <= self.cut_offs.get(user, float("-inf")) + 5.0
        )


@pytest.fixture
def product(tmp_path: Path) -> Any:
    with processes.servers(tmp_path) as servers:
        yield servers


@pytest.mark.faults
@pytest.mark.timeout(240)
async def test_at_the_end_every_subscriber_denies_what_the_log_says(product: Product) -> None:
    """Users: whatever happens to token services, none forgets a revocation, and none that is cut off allows."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  to do it again
    rng = random.Random(seed)
    port = int(product.nats_url.rsplit(":", 1)[1])
    log = await connect(product.nats_url, name="test")
    with processes.service(product, "projector", "serve", until="/healthz") as reads:
        async with (
            Partition(port) as a,
            Partition(port) as b,
            Partition(port) as c,
            Partition(reads) as d,
            LogReader(log, subjects.LOG) as reader,
        ):
            feed_token = product.tokens["feed"]
            subscribers = [
                *(
                    Subscriber(name, network, ["nats", f"nats://127.0.0.1:{network.port}"])
                    for name, network in (("a", a), ("b", b), ("c", c))
                ),
                Subscriber("d", d, ["http", f"http://127.0.0.1:{d.port}", feed_token]),
            ]
            for each in subscribers:
                await each.start()
            iat = datetime.now(UTC).timestamp() - 60
            acknowledged: list[tuple[float, Event]] = []
            ailing: dict[Subscriber, float] = {}
            done = {"kill": 0, "pause": 0, "hold": 0, "cut": 0, "asked": 0}
            for start in range(0, REVOCATIONS, BATCH):
                events = [drawn(rng, number) for number in range(start, start + BATCH)]
                await write(log, *events)
                acknowledged += [(time.monotonic(), each) for each in events]
                await disturb(rng, subscribers, ailing, done)
                await check_meanwhile(rng, subscribers, ailing, acknowledged, iat, done)
            for each in subscribers:
                if each.paused:
                    each.resume()
                await each.network.heal()

            truth = Truth()
            last = (await reader.state()).last
            async for messages in stretch(reader, 0, last):
                for raw in messages:
                    event = raw.recorded().event
                    assert not hasattr(event, "type")
                    truth.apply(event, raw.stored_at)
            questions = [about(event, iat) for _, event in acknowledged]
            questions += [(f"c{number}", "never", "nobody", iat) for number in range(CLIENTS)]
            questions += [("none", "any", f"u{number}", iat) for number in range(USERS + 5)]
            expected = [truth.denies(each) for each in questions]
            assert expected.count(False) > USERS / 10
            for each in subscribers:
                async with asyncio.timeout(WAIT_SECONDS):
                    while (answer := await each.ask(questions))["denied"] != expected or answer["state"] != "fresh":
                        await asyncio.sleep(0.1)
            async with asyncio.timeout(WAIT_SECONDS):
                everyone, told = {each.name for each in subscribers}, set[str]()
                while told != everyone:
                    await asyncio.sleep(0.1)
                    received = (await read_receipts(log)).received
                    told = {each.receipt.name for each in received if each.receipt.log_sequence == last}
            for each in subscribers:
                await each.end()
            assert min(done.values()) > 0, done
            print(f"{done}")  # noqa: T201  what was done to them
    await log.close()


async def disturb(
    rng: random.Random, subscribers: list[Subscriber], ailing: dict[Subscriber, float], done: dict[str, int]
) -> None:
    """Make some well, and hurt one."""
    for each in [each for each, until in ailing.items() if time.monotonic() > until]:
        if each.paused:
            each.resume()
        await each.network.heal()
        del ailing[each]
    well = [each for each in subscribers if each not in ailing]
    if len(well) < 2 or rng.random() > 0.5:
        await asyncio.sleep(0.2)  # the pace of it: revocations come over half a minute
        return
    hurt = rng.choice(well)
    what = rng.choice(("kill", "pause", "hold", "cut"))
    done[what] += 1
    match what:
        case "kill":
            await hurt.kill()
            await hurt.start()
        case "pause":
            hurt.pause()
        case "hold":
            await hurt.network.hold()
        case _:
            await hurt.network.cut()
    ailing[hurt] = time.monotonic() + rng.uniform(0.2, 4.0)


async def check_meanwhile(
    rng: random.Random,
    subscribers: list[Subscriber],
    ailing: dict[Subscriber, float],
    acknowledged: list[tuple[float, Event]],
    iat: float,
    done: dict[str, int],
) -> None:
    """Nobody allows what was revoked some seconds ago, cut off or not."""
    before = time.monotonic() - KNOWN_SECONDS
    ended = [event for at, event in acknowledged if at < before and isinstance(event, GrantRevoked | ClientDeleted)]
    if not ended or rng.random() > 0.3:
        return
    for each in subscribers:
        if each.paused:
            continue
        if each in ailing and rng.random() > 0.3:
            continue
        questions = [about(event, iat) for event in rng.choices(ended, k=ASKED_MEANWHILE)]
        try:
            answer = await asyncio.wait_for(each.ask(questions), 0.5)
        except TimeoutError:
            # It is starting, and is asked again when it is well: its answer to this must not be taken for that one's.
            await each.kill()
            await each.start()
            continue
        assert all(answer["denied"]), (each.name, answer["state"])
        done["asked"] += 1
