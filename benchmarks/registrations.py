"""Registrations over HTTP: ours, durable; and beside them, in the same run, what registrars of npm do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from benchmarks import http_load, raw
from benchmarks.figures import Figure, at_least, at_most, percentile
from deploy.dev.servers import dies_with_parent

CONNECTIONS: Final = 64
WARM_SECONDS: Final = 1.0
PATH: Final = "/auth/connect/register"
BODY: Final = json.dumps(
    {
        "client_name": "Claude",
        "redirect_uris": ["https://claude.ai/api/mcp/auth_callback"],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
    }
).encode()
PEERS: Final = {
    "oidc-provider, in memory": ("oidc-provider.mjs", "/reg"),
    "better-auth, on Postgres": ("better-auth.mjs", "/api/auth/oauth2/register"),
}
HALF_BAR_MS: Final = 20.0
MOST_BUSY: Final = 0.9
"""A loop that is busier than this is late for ever on a machine that gives it less than all of a core."""


async def load(
    port: int, seconds: float, *, path: str = PATH, rate: float | None = None, some_fail: bool = False
) -> http_load.Load:
    """Agents' requests to their 201. Where some may fail, the load tells how many did."""
    one = http_load.request("POST", path, BODY)
    done = await http_load.load(port, lambda _: one, wanted=201, connections=CONNECTIONS, seconds=seconds, rate=rate)
    assert some_fail or not done.failed, f"registrations failed: {dict(done.refused)}"
    return done


async def peers(seconds: float, database_url: str) -> dict[str, float]:
    """Registrations a second at each of the registrars beside us, by its name."""
    rates = {}
    for name, (script, path) in PEERS.items():
        with peer(script, database_url) as port:
            await load(port, WARM_SECONDS, path=path)
            rates[name] = (await load(port, seconds, path=path)).rate
    return rates


@contextmanager
def peer(script: str, database_url: str) -> Iterator[int]:
    """A registrar of npm while it serves, on which port."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("node")), str(Path(__file__).parent / "peers" / script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"DATABASE_URL": database_url},
        preexec_fn=dies_with_parent(signal.SIGKILL),  # noqa: PLW1509  no thread of ours is running yet
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                yield int(line)
                return
        message = f"{script} did not start: install its packages with `npm ci --prefix benchmarks/peers`"
        raise RuntimeError(message)
    finally:
        process.kill()
        process.communicate()


async def measured(port: int, seconds: float, appends: float, beside: dict[str, float]) -> tuple[list[Figure], float]:
    """Registrations at the most, and at half of that; and the most."""
    await load(port, WARM_SECONDS)
    most = (await load(port, seconds)).rate
    before = _busy_seconds()
    half = await load(port, seconds, rate=most / 2)
    busy = min((_busy_seconds() - before) / half.seconds, MOST_BUSY)
    late = percentile(raw.lateness_milliseconds(busy, seconds), 0.99)
    memory, postgres = (beside[name] for name in PEERS)
    name = "durable registrations over HTTP"
    return [
        at_least(name, most, "/s", memory, "oidc-provider in memory", ratio=2),
        Figure(name, most, "/s", postgres, "better-auth on Postgres"),
        Figure(name, most, "/s", appends / 2, "atomic batches, of two events each"),
        Figure("registration at half of the most, p50", half.percentile(0.5), "ms", 1_000 / most, "one of the most"),
        at_most(
            "registration at half of the most, p99",
            half.percentile(0.99),
            "ms",
            late,
            f"a loop without a server, {busy:.0%} busy as the registry was",
            HALF_BAR_MS,
        ),
    ], most


def _busy_seconds() -> float:
    """Of a core's time, what registries that run have had."""
    seconds = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that ends just now
            if "registry" in each.cmdline():
                times = each.cpu_times()
                seconds.append(times.user + times.system)
    assert seconds, "no registry runs"
    return sum(seconds)
