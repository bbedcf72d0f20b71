"""The server in front of everything, against clients that send too much, or never finish."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from litestar import Litestar, Request, post

from deploy.dev.servers import free_port
from door import serving

DEADLINE_SECONDS = 10


@post("/")
async def size(request: Request[Any, Any, Any]) -> int:
    """How much came."""
    return len(await request.body())


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a server."""
    chosen = free_port()
    server = serving.Server(Litestar([size]), host="127.0.0.1", port=chosen, on_exit=lambda: None)
    task = asyncio.create_task(server._serve())
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not server.started:
            await asyncio.sleep(0.01)
    yield chosen
    server.should_exit = True
    await task


async def sent(port: int, *parts: bytes) -> bytes:
    """What the server answers until it closes the connection."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def test_a_header_without_an_end_is_not_waited_for(port: int) -> None:
    """Operators: memory does not grow with what a stranger sends before anything is known of it."""
    answer = await sent(port, b"POST / HTTP/1.1\r\nX: ", *[b"a" * 65_536] * 50)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


async def test_headers_of_a_usual_size_are_fine(port: int) -> None:
    """Agents: long cookies and tokens of a proxy among them."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: " + b"a" * 30_000
    answer = await sent(port, head, b"\r\nContent-Length: 3\r\n\r\n", b"abc")
    assert answer.startswith(b"HTTP/1.1 201")


async def test_bodies_are_no_headers(port: int) -> None:
    """Token services that report much at once: a large body is taken, in one piece or many, again and again."""
    body = b"a" * 300_000
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + body
    last = request.replace(b"Host: a", b"Host: a\r\nConnection: close")
    answer = await sent(port, request, request, last)
    assert answer.count(b"HTTP/1.1 201") == 3
    assert b" 400 " not in answer


async def test_trailers_without_an_end_are_not_waited_for(port: int) -> None:
    """Operators: headers may come behind a body in chunks, too (RFC 9112 section 7.1.2)."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    assert await sent(port, head, *[b"X: " + b"a" * 65_000 + b"\r\n"] * 200) == b""


async def test_bodies_in_small_chunks_are_fine(port: int) -> None:
    """Reporters that stream: chunks of one byte are slow, and allowed."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await sent(port, head, *[b"1\r\na\r\n" * 10_000] * 10, b"0\r\nX-Trailer: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 201")
    assert answer.endswith(b"100000")


async def test_a_heap_of_requests_at_once_is_not_kept(port: int) -> None:
    """Operators: requests that nobody waits for between cost memory, so a connection has few of them."""
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
    answer = await sent(port, request * 5_000)
    assert answer.count(b"HTTP/1.1 201") <= serving.MAX_PIPELINED + 1


async def test_a_request_that_never_finishes_its_headers_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators: a thousand connections that trickle cost nothing for long."""
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.1)
    assert await sent(port, b"POST / HTTP/1.1\r\nHost: a\r\n") == b""


async def test_who_connects_and_says_nothing_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators: silent connections are few, and not for long."""
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.1)
    assert await sent(port) == b""


async def test_a_request_that_never_finishes_its_body_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators: the same, one step later."""
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.1)
    assert await sent(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc") == b""


async def test_what_begins_behind_a_request_has_its_time_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators: who sends a whole request, and with it the first half of another, is cut off for that one."""
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.1)
    whole = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
    half = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"
    assert (await sent(port, whole + half)).count(b"HTTP/1.1 201") <= 1
    assert (await sent(port, whole + half[:20], half[20:30])).count(b"HTTP/1.1 201") <= 1


async def test_requests_on_one_connection_each_have_their_own_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token services that keep a connection open: it is not cut off between two requests."""
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.1)
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
    async with asyncio.timeout(DEADLINE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(request)
            assert (await reader.readline()).startswith(b"HTTP/1.1 201")
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(1)
            await asyncio.sleep(0.2)  # longer than both limits
        writer.close()
