"""Several processes that serve one port together are one registry to whoever asks."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from tests.system.http import Caller

SECONDS = 60.0
POLL_SECONDS = 0.05
REGISTRATION = {"redirect_uris": ["http://localhost:3000/callback"], "token_endpoint_auth_method": "none"}


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    with processes.servers(tmp_path) as servers:
        yield servers


@pytest.fixture
def registry(product: Product) -> Iterator[Service]:
    """Two workers behind one port."""
    service = Service(product, "registry", "serve", "--workers", "2")
    service.start()
    try:
        service.wait_ready()
        until(lambda: len(workers_of(service)) == 2)
        yield service
    finally:
        service.stop()


def workers_of(service: Service) -> list[psutil.Process]:
    """Those of its processes that are workers."""
    found = []
    for each in psutil.Process(service.pid).children(recursive=True):
        with suppress(psutil.Error):  # one that was just killed
            if "spawn_main" in " ".join(each.cmdline()):
                found.append(each)
    return found


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)


def registered(anyone: Caller) -> bool:
    with suppress(OSError):  # a connection that the killed worker had
        return anyone("POST", "/auth/connect/register", REGISTRATION).status == 201
    return False


def counted(service: Service, product: Product) -> int:
    """Registrations, as `/metrics` has them."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}/metrics", headers={"Authorization": f"Bearer {product.tokens['ops']}"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        text = answer.read().decode()
    found = re.findall(r'requests_total\{.*path="/auth/connect/register",status_code="201"\} (\S+)', text)
    return int(sum(float(each) for each in found))


@pytest.mark.faults
def test_a_worker_that_dies_is_replaced_and_the_others_go_on(product: Product, registry: Service) -> None:
    """Agents: the loss of a process is at most the loss of its connections, and metrics tell of all workers."""
    anyone = Caller(f"http://127.0.0.1:{registry.port}")
    assert all(registered(anyone) for _ in range(20))
    assert counted(registry, product) == 20
    workers = workers_of(registry)
    workers[0].kill()
    until(lambda: registered(anyone))
    until(lambda: len({each.pid for each in workers_of(registry)} - {workers[0].pid}) == 2)
    until(lambda: registered(anyone))


@pytest.mark.faults
def test_workers_end_with_the_process_that_started_them(registry: Service) -> None:
    """Operators: after a crash nothing holds the port, and a restart works."""
    workers = workers_of(registry)
    registry.kill()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert alive == []
    registry.start()
    registry.wait_ready()


def test_workers_let_in_together_what_one_would(product: Product) -> None:
    """Operators: a limit is a limit, however many processes serve."""
    product.environment["GRANTBOOK_REGISTRATION_LIMIT"] = "0.001/200"
    product.environment["GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE"] = "0.001/200"
    with processes.service(product, "registry", "serve", "--workers", "2") as port:
        anyone = Caller(f"http://127.0.0.1:{port}")
        statuses = [anyone("POST", "/auth/connect/register", REGISTRATION).status for _ in range(300)]
    assert set(statuses) == {201, 429}
    assert statuses.count(201) <= 200
