"""The servers of the one-command start: they serve, keep their data, die when they must, and say what is wrong."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import nats
import psutil
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from deploy.dev.servers import Server, ServerFailed, nats_cluster, nats_server, postgres_server

PASSWORD: Final = "it's a p@ss/word"
URL_SAFE: Final = "a-password"  # nats-py does not decode what a URL must encode
GONE_SECONDS: Final = 10.0
STARTER: Final = Path(__file__).with_name("starter.py")


def postgres_in(folder: Path, *, port: int | None = None, durable: bool = False) -> Server:
    return postgres_server(folder / "postgres", password=PASSWORD, port=port, durable=durable)


async def rows_after(server: Server, *statements: str) -> list[int]:
    connection = await asyncpg.connect(server.url)
    try:
        for statement in statements:
            await connection.execute(statement)
        return [row["n"] for row in await connection.fetch("select n from t order by n")]
    finally:
        await connection.close()


async def published_to(server: Server, *texts: str) -> int:
    client = await nats.connect(server.url, allow_reconnect=False)
    try:
        log = client.jetstream()
        await log.add_stream(StreamConfig(name="LOG", subjects=["log"]))
        for text in texts:
            await log.publish("log", text.encode())
        return (await log.stream_info("LOG")).state.messages
    finally:
        await client.close()


async def test_postgres_keeps_its_rows_over_a_stop_and_a_kill(tmp_path: Path) -> None:
    """Developers who press Ctrl-C, or lose their terminal, find their data at the next start."""
    with postgres_in(tmp_path, durable=True) as server:
        assert await rows_after(server, "create table t (n int)", "insert into t values (1)") == [1]
        server.stop()
        assert server.returncode == 0
        server.start()
        assert await rows_after(server, "insert into t values (2)") == [1, 2]
        server.kill()
        assert server.returncode == -signal.SIGKILL
        server.start()
        assert await rows_after(server, "insert into t values (3)") == [1, 2, 3]
    assert not server.alive


async def test_nats_keeps_its_messages_over_a_stop_and_a_kill(tmp_path: Path) -> None:
    """Everyone: the log is the only record of the register."""
    with nats_server(tmp_path / "nats", user="u", password=URL_SAFE) as server:
        assert await published_to(server, "one") == 1
        server.stop()
        assert server.returncode == 0
        server.start()
        assert await published_to(server, "two") == 2
        server.kill()
        server.start()
        assert await published_to(server, "three") == 3


async def test_postgres_speaks_utf8_and_folds_letters_beyond_ascii(tmp_path: Path) -> None:
    """Admins who search for a client by a name that is not English."""
    with postgres_in(tmp_path) as server:
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("select lower('ÄÖÇ Łódź')") == "äöç łódź"
        assert await connection.fetchval("show server_encoding") == "UTF8"
        await connection.close()


async def test_postgres_is_durable_unless_told_otherwise(tmp_path: Path) -> None:
    """Whoever runs the one-command start for longer than a look."""
    with postgres_server(tmp_path / "postgres", password=PASSWORD) as server:
        connection = await asyncpg.connect(server.url)
        assert [await connection.fetchval(f"show {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
        await connection.close()


async def test_postgres_refuses_a_wrong_password(tmp_path: Path) -> None:
    """Users of a shared machine: the servers listen where their neighbours can connect."""
    with postgres_in(tmp_path) as server, pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url, password="another")


async def test_nats_refuses_a_wrong_password(tmp_path: Path) -> None:
    """Users of a shared machine: the servers listen where their neighbours can connect."""
    client = Client()
    with nats_server(tmp_path / "nats", user="u", password=URL_SAFE) as server:
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await client.connect(f"nats://u:wrong@127.0.0.1:{server.port}", allow_reconnect=False)
        await client.close()  # nats-py leaves the socket of a refused connection open
    assert stat.S_IMODE((tmp_path / "nats" / "nats-server.conf").stat().st_mode) == 0o600


def test_nats_says_that_it_syncs_every_write(tmp_path: Path) -> None:
    """Everyone: with JetStream's own default a power cut loses what was acknowledged."""
    with nats_server(tmp_path / "nats") as server:
        jetstream = httpx.get(f"{server.monitor_url}/varz").json()["jetstream"]
        assert jetstream["config"]["sync_always"] is True


@pytest.mark.faults
async def test_three_nodes_make_a_cluster_that_survives_one(tmp_path: Path) -> None:
    """The tests of races and crashes, which stand on a cluster that really replicates."""
    nodes = nats_cluster(tmp_path)
    try:
        client = await nats.connect([node.url for node in nodes[1:]])
        log = client.jetstream(timeout=10)
        info = await log.add_stream(StreamConfig(name="LOG", subjects=["log"], num_replicas=3))
        assert info.cluster is not None
        assert len(info.cluster.replicas or []) == 2
        nodes[0].kill()
        async with asyncio.timeout(30):
            while not await acknowledged(log):  # until the others have a leader
                pass
        nodes[0].start()
        await client.close()
    finally:
        for node in nodes:
            node.stop()


