"""What the machine and its servers can do without us: the limits that our figures stand beside."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

SYNCS: Final = 100
BATCH: Final = 100
BODY: Final = b"x" * 500
PULL: Final = 1_000
ROWS: Final = 100_000
ANSWER_SECONDS: Final = 10.0
STEPS_OF_WORK: Final = 9_000
"""About half a millisecond of it."""


def disk_sync_milliseconds(folder: Path) -> float:
    """Median time of appending 4 KiB to a file and having it on disk."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(SYNCS):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1_000


def lateness_milliseconds(busy: float, seconds: float) -> list[float]:
    """How late a loop is done with each of small pieces of work that are due one after the other, sorted.

    They keep one core `busy` for this share of the time, with pauses between them. So what is late is what the machine
    gave no time to, and what waits for that: a server that is as busy answers about as late, whatever it does.
    """
    every = _seconds_of_work() / busy
    late = []
    due = started = time.perf_counter()
    while due < started + seconds:
        due += every
        ahead = due - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
        _work()
        late.append((time.perf_counter() - due) * 1_000)
    return sorted(late)


def work_of(milliseconds: float) -> Callable[[], None]:
    """What takes one core this long where nothing comes between, and asks nobody for anything."""
    times = max(1, round(milliseconds / 1_000 / _seconds_of_work()))

    def work() -> None:
        for _ in range(times):
            _work()

    return work


def _seconds_of_work() -> float:
    started = time.process_time()
    for _ in range(SYNCS):
        _work()
    return (time.process_time() - started) / SYNCS


def _work() -> int:
    return sum(number * number for number in range(STEPS_OF_WORK))


async def appends(nats: Client, seconds: float) -> float:
    """Durable appends a second: atomic batches of 100, each message with an expectation on its own new subject."""
    config = {"name": "RAW", "subjects": ["raw.>"], "storage": "file", "allow_atomic": True, "num_replicas": 1}
    await nats.request("$JS.API.STREAM.CREATE.RAW", msgspec.json.encode(config), timeout=ANSWER_SECONDS)
    expecting = {"Nats-Expected-Last-Subject-Sequence": "0"}
    stored = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        batch = {"Nats-Batch-Id": f"b{stored}"}
        for number in range(1, BATCH):
            headers = expecting | batch | {"Nats-Batch-Sequence": str(number)}
            await nats.publish(f"raw.{stored + number}", BODY, headers=headers)
        last = expecting | batch | {"Nats-Batch-Sequence": str(BATCH), "Nats-Batch-Commit": "1"}
        answer = await nats.request(f"raw.{stored + BATCH}", BODY, headers=last, timeout=ANSWER_SECONDS)
        assert b'"error"' not in answer.data, answer.data
        stored += BATCH
    return stored / (time.perf_counter() - started)


async def pulls(nats: Client, stream: str, wanted: int) -> float:
    """Messages a second that the NATS client pulls, a thousand at a time, doing nothing with them."""
    js = nats.jetstream()
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
    subscription = await js.pull_subscribe("", stream=stream, config=config)
    got = 0
    started = time.perf_counter()
    while got < wanted:
        got += len(await subscription.fetch(PULL, timeout=ANSWER_SECONDS))
    rate = got / (time.perf_counter() - started)
    await subscription.unsubscribe()
    return rate


async def inserts(database_url: str) -> float:
    """Grant-like rows a second by `INSERT ... SELECT unnest`, a thousand a transaction, committed to disk."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "create table raw (client text, grant_ text, user_ text, name text, scopes text, at timestamptz,"
            " position bigint, primary key (client, grant_))"
        )
        await connection.execute("create index on raw (user_)")
        started = time.perf_counter()
        for base in range(0, ROWS, PULL):
            numbers = range(base, base + PULL)
            await connection.execute(
                "insert into raw select c, g, u, n, 'read write', now(), p"
                " from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[]) as t(c, g, u, n, p)",
                [f"client-{each % 97}" for each in numbers],
                [f"grant-{each}" for each in numbers],
                [f"user-{each % 1009}" for each in numbers],
                [f"User number {each % 1009}" for each in numbers],
                list(numbers),
            )
        rate = ROWS / (time.perf_counter() - started)
        await connection.execute("drop table raw")
        return rate
    finally:
        await connection.close()


async def deliveries(nats: Client, rounds: int, *, replicas: int = 1) -> list[float]:
    """Milliseconds from publishing a durable message to its arrival at a push consumer, sorted."""
    js = nats.jetstream()
    await nats.request(
        "$JS.API.STREAM.CREATE.RAWFEED",
        msgspec.json.encode({"name": "RAWFEED", "subjects": ["rawfeed"], "storage": "file", "num_replicas": replicas}),
        timeout=ANSWER_SECONDS,
    )
    arrived = asyncio.Event()

    async def came(_: object) -> None:
        arrived.set()

    subscription = await js.subscribe("rawfeed", stream="RAWFEED", cb=came, ordered_consumer=True)
    times = []
    for _ in range(rounds):
        arrived.clear()
        started = time.perf_counter()
        await nats.request("rawfeed", BODY, timeout=ANSWER_SECONDS)
        await asyncio.wait_for(arrived.wait(), ANSWER_SECONDS)
        times.append((time.perf_counter() - started) * 1_000)
    await subscription.unsubscribe()
    return sorted(times)
