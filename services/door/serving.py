"""How every application of the house is served: uvicorn, with our limits, and with open streams ended at the end."""

from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
from litestar import Litestar

SHUTDOWN_SECONDS: Final = 15
"""Requests that are under way are finished within it. Supervisors should wait a little longer before they kill."""
BACKLOG_CONNECTIONS: Final = 2_048
KEEP_ALIVE_SECONDS: Final = 75


class Server(uvicorn.Server):
    """A server that, told to stop, first has the application end what would never end by itself."""

    def __init__(self, application: Litestar, *, host: str, port: int, on_exit: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                application,
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
                lifespan="on",
            )
        )
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: no new requests, and an end to streams."""
        self._on_exit()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """End without a signal, as with one."""
        self._on_exit()
        self.should_exit = True


def serve(application: Litestar, *, host: str, port: int, on_exit: Callable[[], None] = lambda: None) -> bool:
    """Serve until told to stop. False when it could not start; why was logged."""
    server = Server(application, host=host, port=port, on_exit=on_exit)
    server.run()
    return server.started
