"""A closed loop of keep-alive HTTP/1.1 connections: as little client as possible, so that the server is measured."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

READ_BYTES: Final = 65_536


class Load(Struct, frozen=True):
    """What a load came to. Latencies in milliseconds, sorted."""

    answered: int
    failed: int
    seconds: float
    milliseconds: list[float]

    @property
    def rate(self) -> float:
        """Answers of the wanted status in a second."""
        return self.answered / self.seconds

    def percentile(self, share: float) -> float:
        """Latency that this share of the answers stayed within, in milliseconds."""
        return self.milliseconds[min(int(len(self.milliseconds) * share), len(self.milliseconds) - 1)]


def request(method: str, path: str, body: bytes, token: str | None = None) -> bytes:
    """The bytes of a request with a JSON body."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: bench",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def load(port: int, make: Callable[[int], bytes], *, wanted: int, connections: int, seconds: float) -> Load:
    """Send `make(0)`, `make(1)`, ... over so many connections at once for so long."""
    started = time.perf_counter()
    until = started + seconds
    number = 0
    failed = 0
    latencies: list[float] = []

    async def one() -> None:
        nonlocal number, failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (sent := time.perf_counter()) < until:
            number += 1
            writer.write(make(number))
            status = await answer(reader)
            if status == wanted:
                latencies.append((time.perf_counter() - sent) * 1_000)
            else:
                failed += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return Load(len(latencies), failed, time.perf_counter() - started, sorted(latencies))


async def answer(reader: asyncio.StreamReader) -> int:
    """Read one answer; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and int(value):
            await reader.readexactly(int(value))
    return int(head[9:12])
