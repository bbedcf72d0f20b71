"""How every application of the house is served: uvicorn, with our limits, and with open streams ended at the end."""

import asyncio
import gc
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from litestar import Litestar
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

SHUTDOWN_SECONDS: Final = 15
"""Requests that are under way are finished within it. Supervisors should wait a little longer before they kill."""
BACKLOG_CONNECTIONS: Final = 2_048
KEEP_ALIVE_SECONDS: Final = 75
MAX_HEAD_BYTES: Final = 65_536
"""Of a request line and its headers, give or take what arrives at once."""
CHUNKING_SHARE: Final = 8
"""A body in chunks may take so many bytes for each byte of content: six, in chunks of one."""
MAX_PIPELINED: Final = 16
"""Requests that wait on a connection for the one before them."""
HUNG_SECONDS: Final = 30
"""A worker that gives no sign of life for so long is replaced. One that starts gives none until it has imported all."""
HEAD_SECONDS: Final = 10.0
"""For the request line and headers to arrive, from their first byte on."""
BODY_SECONDS: Final = 30.0
"""For the body to arrive: a connection that trickles holds memory, and answers nobody."""
GARBAGE_OBJECTS: Final = 50_000
"""So many more objects than before, a few megabytes, and the youngest are looked at."""
GARBAGE_GENERATIONS: Final = 20


ABORT: Final = "grantbook.abort"
"""Extension of the scope: what ends a connection at once."""


class _Guarded(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever, and for as much as ever comes."""

    _head_bytes = 0
    _in_head = True
    _message_begun = False
    _message_ended = False
    _around_bytes = 0
    """Received since the head, less what its content may take: trailers, and what chunks have around them."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)  # also for who connects, and says nothing

    def data_received(self, data: bytes) -> None:
        self._message_ended = False
        super().data_received(data)
        if self._timer is None and (self._message_begun or not self._message_ended):
            # Most requests arrive whole: only what has not ended needs a timer.
            self._timer = self.loop.call_later(HEAD_SECONDS if self._in_head else BODY_SECONDS, self._too_slow)
        # What ended a message was its body, or a head of a proper size: nothing of it counts for the next.
        if self._in_head and not self._message_ended and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's headers are too large.")
        elif not self._message_ended and not self.transport.is_closing():
            self._around_bytes += len(data)
            if self._around_bytes > 2 * MAX_HEAD_BYTES:
                self.transport.abort()  # an answer may be under way already

    def on_message_begin(self) -> None:
        self._message_begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes, self._around_bytes = False, 0, 0
        self._stop_timer()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests wait")  # ends the connection, as whatever cannot be read does
        # For an answer that nobody takes: closing would wait until it was taken.
        cast("dict[str, Any]", self.scope.setdefault("extensions", {}))[ABORT] = self.transport.abort
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._around_bytes -= CHUNKING_SHARE * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = self._message_ended = True
        self._message_begun = False
        self._stop_timer()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self.transport.abort()


class Server(uvicorn.Server):
    """A server that, told to stop, first has the application end what would never end by itself."""

    def __init__(self, application: Litestar, *, host: str, port: int, on_exit: Callable[[], None]) -> None:
        super().__init__(_config(application, host=host, port=port))
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: no new requests, and an end to streams."""
        self._on_exit()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """End without a signal, as with one."""
        self._on_exit()
        self.should_exit = True


def _config(application: Litestar | str, *, host: str, port: int, workers: int = 1) -> uvicorn.Config:
    """How uvicorn serves an application, or what the function makes that a text names as `module:function`."""
    return uvicorn.Config(
        cast("Any", application),
        factory=isinstance(application, str),
        workers=workers,
        http=_Guarded,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # nobody's word for where a request comes from
        backlog=BACKLOG_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_worker_healthcheck=HUNG_SECONDS,
        lifespan="on",
    )


def collect_garbage_rarely() -> None:
    """Have Python look for reference cycles less often than by default: what work leaves behind here has next to none.

    Looking takes a tenth of the time of a process that makes many objects. What is there at the start is left out.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, GARBAGE_GENERATIONS, GARBAGE_GENERATIONS)


def serve(application: Litestar, *, host: str, port: int, on_exit: Callable[[], None] = lambda: None) -> bool:
    """Serve until told to stop. False when it could not start; why was logged."""
    collect_garbage_rarely()
    server = Server(application, host=host, port=port, on_exit=on_exit)
    server.run()
    return server.started


def serve_together(factory: str, *, host: str, port: int, workers: int) -> bool:
    """Serve by several processes on one port until told to stop; uvicorn replaces one that dies, or hangs.

    `factory` is `module:function`: each process calls it for its application. False when one could not start.
    """
    config = _config(factory, host=host, port=port, workers=workers)
    together = Multiprocess(config, sockets=[config.bind_socket()])
    together.run()
    return not any(each.exitcode == STARTUP_FAILURE for each in together.processes)


def be_a_worker() -> None:
    """For the factory of `serve_together`: what each process does once. It ends with the one that started it."""
    collect_garbage_rarely()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=end_with_it, name="ends with its parent", daemon=True).start()
