"""Servers on one machine do not take each other's ports, nor each other's answers for their own."""

from pathlib import Path

import pytest

from deploy.dev import servers
from deploy.dev.servers import ServerFailed, free_port, nats_server


def test_no_port_is_given_twice() -> None:
    """Tests on clusters: two nodes once got one port now and then, and one of them died."""
    assert len({free_port() for _ in range(1_000)}) == 1_000


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
