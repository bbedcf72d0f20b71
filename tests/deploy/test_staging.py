"""Where batches are put together: in memory, and what is acknowledged is kept as ever."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from nats.aio.client import Client

from deploy.dev import staging
from deploy.dev.servers import Server, nats_server
from grantbook.sdk.connection import connect

MESSAGES = 10
LARGE = 900
SECONDS = 10.0
TRIES = 20

in_memory = pytest.mark.skipif(
    not staging.MEMORY.is_dir() or shutil.disk_usage(staging.MEMORY).free < staging.LEAST_BYTES,
    reason="there is no memory to have batches in, on this machine",
)


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    client = await connect(server.url, name="test")
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with a stream, whose batches are on the disk as yet."""
    with nats_server(tmp_path / "nats") as it:
        async with connected(it) as client:
            described = {"name": "LOG", "subjects": ["log.>"], "storage": "file", "allow_atomic": True}
            answer = await client.request("$JS.API.STREAM.CREATE.LOG", json.dumps(described).encode(), timeout=5)
            assert "error" not in json.loads(answer.data)
        yield it


async def begin(client: Client, server: Server, batch: str) -> None:
    """All messages of a batch but the last one."""
    for number in range(1, MESSAGES):
        await client.publish(f"log.{batch}", b"", headers=of(batch, number))
    async with asyncio.timeout(SECONDS):
        while not any(batches(server).glob("*")):
            await asyncio.sleep(0.01)


async def commit(client: Client, batch: str) -> int:
    headers = of(batch, MESSAGES) | {"Nats-Batch-Commit": "1"}
    answer = json.loads((await client.request(f"log.{batch}", b"", timeout=5, headers=headers)).data)
    assert answer["count"] == MESSAGES, answer
    return int(answer["seq"])


def of(batch: str, number: int) -> dict[str, str]:
    return {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}


async def whole(client: Client, server: Server, batch: str) -> int:
    await begin(client, server, batch)
    return await commit(client, batch)


def batches(server: Server) -> Path:
    return server.data / "jetstream" / "jetstream" / "$G" / "streams" / "LOG" / "batches"


@in_memory
async def test_a_batch_is_put_together_in_memory_and_kept_on_the_disk(server: Server) -> None:
    """Everyone: what was acknowledged survives the server, and with it all that was in memory; what was not, is not."""
    staging.keep_in_memory(server.data)
    async with connected(server) as client:
        await begin(client, server, "one")
        assert batches(server).resolve().is_relative_to(staging.MEMORY)
        assert len(list(batches(server).iterdir())) == 1
        assert await commit(client, "one") == MESSAGES
        assert list(batches(server).iterdir()) == []
        await begin(client, server, "two")
        server.kill()
        server.start()
    async with connected(server) as client:
        assert batches(server).is_symlink(), "a server that is started again has batches in memory by itself"
        assert await whole(client, server, "three") == 2 * MESSAGES
    folder = batches(server).resolve().parent.parent
    assert folder.exists()
    server.stop()
    assert not folder.exists()
    assert not batches(server).is_symlink(), "a backup that follows links would fail"


@in_memory
async def test_a_server_that_was_killed_in_a_batch_finds_the_rest_of_it(server: Server) -> None:
    """Auditors: whoever kills a server cuts no batch in two. It says so itself, where it had to put it right.

    A kill within the very first message, at the end of a page of it, leaves nothing of that batch; nobody was told.
    """
    staging.keep_in_memory(server.data)
    written = server.data / "jetstream" / "jetstream" / "$G" / "streams" / "LOG" / "msgs"
    kept = 0
    for number in range(1, TRIES + 1):
        before = sum(each.stat().st_size for each in written.glob("*.blk"))
        async with connected(server) as client:
            for message in range(1, LARGE):
                await client.publish(f"log.{number}", bytes(4_096), headers=of(f"large{number}", message))
            last = of(f"large{number}", LARGE) | {"Nats-Batch-Commit": "1"}
            await client.publish(f"log.{number}", b"", headers=last)
            await client.flush()
            while sum(each.stat().st_size for each in written.glob("*.blk")) == before:
                pass  # to wait for a moment would be to miss it
            server.kill()
            server.start()
        async with connected(server) as client:
            found = (await client.jetstream().stream_info("LOG")).state.messages
        assert found in (kept, kept + LARGE), "a part of a batch"
        kept = found
        if "partial batch" in server.log.read_text():
            assert batches(server).is_symlink()
            return
    pytest.fail(f"never killed while a batch was written, in {TRIES} tries")


@in_memory
async def test_a_batch_that_is_under_way_is_not_disturbed(server: Server) -> None:
    """Agents whose registration is in it. The folder stays where it is until the next start."""
    async with connected(server) as client:
        await begin(client, server, "one")
        staging.keep_in_memory(server.data)
        assert not batches(server).is_symlink()
        assert await commit(client, "one") == MESSAGES
        staging.keep_in_memory(server.data)
        assert batches(server).is_symlink()
        staging.keep_in_memory(server.data)
        assert await whole(client, server, "two") == 2 * MESSAGES


@in_memory
async def test_what_others_put_there_while_the_server_was_away_is_not_read(server: Server) -> None:
    """Auditors: after a power cut a neighbour may be faster, with the rest of a batch that nobody here began."""
    staging.keep_in_memory(server.data)
    server.kill()
    folder = staging._folder(server.data)
    staging.trust(server.data)
    assert batches(server).is_symlink(), "what was killed finds its own"
    shutil.rmtree(folder)
    folder.mkdir()
    folder.chmod(0o777)
    staging.trust(server.data)
    assert not batches(server).is_symlink()
    server.start()


@in_memory
@pytest.mark.parametrize("mode", [0o777, 0o750])
async def test_a_folder_that_others_may_enter_is_not_used(server: Server, mode: int) -> None:
    """Users of a shared machine: a neighbour who made it first could change what is about to be recorded."""
    folder = staging._folder(server.data)
    folder.mkdir()
    folder.chmod(mode)
    staging.keep_in_memory(server.data)
    assert not batches(server).is_symlink()
    async with connected(server) as client:
        assert await whole(client, server, "one") == MESSAGES


async def test_where_memory_cannot_be_used_batches_are_on_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Developers on machines without such a place, or with hardly any room in it."""
    monkeypatch.setattr(staging, "MEMORY", tmp_path / "nowhere")
    staging.keep_in_memory(server.data)
    assert not batches(server).is_symlink()
    monkeypatch.setattr(staging, "MEMORY", tmp_path)
    monkeypatch.setattr(staging, "LEAST_BYTES", 2**62)
    staging.keep_in_memory(server.data)
    assert not batches(server).is_symlink()
    monkeypatch.setattr(staging, "LEAST_BYTES", 0)
    monkeypatch.setattr(Path, "symlink_to", Mock(side_effect=PermissionError))
    staging.keep_in_memory(server.data)
    assert not batches(server).is_symlink()
    async with connected(server) as client:
        assert await whole(client, server, "one") == MESSAGES


async def test_a_server_without_streams_takes_no_memory(tmp_path: Path) -> None:
    """Whoever starts many of them: a test, a demonstration."""
    with nats_server(tmp_path / "nats") as server:
        staging.keep_in_memory(server.data)
        assert not staging._folder(server.data).exists()
