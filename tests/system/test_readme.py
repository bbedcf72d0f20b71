"""The README's tour, run as a stranger would: what it says happens, happens."""

import fnmatch
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.dev.servers import dies_with_parent, free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 20.0
TOUR_SECONDS = 60.0
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def start(folder: Path, port: int, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """`make up`, without what make does before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRANTBOOK_")} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.dev", "up", "--port", str(port), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=dies_with_parent(signal.SIGTERM),
    )


def wait_ready(port: int, process: "subprocess.Popen[str]") -> None:
    """Wait until it is ready."""
    started = time.monotonic()
    while time.monotonic() < started + START_SECONDS:
        assert process.poll() is None, process.communicate()[0]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    process.kill()
    pytest.fail(f"not ready within {START_SECONDS} s: {process.communicate()[0]}")


def stop(process: "subprocess.Popen[str]", how: signal.Signals = signal.SIGINT) -> str:
    """Ctrl-C; what it printed."""
    process.send_signal(how)
    return process.communicate(timeout=STOP_SECONDS)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout's place: with a .venv, and nothing else yet."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    return tmp_path


@pytest.fixture
def running(folder: Path) -> Iterator[int]:
    """The all-in-one in that place; its port."""
    port = free_port()
    process = start(folder, port)
    wait_ready(port, process)
    yield port
    stop(process)
    assert process.returncode == 0


def tour_of_the_readme() -> str:
    return (ROOT / "README.md").read_text().partition("## Tour")[2].partition("\n## ")[0]


def recipes() -> str:
    return (ROOT / "docs" / "identity-providers.md").read_text()


@pytest.mark.parametrize("page", [tour_of_the_readme, recipes])
def test_every_command_of_a_page_works(folder: Path, running: int, page: Callable[[], str]) -> None:
    """Strangers: every command does what the page says, and leaves nothing behind."""
    assert running
    blocks = BLOCK.findall(page())
    before = {each.name for each in folder.iterdir()}
    script = "\n".join(text for kind, text in blocks if kind == "sh")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TOUR_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {each.name for each in folder.iterdir()} == before
    printed = iter(done.stdout.splitlines())
    for line in (line for kind, text in blocks if kind == "text" for line in text.splitlines()):
        pattern = line if "*" in line else line.replace("[", "[[]")
        assert any(fnmatch.fnmatchcase(each, pattern) for each in printed), f"{line!r} was not printed: {done.stdout}"


@pytest.mark.faults
def test_data_stays_between_runs_and_tokens_too(folder: Path) -> None:
    """Whoever comes back the next day: the same tokens open the same register."""
    port = free_port()
    process = start(folder, port)
    wait_ready(port, process)
    first = (folder / ".grantbook" / "dev.env").read_text()
    assert (folder / ".grantbook" / "dev.env").stat().st_mode & 0o777 == 0o600
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/auth/connect/register",
        b'{"redirect_uris": ["http://localhost/cb"], "client_name": "Yesterday"}',
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass
    said = stop(process)
    assert process.returncode == 0, said
    assert "Grantbook runs at" in said
    process = start(folder, port)
    wait_ready(port, process)

    assert (folder / ".grantbook" / "dev.env").read_text() == first
    token = re.search(r"GRANTBOOK_ADMIN_TOKEN='(.*)'", first)
    assert token is not None
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/admin/v1/clients", headers={"Authorization": f"Bearer {token[1]}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert b"Yesterday" in answer.read()
    stop(process, signal.SIGTERM)


def test_a_busy_port_is_a_clear_message(folder: Path, running: int) -> None:
    """Whoever starts it twice: one line that says what to do, no traceback."""
    process = start(folder, running, "--data", "elsewhere")
    said, _ = process.communicate(timeout=STOP_SECONDS)
    assert process.returncode == 1
    assert f"port {running}" in said
    assert "GRANTBOOK_PORT" in said
    assert "Traceback" not in said


def test_a_broken_data_folder_is_a_clear_message(folder: Path) -> None:
    """Whoever's disk failed: which file, and what to do, no traceback."""
    (folder / ".grantbook").mkdir()
    (folder / ".grantbook" / "state.json").write_text("{broken")
    process = start(folder, free_port())
    said, _ = process.communicate(timeout=STOP_SECONDS)
    assert process.returncode == 1
    assert "state.json" in said
    assert "Traceback" not in said


@pytest.mark.faults
def test_when_a_child_dies_all_of_it_stops_with_the_reason(folder: Path) -> None:
    """Whoever wonders why it is gone: it says which server ended."""
    port = free_port()
    process = start(folder, port)
    wait_ready(port, process)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "nats-server"], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout), signal.SIGKILL)
    said, _ = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 1
    assert "nats-server ended by itself" in said
    assert "Traceback" not in said


def test_servers_of_the_users_own_are_used_instead(folder: Path, nats_url: str, database_url: str) -> None:
    """Whoever has NATS and Postgres already: none is started beside them."""
    port = free_port()
    process = start(folder, port, GRANTBOOK_NATS_URL=nats_url, GRANTBOOK_DATABASE_URL=database_url)
    wait_ready(port, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    assert children.stdout == ""
    assert f"GRANTBOOK_NATS_URL='{nats_url}'" in (folder / ".grantbook" / "dev.env").read_text()
    said = stop(process)
    assert process.returncode == 0, said


def test_a_shell_that_read_dev_env_can_start_it_again(folder: Path) -> None:
    """Whoever follows the tour and then restarts: the addresses in dev.env are of servers that it starts itself."""
    port = free_port()
    process = start(folder, port)
    wait_ready(port, process)
    stop(process)
    lines = (folder / ".grantbook" / "dev.env").read_text().splitlines()
    variables = {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}
    process = start(folder, port, **variables)
    wait_ready(port, process)
    stop(process)
    assert process.returncode == 0


@pytest.mark.faults
def test_servers_that_are_not_there_are_a_clear_message(folder: Path, nats_url: str) -> None:
    """Whoever mistyped an address: which server, no traceback."""
    for variables in (
        {"GRANTBOOK_NATS_URL": "nats://127.0.0.1:1"},
        {"GRANTBOOK_NATS_URL": nats_url, "GRANTBOOK_DATABASE_URL": "postgresql://127.0.0.1:1/x"},
    ):
        process = start(folder, free_port(), **variables)
        said, _ = process.communicate(timeout=START_SECONDS)
        assert process.returncode == 1
        assert "Traceback" not in said
        assert ("NATS" if len(variables) == 1 else "Postgres") in said


def test_a_supervisor_that_stops_it_leaves_servers_that_were_shut_down(folder: Path) -> None:
    """Whoever runs it as a service: SIGTERM ends it as Ctrl-C does."""
    port = free_port()
    process = start(folder, port)
    wait_ready(port, process)
    said = stop(process, signal.SIGTERM)
    assert process.returncode == 0, said
    assert "database system is shut down" in (folder / ".grantbook" / "postgres" / "postgres.log").read_text()
