"""A network that can be cut: a TCP proxy on loopback, in this process, between a client and a server."""

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Self

CHUNK_BYTES = 65_536


class Partition:
    """Passes bytes on, holds them back, or cuts every connection. Open it with `async with`."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        """Where clients connect to."""

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()
        self._open.set()
        while self._serving:
            await asyncio.wait(self._serving)

    async def hold(self) -> None:
        """Nothing passes any more, and nobody is told: what a cable that was pulled looks like."""
        self._open.clear()

    async def cut(self) -> None:
        """End every connection, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def heal(self) -> None:
        """Let everything pass again."""
        self._open.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._join(reader, writer)
        finally:
            self._serving.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            if self._server is None:  # it was cut meanwhile: this one came through behind the scissors
                to_writer.transport.abort()
                return
            both = {writer, to_writer}
            self._writers |= both
            try:
                await asyncio.gather(self._pass(reader, to_writer), self._pass(to_reader, writer))
            finally:
                self._writers -= both
                for each in both:
                    each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
