"""A loop of keep-alive HTTP/1.1 connections: as little client as possible, so that the server is measured."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

import httptools
from msgspec import Struct

ANSWER_SECONDS: Final = 60.0
WORDS: Final = 200
"""Characters of an answer that was not wanted, to tell it by."""


class Load(Struct, frozen=True):
    """What a load came to. Latencies in milliseconds, sorted."""

    answered: int
    refused: Counter[str]
    """What was answered instead: status and body, and how often."""
    seconds: float
    milliseconds: list[float]

    @property
    def failed(self) -> int:
        """Answers of another status."""
        return self.refused.total()

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


async def load(
    port: int,
    make: Callable[[int], bytes],
    *,
    wanted: int,
    connections: int,
    seconds: float,
    rate: float | None = None,
) -> Load:
    """Send `make(1)`, `make(2)`, ... over so many connections at once for so long.

    Each connection sends when it has its answer. With a `rate`, requests are due so often in a second, and an answer's
    time counts from when its request was due: what waits for a connection to be free has waited, too.
    """
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    until = started + seconds
    number = 0
    refused: Counter[str] = Counter()
    latencies: list[float] = []

    async def one() -> None:
        nonlocal number
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
        while (since := time.perf_counter()) < until:
            number += 1
            mine = number
            if rate is not None:
                due = started + mine / rate
                if due >= until:
                    break
                if due > since:
                    await asyncio.sleep(due - since)
                since = due
            status = await connection.ask(make(mine))
            if status == wanted:
                latencies.append((time.perf_counter() - since) * 1_000)
            else:
                refused[f"{status} {connection.body[:WORDS].decode(errors='replace')}"] += 1
        connection.close()

    async with asyncio.timeout(seconds + ANSWER_SECONDS):
        await asyncio.gather(*(one() for _ in range(connections)))
    return Load(len(latencies), refused, time.perf_counter() - started, sorted(latencies))


async def ask(port: int, message: bytes) -> int:
    """Send one request, over a connection of its own; the status of its answer."""
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", port)
    try:
        return await connection.ask(message)
    finally:
        connection.close()


async def answer(reader: asyncio.StreamReader) -> int:
    """Read one answer whose length is said; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and int(value):
            await reader.readexactly(int(value))
    return int(head[9:12])


class _Connection(asyncio.Protocol):
    body = b""
    """Of the last answer."""
    _transport: asyncio.Transport
    _answer: asyncio.Future[int]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not one by its class
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, message: bytes) -> asyncio.Future[int]:
        """Send a request; the status of what comes."""
        self._answer = self._loop.create_future()
        self.body = b""
        self._transport.write(message)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server ended the connection"))

    def close(self) -> None:
        """End it."""
        self._transport.close()
