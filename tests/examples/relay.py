"""Stands between the identity provider and Grantbook, and is away when a test says so."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx

FORWARD_SECONDS: Final = 20.0


class Relay(ThreadingHTTPServer):
    """Hands every request on, but for one that is to fail."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self._lock = threading.Lock()
        self._failing: tuple[str, str] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def fail_once(self, method: str, containing: str) -> None:
        """The next request of that kind is answered with 503, and goes no further."""
        with self._lock:
            self._failing = (method, containing)

    @property
    def failed(self) -> bool:
        """Whether the request that was to fail has come."""
        with self._lock:
            return self._failing is None

    def fails(self, method: str, path: str) -> bool:
        """Whether this is the request that is to fail."""
        with self._lock:
            if self._failing is None or self._failing[0] != method or self._failing[1] not in path:
                return False
            self._failing = None
            return True


class _Handler(BaseHTTPRequestHandler):
    server: Relay
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing."""

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.fails(self.command, self.path):
            self._answer(503, b"", "text/plain")
            return
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        url = self.server.target + self.path
        answer = httpx.request(self.command, url, content=body, headers=headers, timeout=FORWARD_SECONDS)
        self._answer(answer.status_code, answer.content, answer.headers.get("Content-Type", "text/plain"))

    def _answer(self, status: int, content: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _forward  # noqa: N815  the base class's names


@contextlib.contextmanager
def relaying(target: str) -> Iterator[Relay]:
    """A relay to `target`, for as long as this is open."""
    with Relay(target) as relay:
        thread = threading.Thread(target=relay.serve_forever, daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            relay.shutdown()
            thread.join()
