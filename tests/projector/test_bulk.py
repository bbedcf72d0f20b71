"""Read models made in bulk, out of all of the log at once: the same, row by row, as those that followed it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from nats.aio.client import Client

from grantbook.events import Event
from projector import bulk, db, verify
from projector.applying import Halt
from projector.db import Connection
from projector.run import Sources
from projector.verify import Means
from tests.projector import given
from tests.projector.conftest import Api, caught_up, projecting, until
from tests.projector.test_flags import moved, redirecting
from tests.projector.test_run import everything, mixed
from tests.projector.test_standings import happened
from tests.projector.test_verify import leftovers, untold

LIVES: Final = 25
SAME_NAME: Final = 30
"""Registrations of one family within a moment: more than make a burst."""


def eventful() -> list[Event]:
    """A log in which all that can happen to clients, grants and users happens, in turns."""
    dice = random.Random(11)
    lives = [iter([event for _, event in happened(dice, f"{number}-")]) for number in range(LIVES)]
    lives.append(iter([given.registered(f"many{number}", given.metadata("Many")) for number in range(SAME_NAME)]))
    hosts = [f"https://host{number}.example/cb" for number in range(6)]
    redirects: list[Event] = []
    for number in range(LIVES):
        redirects.append(redirecting(f"r{number}", dice.choice(hosts)))
        redirects.append(moved(f"r{dice.randrange(number + 1)}", dice.choice(hosts), dice.choice(hosts)))
    lives.append(iter([*redirects, *mixed()]))
    events: list[Event] = []
    while lives:
        life = dice.choice(lives)
        event = next(life, None)
        if event is None:
            lives.remove(life)
        else:
            events.append(event)
    # What no registry writes: facts about what is not there, or not there yet.
    late = given.issued("late", "g", "u3")
    odd: list[Event] = [given.revoked("late", "g", "u3"), late, moved("late", hosts[0]), given.suspended("late")]
    odd += [given.revoked("late", "g", "u3"), given.deleted("early"), given.registered("early")]
    odd += [given.issued("early", "g", "u3"), given.suspended("early"), given.deleted("early")]
    odd.append(given.extended(given.issued("nowhere", "g", "u3"), 1, timedelta(days=1)))
    return [*odd, *events, given.registered("late"), given.issued("never", "g", "u4"), moved("never", hosts[1])]


async def differences(means: Means) -> dict[tuple[str, str], list[dict[str, object]]]:
    """Rows that only one side has: the live read models, or those made in bulk."""
    verdict = await verify.verify(means, untold)
    return {(each.table, each.side): each.rows for each in verdict.differences}


async def test_the_rows_are_those_of_a_projector_that_followed_the_log(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators: read models that were made anew in bulk are not others, whatever stands in the log."""
    means = Means(database_url, sources, bulk_events=1)
    events = eventful()
    async with projecting(database_url, sources):
        for start in range(0, len(events), 200):
            await given.write(log, *events[start : start + 200])
            await caught_up(database, log)
    assert await differences(means) == {}
    several = Means(database_url, sources, [bulk.here(database_url, sources)] * 3, bulk_events=1)
    before = await indexes(database)
    await verify.rebuild(several, untold)
    assert await differences(Means(database_url, sources)) == {}, "nor are they by the other way"
    assert await indexes(database) == before
    assert await leftovers(database) == []
    assert await database.fetchval("SELECT count(*) FROM pg_class WHERE relname LIKE 'loaded%'") == 0


async def indexes(database: Connection) -> list[str]:
    """Tables, and how their indexes are defined."""
    rows = await database.fetch("SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = $1", db.SCHEMA)
    return sorted(f"{each['tablename']}: {each['indexdef']}" for each in rows)


