"""A network that can be cut: a TCP proxy on loopback, in this process, between a client and a server."""

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Any, Self

CHUNK_BYTES = 65_536


class Partition:
    """Passes bytes on, holds them back, or cuts every connection. Open it with `async with`."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._open = asyncio.Event()
        self._open.set()
        self._listening: socket.socket | None = None
        self._serving: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        """Where clients connect to."""

    async def __aenter__(self) -> Self:
        self._listen()
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
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for writer in self._writers:
            writer.transport.abort()

    async def heal(self) -> None:
        """Let everything pass again."""
        self._open.set()
        if self._listening is None:
            self._listen()

    def _listen(self) -> None:
        """`asyncio.start_server` would lose a connection that it has accepted when it is closed (CPython 3.11)."""
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(ConnectionError, BlockingIOError):  # who asked has gone
            connection, _ = listening.accept()
            task = asyncio.create_task(self._serve(connection))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:  # closed twice, but also where it never came to be a stream
            reader, writer = await asyncio.open_connection(sock=connection)
            try:
                await self._join(reader, writer)
            finally:
                writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            if self._listening is None:  # it was cut meanwhile: this one came through behind the scissors
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
