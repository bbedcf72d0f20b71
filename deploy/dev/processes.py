"""The product as separate processes, on real servers that are the caller's own: for system tests and benchmarks."""

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from deploy.dev import staging
from deploy.dev.servers import Server, dies_with_parent, free_port, nats_cluster, nats_server, postgres_server
from door import roles
from registry import streams

READY_SECONDS: Final = 20.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.02
LOG_TAIL_CHARACTERS: Final = 3_000
TOKEN_ROLES: Final[tuple[roles.Role, ...]] = ("idp", "admin", "auditor", "feed", "ops")


class Product(Struct, frozen=True):
    """The servers, where they are, and the tokens that open the services."""

    folder: Path
    nats: list[Server]
    postgres: Server
    nats_url: str
    nats_monitor_url: str
    database_url: str
    tokens: Mapping[roles.Role, str]
    environment: dict[str, str]


@contextmanager
def servers(folder: Path, *, nodes: int = 1, log_max_bytes: int = streams.LOG_MAX_BYTES) -> Iterator[Product]:
    """nats-server (or a cluster) and Postgres with real disk sync, streams made, tokens minted; no service runs yet."""
    with ExitStack() as stack:
        nats = [nats_server(folder / "nats")] if nodes == 1 else nats_cluster(folder / "nats", nodes)
        for server in nats:
            stack.callback(server.stop)
        postgres = stack.enter_context(postgres_server(folder / "postgres", password=secrets.token_hex(8)))
        tokens = {role: roles.new_token(role, secrets.token_bytes(32)) for role in TOKEN_ROLES}
        file = folder / "tokens.json"
        roles.write(file, roles.TokenFile(tokens=tuple(roles.entry(role, role, tokens[role]) for role in TOKEN_ROLES)))
        environment = os.environ | {
            "GRANTBOOK_NATS_URL": ",".join(server.url for server in nats),
            "GRANTBOOK_NATS_MONITOR_URL": nats[0].monitor_url,
            "GRANTBOOK_DATABASE_URL": postgres.url,
            "GRANTBOOK_TOKENS_FILE": str(file),
            "GRANTBOOK_URL": "http://127.0.0.1",
        }
        size = ("--log-max-bytes", str(log_max_bytes))
        run("registry", "ensure-streams", "--replicas", str(nodes), *size, environment=environment)
        if nodes == 1:
            staging.keep_in_memory(nats[0].data)
        yield Product(folder, nats, postgres, nats[0].url, nats[0].monitor_url, postgres.url, tokens, environment)


def run(room: str, *arguments: str, environment: dict[str, str]) -> str:
    """Run a command of a room to its end; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", room, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        message = f"python -m {room} {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        raise RuntimeError(message)
    return done.stdout


class Service:
    """A service as a process of its own; after it was killed, `start` runs it again on the same port."""

    def __init__(self, product: Product, room: str, command: str, *options: str, serves: bool = True) -> None:
        self.port = free_port()
        self._serves = serves
        self.environment = dict(product.environment)
        port = ("--port", str(self.port)) if serves else ()
        self._arguments = [sys.executable, "-m", room, command, *port, *options]
        self._output = product.folder / f"{room}-{command}-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, from a thread that lives as long as it shall. Does not wait: see `wait_ready`."""
        with self._output.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self.environment,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(signal.SIGTERM),  # noqa: PLW1509  it calls nothing that could take a lock
            )

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, path: str = "/readyz") -> None:
        """Wait until it says that it is ready, or just serves (`/healthz`). Raises `RuntimeError` with its last log."""
        until = time.monotonic() + READY_SECONDS
        while self.alive and time.monotonic() < until:
            if not self._serves:
                return
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=1):
                    return
            except OSError:
                time.sleep(POLL_SECONDS)
        end = self._output.read_text()[-LOG_TAIL_CHARACTERS:]
        message = f"{' '.join(self._arguments[1:])} did not become ready: {end}"
        raise RuntimeError(message)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def service(
    product: Product, room: str, command: str, *options: str, serves: bool = True, until: str = "/readyz"
) -> Iterator[int]:
    """A service that runs for as long as this is open; its port, once it is ready."""
    it = Service(product, room, command, *options, serves=serves)
    it.start()
    try:
        it.wait_ready(until)
        yield it.port
    finally:
        it.stop()
