"""Postgres for root where user namespaces are forbidden: it becomes `nobody` in earnest."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from deploy.dev import servers
from deploy.dev.servers import ServerFailed, postgres_server

PASSWORD = "it's a p@ss/word"

PROGRAM = servers._postgres_binary("postgres")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(
        not all(folder.stat().st_mode & 0o001 for folder in PROGRAM.parents),
        reason="nobody may not enter the folder of this checkout",
    ),
]


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that everyone may enter, as pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_unprivileged", lambda: ((), servers.NOBODY))


async def counted(url: str, *statements: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
        count = await connection.fetchval("select count(*) from t")
        assert isinstance(count, int)
        return count
    finally:
        await connection.close()


async def test_data_survives_when_namespaces_are_forbidden_and_allowed_again(
    reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root in a container whose next version has other rights."""
    data = reachable / "data"
    with postgres_server(data, password=PASSWORD, durable=False) as server:
        assert await counted(server.url, "create table t (n int)", "insert into t values (1)") == 1
    with monkeypatch.context() as patch:
        patch.setattr(servers, "_unprivileged", lambda: ((), servers.NOBODY))
        with postgres_server(data, password=PASSWORD, durable=False) as server:
            assert psutil.Process(server.pid).uids().real == servers.NOBODY
            assert await counted(server.url, "insert into t values (2)") == 2
    with postgres_server(data, password=PASSWORD, durable=False) as server:
        assert await counted(server.url, "insert into t values (3)") == 3


@pytest.mark.usefixtures("no_namespaces")
async def test_postgres_starts_anew_as_nobody(reachable: Path) -> None:
    """Root in a container that may make no namespaces, at its first start."""
    with postgres_server(reachable / "data", password=PASSWORD, durable=False) as server:
        assert psutil.Process(server.pid).uids().real == servers.NOBODY
        assert await counted(server.url, "create table t (n int)") == 0


@pytest.mark.usefixtures("no_namespaces")
def test_a_folder_that_nobody_may_enter_stays_closed_and_is_explained(reachable: Path) -> None:
    """Root who starts it below a private folder: its permissions are theirs to change, not ours."""
    reachable.chmod(0o700)
    with pytest.raises(ServerFailed, match="who must be able to reach the program and the data folder"):
        postgres_server(reachable / "data", password=PASSWORD, durable=False)
    assert reachable.stat().st_mode & 0o777 == 0o700


def test_data_of_another_user_is_not_taken_over(reachable: Path) -> None:
    """An ordinary user whose folder root starts once: they could not start it again."""
    data = reachable / "data"
    with postgres_server(data, password=PASSWORD, durable=False):
        pass
    os.chown(data / "postgres", 1000, 1000)
    with pytest.raises(ServerFailed, match="belongs to the user with the id 1000"):
        postgres_server(data, password=PASSWORD, durable=False)
