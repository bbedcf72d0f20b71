"""The product as separate processes, on real servers that are the caller's own: for system tests and benchmarks."""

import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from deploy.dev.servers import free_port, nats_server, postgres_server
from door import roles

READY_SECONDS: Final = 20.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.02
LOG_TAIL_CHARACTERS: Final = 3_000
TOKEN_ROLES: Final[tuple[roles.Role, ...]] = ("idp", "admin", "auditor", "feed", "ops")


class Product(Struct, frozen=True):
    """Where the servers are, and the tokens that open the services."""

    folder: Path
    nats_url: str
    nats_monitor_url: str
    database_url: str
    tokens: dict[str, str]
    environment: dict[str, str]


@contextmanager
def servers(folder: Path) -> Iterator[Product]:
    """nats-server and Postgres with real disk sync, streams made, tokens minted; no service runs yet."""
    with ExitStack() as stack:
        nats = stack.enter_context(nats_server(folder / "nats"))
        postgres = stack.enter_context(postgres_server(folder / "postgres", password=secrets.token_hex(8)))
        tokens = {role: roles.new_token(role, secrets.token_bytes(32)) for role in TOKEN_ROLES}
        file = folder / "tokens.json"
        roles.write(file, roles.TokenFile(tokens=tuple(roles.entry(role, role, tokens[role]) for role in TOKEN_ROLES)))
        environment = os.environ | {
            "GRANTBOOK_NATS_URL": nats.url,
            "GRANTBOOK_NATS_MONITOR_URL": nats.monitor_url,
            "GRANTBOOK_DATABASE_URL": postgres.url,
            "GRANTBOOK_TOKENS_FILE": str(file),
            "GRANTBOOK_URL": "http://127.0.0.1",
        }
        run("registry", "ensure-streams", environment=environment)
        yield Product(folder, nats.url, nats.monitor_url, postgres.url, tokens, environment)


def run(room: str, *arguments: str, environment: dict[str, str]) -> str:
    """Run a command of a room to its end; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", room, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        message = f"python -m {room} {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        raise RuntimeError(message)
    return done.stdout


@contextmanager
def service(product: Product, room: str, command: str, *, serves: bool = True) -> Iterator[int]:
    """A service as a process of its own; its port, once it is ready."""
    port = free_port()
    arguments = [sys.executable, "-m", room, command]
    if serves:
        arguments += ["--port", str(port)]
    output = product.folder / f"{room}-{command}.log"
    with output.open("ab") as log:
        process = subprocess.Popen(arguments, env=product.environment, stdout=log, stderr=log)
    try:
        if serves and not wait_ready(port, process):
            message = f"python -m {room} {command} did not become ready: {output.read_text()[-LOG_TAIL_CHARACTERS:]}"
            raise RuntimeError(message)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until the service on the port says that it is ready. False when it ended, or does not come to it."""
    until = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return True
        except OSError:
            time.sleep(POLL_SECONDS)
    return False