async def test_processes_load_a_part_each_and_reads_go_on(
    log: Client, sources: Sources, database: Connection, database_url: str, nats_url: str, api: Api
) -> None:
    """Operators who rebuild a large register in the middle of the day, and watch how far it is."""
    told: list[tuple[int, int, bulk.Unit]] = []
    means = Means(database_url, sources, [bulk.children(nats_url, database_url)] * 2, bulk_events=1)
    events = eventful()
    async with projecting(database_url, sources):
        await given.write(log, *events, given.used(("c1", "g1")))
        await caught_up(database, log)
        rebuilding = asyncio.create_task(verify.rebuild(means, lambda *progress: told.append(progress)))
        reads = 0
        while not rebuilding.done():
            answer = await api.ask("/admin/v1/clients", count="true")
            assert answer.status_code == 200, answer.text
            reads += 1
        reached = await rebuilding
        assert reached.sequence == len(events)
        await given.write(log, given.registered("after"))
        await caught_up(database, log)
    assert reads > 0
    assert await differences(Means(database_url, sources)) == {}
    for unit in ("events", "rows"):
        steps = [(done, total) for done, total, of in told if of == unit]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


async def test_what_cannot_be_loaded_halts_and_changes_nothing(
    log: Client, sources: Sources, database: Connection, database_url: str, nats_url: str
) -> None:
    """Operators: the same words as from a projector that follows, and the read models that were there stay."""
    async with projecting(database_url, sources):
        await given.write(log, *mixed())
        await caught_up(database, log)
    before = await everything(database)
    await given.write_raw(log, "grantbook.client.c9.record", "client.renamed", b"{}")
    for opened in (bulk.here(database_url, sources), bulk.children(nats_url, database_url)):
        with pytest.raises(Halt, match=r"client\.renamed.*Run a version that does"):
            await verify.rebuild(Means(database_url, sources, [opened], bulk_events=1), untold)
    assert await everything(database) == before


async def test_a_loader_that_cannot_work_says_why(
    log: Client, sources: Sources, database: Connection, database_url: str, nats_url: str
) -> None:
    """Operators: a rebuild ends with a message that helps, not with a pipe that broke."""
    await given.write(log, *mixed())
    elsewhere = database_url.rpartition("/")[0] + "/nowhere"
    means = Means(database_url, sources, [bulk.children(nats_url, elsewhere)], bulk_events=1)
    with pytest.raises(bulk.LoaderFailed, match='database "nowhere" does not exist'):
        await verify.rebuild(means, untold)


async def test_a_loader_ends_with_whoever_started_it(
    log: Client, database: Connection, database_url: str, nats_url: str
) -> None:
    """Operators who kill a rebuild: nothing of it goes on working."""
    starter = (
        "import asyncio, sys; from projector import bulk\n"
        "async def main():\n"
        "    async with bulk.children(sys.argv[1], sys.argv[2])(sys.argv[3]) as loader:\n"
        "        print(loader.process.pid, flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", starter, nats_url, database_url, db.SCHEMA]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = (await process.stdout.readline()).decode().strip()
    assert works(child)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()

    async def gone() -> bool:
        return not works(child)

    await until(gone, "the loader to end")


def works(pid: str) -> bool:
    """Whether the process is there, and not only its entry."""
    stat = Path("/proc", pid, "stat")
    return stat.exists() and " Z " not in stat.read_text()


async def test_the_seed_fills_log_and_read_models(
    log: Client,
    database: Connection,
    nats_url: str,
    database_url: str,
) -> None:
    """Whoever wants a large register to try things on: one command, and the projector has nothing to do."""
    servers = ["--nats-url", nats_url, "--database-url", database_url]
    command = [sys.executable, "-m", "benchmarks.seed", "--clients", "40", "--grants", "400", *servers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: ASYNC221  nothing else runs
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["log", "read models"]
    assert await database.fetchval("SELECT count(*) FROM clients") == 40
    assert await database.fetchval("SELECT count(*) FROM grants") == 400
    command = [sys.executable, "-m", "projector", "verify", *servers]
    assert b"no differences" in subprocess.run(command, capture_output=True, check=True).stdout  # noqa: ASYNC221