async def acknowledged(log: JetStreamContext) -> bool:
    try:
        await log.publish("log", b"still here", timeout=1)
    except nats.errors.Error:
        return False
    return True


@pytest.mark.faults
def test_both_servers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Developers whose start was killed: nothing keeps the ports, and the next start finds sound data."""
    command = [sys.executable, str(STARTER), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        family = [psutil.Process(pid) for pid in pids]
        family += [child for process in family for child in process.children(recursive=True)]
        assert len(family) > 2, "Postgres has children of its own"
        starter.kill()
    _, alive = psutil.wait_procs(family, timeout=GONE_SECONDS)
    assert alive == []
    with nats_server(tmp_path / "nats"), postgres_server(tmp_path / "postgres", password="a password"):
        pass


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    """Developers with two terminals: nats-server itself would let two servers write to one log."""
    with nats_server(tmp_path / "nats"), pytest.raises(ServerFailed):
        nats_server(tmp_path / "nats")


@pytest.mark.parametrize(
    "start", [lambda data, port: nats_server(data, port=port), lambda data, port: postgres_in(data, port=port)]
)
def test_a_busy_port_is_named(tmp_path: Path, start: object) -> None:
    """Developers who have a server of their own on that port."""
    assert callable(start)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerFailed, match=str(port)):
            start(tmp_path / "data", port)


def test_a_log_that_is_damaged_is_not_served_as_an_empty_one(tmp_path: Path) -> None:
    """Everyone: nats-server starts without a stream that it cannot read; an empty one would take its place."""
    with nats_server(tmp_path / "nats") as server:
        asyncio.run(published_to(server, "one"))
    (meta,) = (tmp_path / "nats").rglob("LOG/meta.inf")
    meta.write_text("{}")
    with pytest.raises(ServerFailed, match=r"LOG. could not be recovered"):
        server.start()
    assert not server.alive


def test_a_database_that_is_damaged_is_explained(tmp_path: Path) -> None:
    """Developers after a full disk: they learn that deleting the folder costs them nothing."""
    with postgres_in(tmp_path):
        pass
    os.truncate(tmp_path / "postgres" / "postgres" / "global" / "pg_control", 100)
    with pytest.raises(ServerFailed, match=r"(?s)damaged.*move it away.*Last lines.*PANIC") as failure:
        postgres_in(tmp_path)
    assert "Traceback" not in str(failure.value)


def test_a_database_of_another_major_version_is_explained(tmp_path: Path) -> None:
    """Users who upgrade Grantbook."""
    with postgres_in(tmp_path):
        pass
    (tmp_path / "postgres" / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(ServerFailed, match=r"made by Postgres 17, and this is Postgres 18\..*move"):
        postgres_in(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Users who name the wrong folder."""
    letter = tmp_path / "postgres" / "postgres" / "letter.txt"
    letter.parent.mkdir(parents=True)
    letter.write_text("dear")
    with pytest.raises(ServerFailed, match="is not a Postgres data folder"):
        postgres_in(tmp_path)
    assert letter.read_text() == "dear"


def test_data_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    """Users of a read-only folder, or of a path that goes through a file."""
    (tmp_path / "file").touch()
    with pytest.raises(ServerFailed, match="cannot be used"):
        nats_server(tmp_path / "file" / "nats")
    with pytest.raises(ServerFailed, match="cannot be used"):
        postgres_in(tmp_path / "file")


def test_a_start_that_was_cut_off_while_making_the_database_is_repeated(tmp_path: Path) -> None:
    """Developers who press Ctrl-C during the very first start."""
    half = tmp_path / "postgres" / "postgres.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with postgres_in(tmp_path) as server:
        assert server.alive


def test_a_process_id_that_another_program_has_by_now_is_no_obstacle(tmp_path: Path) -> None:
    """Users of containers, where ids repeat: Postgres would take the other program for its twin."""
    pid_file = tmp_path / "postgres" / "postgres" / "postmaster.pid"
    with postgres_in(tmp_path) as server:
        text = pid_file.read_text()
        server.kill()
        pid_file.write_text(text.replace(str(server.pid), str(os.getppid()), 1))
        server.start()


async def test_a_test_finds_no_streams_of_another(nats_url: str) -> None:
    """Whoever writes tests: streams have fixed names."""
    await leave_a_stream(nats_url)


async def test_the_next_test_finds_no_streams_either(nats_url: str) -> None:
    """Whoever writes tests: streams have fixed names."""
    await leave_a_stream(nats_url)


async def leave_a_stream(url: str) -> None:
    client = await nats.connect(url)
    log = client.jetstream()
    assert await log.streams_info() == []
    await log.add_stream(StreamConfig(name="LOG", subjects=["log"]))
    await client.close()


async def test_a_test_gets_a_database_of_its_own(database_url: str) -> None:
    """Whoever writes tests: tables have fixed names."""
    await leave_a_table(database_url)


async def test_the_next_test_gets_another_database(database_url: str) -> None:
    """Whoever writes tests: tables have fixed names."""
    await leave_a_table(database_url)


async def leave_a_table(url: str) -> None:
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    await connection.execute("create table t (n int)")
    await connection.close()
