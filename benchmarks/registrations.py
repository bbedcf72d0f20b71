"""Registrations over HTTP: ours, durable; and beside them, in the same run, what registrars of npm do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
from msgspec import Struct
from msgspec.structs import astuple

from benchmarks import http_load, raw
from benchmarks.figures import Figure, at_least, at_most, percentile
from deploy.dev.servers import dies_with_parent

CONNECTIONS: Final = 64
WARM_SECONDS: Final = 1.0
TURNS: Final = 5
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


async def measured(
    port: int, seconds: float, appends: float, database_url: str
) -> tuple[list[Figure], dict[str, float]]:
    """Registrations at the most, and at half of that; and how many a second each registrar takes, by its name.

    Medians of some turns. In each of them every registrar is asked as fast as it answers, for half of the seconds, and
    then ours at half of what it took. What stands and is not asked takes no time.
    """
    ours: list[_Turn] = []
    rates: dict[str, list[float]] = {name: [] for name in PEERS}
    with ExitStack() as stack:
        standing = {
            name: (stack.enter_context(peer(script, database_url)), path) for name, (script, path) in PEERS.items()
        }
        for at, path in (*standing.values(), (port, PATH)):
            await load(at, WARM_SECONDS, path=path)
        for _ in range(TURNS):
            for name, (at, path) in standing.items():
                rates[name].append((await load(at, seconds / 2, path=path)).rate)
            ours.append(await _turn(port, seconds))
    beside = {name: percentile(each, 0.5) for name, each in rates.items()}
    memory, postgres = beside.values()
    most, p50, p99, late, busy = (percentile(each, 0.5) for each in zip(*map(astuple, ours), strict=True))
    name, half = "durable registrations over HTTP", "registration at half of the most"
    loop = f"a loop without a server, {busy:.0%} busy as the registry was"
    return [
        at_least(name, most, "/s", memory, "oidc-provider in memory", ratio=2),
        Figure(name, most, "/s", postgres, "better-auth on Postgres"),
        Figure(name, most, "/s", appends / 2, "atomic batches, of two events each"),
        Figure(f"{half}, p50", p50, "ms", 1_000 / most, "one of the most"),
        at_most(f"{half}, p99, median of {TURNS} turns", p99, "ms", late, loop, HALF_BAR_MS),
        Figure(f"{half}, p99, the worst turn", max(each.p99 for each in ours), "ms", late, loop),
    ], {"Grantbook, durable": most} | beside


class _Turn(Struct, frozen=True):
    """What one turn came to: registrations a second at the most; at half of them milliseconds, and shares of a core."""

    most: float
    p50: float
    p99: float
    late: float
    """99 % of the pieces of a loop without a server that is as busy are no later."""
    busy: float


async def _turn(port: int, seconds: float) -> _Turn:
    most = (await load(port, seconds / 2)).rate
    before = _busy_seconds()
    half = await load(port, seconds, rate=most / 2)
    busy = min((_busy_seconds() - before) / half.seconds, MOST_BUSY)
    late = percentile(raw.lateness_milliseconds(busy, seconds / 2), 0.99)
    return _Turn(most, half.percentile(0.5), half.percentile(0.99), late, busy)


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
