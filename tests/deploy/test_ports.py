"""Servers on one machine do not take each other's ports, nor each other's answers for their own."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.dev import servers
from deploy.dev.servers import ServerFailed, free_port, nats_server

GIVE = "from deploy.dev.servers import free_port; print([free_port() for _ in range(200)], flush=True); input()"


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests on clusters: two nodes once got one port now and then, and one of them died."""
    first = free_port()
    wanted = iter([first, first, *range(servers.FIRST_PORT, servers.LAST_PORT)])
    monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: next(wanted))
    assert free_port() != first


def test_no_port_is_given_to_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run side by side: what one of them started for a while was once another's server."""
    with subprocess.Popen([sys.executable, "-c", GIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        theirs = set(json.loads(other.stdout.readline()))
        wanted = iter([*list(theirs)[: servers.PORT_TRIES // 2], *range(servers.FIRST_PORT, servers.LAST_PORT)])
        monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: next(wanted))
        assert free_port() not in theirs
        other.communicate(b"\n")


def test_the_answers_of_another_server_are_not_taken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a server: one that died for want of its port was called ready because its neighbour was."""
    with nats_server(tmp_path / "one") as one:
        taken = int(one.monitor_url.rpartition(":")[2])
        port = free_port()
        monkeypatch.setattr(servers, "free_port", lambda: taken)
        with pytest.raises(ServerFailed, match=r"(?s)ended at its start.*monitor port"):
            nats_server(tmp_path / "two", port=port)
        assert one.alive
