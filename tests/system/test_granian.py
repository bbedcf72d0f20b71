"""The applications are ASGI applications like any other: another server runs them, too."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.dev import processes
from deploy.dev.processes import Product
from deploy.dev.servers import free_port
from tests.system.http import Answer, Caller

READY_SECONDS = 20.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    with processes.servers(tmp_path) as servers:
        yield servers


@pytest.mark.parametrize("room", ["registry", "projector"])
def test_granian_serves_it(product: Product, room: str) -> None:
    """Operators who run granian: the same application, with its start and its end."""
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--factory", "--port", str(port)]
    with subprocess.Popen([*command, f"{room}.app:create_app"], env=product.environment) as server:
        try:
            anyone = Caller(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + READY_SECONDS
            while not (answer := _asked(anyone)):
                assert time.monotonic() < deadline
                time.sleep(POLL_SECONDS)
            assert answer.status == 200
            if room == "registry":
                assert (
                    anyone("POST", "/auth/connect/register", {"redirect_uris": ["http://localhost/cb"]}).status == 201
                )
            else:
                reading = Caller(anyone.url, product.tokens["admin"])
                assert reading("GET", "/admin/v1/clients").body["items"] == []
        finally:
            server.terminate()
            server.wait(STOP_SECONDS)


def _asked(anyone: Caller) -> Answer | None:
    try:
        return anyone("GET", "/healthz")
    except OSError:
        return None
