"""All of it at once: Grantbook, the example identity provider and the example MCP server, each a process of its own."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from deploy.dev.servers import dies_with_parent

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.1
TAIL_CHARACTERS: Final = 3_000
_VARIABLE: Final = re.compile(r"(GRANTBOOK_[A-Z_]+)='([^']*)'\Z")


class DemoFailed(Exception):
    """Something did not start, or ended by itself. Says what, and its last words."""


class Ports(Struct, frozen=True):
    """Where the three listen, on the loopback address."""

    grantbook: int = 8080
    identity_provider: int = 8090
    mcp_server: int = 8095


class Part:
    """A process of the demo."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=dict(environment),
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is ours to hand on, in order
                preexec_fn=dies_with_parent(signal.SIGTERM),  # noqa: PLW1509  it calls nothing that could take a lock
            )

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def wait_ready(self, url: str) -> None:
        """Wait until the URL answers anything but an error of the server's. Raises `DemoFailed`."""
        until = time.monotonic() + READY_SECONDS
        while self.alive and time.monotonic() < until:
            try:
                with urllib.request.urlopen(url, timeout=2):  # noqa: S310  an address of our own
                    return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500:
                    return
            except OSError:
                pass
            time.sleep(POLL_SECONDS)
        raise self.failure("did not become ready")

    def failure(self, what: str) -> DemoFailed:
        """What to raise when it `what`."""
        tail = self._log.read_text(errors="replace")[-TAIL_CHARACTERS:]
        return DemoFailed(f"{self.name} {what}. The end of {self._log}:\n{tail}")

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self.alive:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run(data: Path, ports: Ports, *, quiet: bool = False) -> None:
    """Start all three, say what to try, and run until a signal. Raises `DemoFailed`."""
    # The way to end it: everything that was started is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    base = f"http://127.0.0.1:{ports.grantbook}"
    issuer = f"http://127.0.0.1:{ports.identity_provider}"
    mcp = f"http://127.0.0.1:{ports.mcp_server}/mcp"
    try:
        with ExitStack() as stack:
            stack.enter_context(_alone(data))

            def start(name: str, arguments: list[str], environment: Mapping[str, str], ready: str) -> Part:
                if not quiet:
                    print(f"Starting {name}", flush=True)
                part = Part(name, arguments, environment, data / f"demo-{arguments[0].rpartition('.')[2]}.log")
                stack.callback(part.stop)
                part.wait_ready(ready)
                return part

            up = ["deploy.dev", "up", "--quiet", "--port", str(ports.grantbook), "--data", str(data)]
            parts = [start("Grantbook", up, os.environ, f"{base}/readyz")]
            environment = os.environ | variables(data / "dev.env")
            provider = ["examples.identity_provider", "--port", str(ports.identity_provider), "--resource", mcp]
            provider += ["--data", str(data / "demo-idp")]
            where = f"{issuer}/.well-known/oauth-authorization-server"
            parts.append(start("the identity provider", provider, environment, where))
            server = ["examples.mcp_server", "--port", str(ports.mcp_server), "--issuer", issuer]
            parts.append(start("the MCP server", server, environment, mcp))
            if not quiet:
                print(_welcome(base, issuer, mcp, data), flush=True)
            while all(part.alive for part in parts):
                time.sleep(POLL_SECONDS)
            raise next(part for part in parts if not part.alive).failure("ended by itself, so all of it stopped")
    except KeyboardInterrupt:
        return


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """A second one in the same folder would write over the logs of the first before it failed. Raises `DemoFailed`."""
    with (data / "demo.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"a demo runs in {data} already: stop it first, or give this one another folder with --data"
            raise DemoFailed(message) from None
        yield


def variables(file: Path) -> dict[str, str]:
    """What `dev.env` says."""
    found = (_VARIABLE.match(line) for line in file.read_text().splitlines())
    return {match[1]: match[2] for match in found if match is not None}


def _welcome(base: str, issuer: str, mcp: str, data: Path) -> str:
    return f"""
The demo runs (Ctrl-C stops all of it; data and logs are in {data})

  Grantbook            {base}
  identity provider    {issuer}      users: ada with ada-password, grace with grace-password
  MCP server           {mcp}

  try   1. Let an agent in. With Claude Code:
             claude mcp add --transport http mail {mcp}      and then /mcp in it
           or with MCP Inspector:
             npx @modelcontextprotocol/inspector             transport "Streamable HTTP", URL {mcp}
           Log in as ada, let it in, and call the tool "subjects".
        2. See who it is:
             . {data}/dev.env
             curl -s "$GRANTBOOK_URL/admin/v1/clients" -H "Authorization: Bearer $GRANTBOOK_ADMIN_TOKEN"
        3. Cut it off, and call the tool again:
             curl -si -X DELETE "$GRANTBOOK_URL/admin/v1/clients/<client_id>" \\
               -H "Authorization: Bearer $GRANTBOOK_ADMIN_TOKEN"
        4. See that it arrived: put the Grantbook-Position of that answer here
             curl -s "$GRANTBOOK_URL/admin/v1/revocations/<position>/delivery" \\
               -H "Authorization: Bearer $GRANTBOOK_ADMIN_TOKEN"
"""
