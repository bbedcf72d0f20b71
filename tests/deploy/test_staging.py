"""Where batches are put together: in memory, and what is acknowledged is kept as ever."""

import json
from pathlib import Path

import pytest
from nats.aio.client import Client

from deploy.dev import staging
from deploy.dev.servers import Server, nats_server
from grantbook.sdk.connection import connect

MESSAGES = 10


async def stream(client: Client) -> None:
    described = {"name": "LOG", "subjects": ["log.>"], "storage": "file", "allow_atomic": True}
    answer = await client.request("$JS.API.STREAM.CREATE.LOG", json.dumps(described).encode(), timeout=5)
    assert "error" not in json.loads(answer.data)


async def begin(client: Client, batch: str) -> None:
    """All messages of a batch but the last one."""
    for number in range(1, MESSAGES):
        await client.publish(f"log.{batch}", b"", headers=of(batch, number))
    await client.flush()


async def commit(client: Client, batch: str) -> int:
    headers = of(batch, MESSAGES) | {"Nats-Batch-Commit": "1"}
    answer = json.loads((await client.request(f"log.{batch}", b"", timeout=5, headers=headers)).data)
    assert answer["count"] == MESSAGES, answer
    return int(answer["seq"])


def of(batch: str, number: int) -> dict[str, str]:
    return {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}


async def whole(client: Client, batch: str) -> int:
    await begin(client, batch)
    return await commit(client, batch)


def batches(server: Server) -> Path:
    return server.data / "jetstream" / "jetstream" / "$G" / "streams" / "LOG" / "batches"


async def test_a_batch_is_put_together_in_memory_and_kept_on_the_disk(tmp_path: Path) -> None:
    """Everyone: what was acknowledged survives the server, and with it all that was in memory; what was not, is not."""
    with nats_server(tmp_path / "nats") as server:
        client = await connect(server.url, name="test")
        await stream(client)
        staging.keep_in_memory(server.data)
        await begin(client, "one")
        assert batches(server).resolve().is_relative_to(staging.MEMORY)
        assert len(list(batches(server).iterdir())) == 1
        assert await commit(client, "one") == MESSAGES
        assert list(batches(server).iterdir()) == []
        await begin(client, "two")
        server.kill()
        server.start()
        await client.close()
        client = await connect(server.url, name="test")
        assert batches(server).is_symlink(), "a server that is started again has batches in memory by itself"
        assert await whole(client, "three") == 2 * MESSAGES
        await client.close()
        in_memory = batches(server).resolve()
    assert not in_memory.parent.parent.exists()
    assert not batches(server).is_symlink(), "a backup that follows links would fail"


async def test_a_batch_that_is_under_way_is_not_disturbed(tmp_path: Path) -> None:
    """Agents whose registration is in it. The folder stays where it is until the next start."""
    with nats_server(tmp_path / "nats") as server:
        client = await connect(server.url, name="test")
        await stream(client)
        await begin(client, "one")
        staging.keep_in_memory(server.data)
        assert not batches(server).is_symlink()
        assert await commit(client, "one") == MESSAGES
        staging.keep_in_memory(server.data)
        assert batches(server).is_symlink()
        staging.keep_in_memory(server.data)
        assert await whole(client, "two") == 2 * MESSAGES
        await client.close()


@pytest.mark.parametrize("mode", [0o777, 0o750])
async def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path, mode: int) -> None:
    """Users of a shared machine: a neighbour who made it first could change what is about to be recorded."""
    with nats_server(tmp_path / "nats") as server:
        client = await connect(server.url, name="test")
        await stream(client)
        folder = staging._folder(server.data)
        folder.mkdir()
        folder.chmod(mode)
        staging.keep_in_memory(server.data)
        assert not batches(server).is_symlink()
        assert await whole(client, "one") == MESSAGES
        await client.close()


async def test_where_memory_cannot_be_used_batches_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Developers on machines without such a place, or with hardly any room in it."""
    with nats_server(tmp_path / "nats") as server:
        client = await connect(server.url, name="test")
        await stream(client)
        monkeypatch.setattr(staging, "MEMORY", tmp_path / "nowhere")
        staging.keep_in_memory(server.data)
        assert not batches(server).is_symlink()
        monkeypatch.setattr(staging, "MEMORY", tmp_path)
        monkeypatch.setattr(staging, "LEAST_BYTES", 2**62)
        staging.keep_in_memory(server.data)
        assert not batches(server).is_symlink()
        assert await whole(client, "one") == MESSAGES
        await client.close()


async def test_a_server_without_streams_takes_no_memory(tmp_path: Path) -> None:
    """Whoever starts many of them: a test, a demonstration."""
    with nats_server(tmp_path / "nats") as server:
        staging.keep_in_memory(server.data)
        assert not staging._folder(server.data).exists()
