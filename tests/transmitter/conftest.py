from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.sdk.given import opened_log
from tests.transmitter.given import Receiver, Transmitter, transmitting


@pytest.fixture
async def log(nats_url: str) -> AsyncIterator[Client]:
    """A connection to a NATS that has the register's streams, empty."""
    async with opened_log(nats_url) as connection:
        yield connection


@pytest.fixture
async def transmitter(log: Client, nats_url: str, tmp_path: Path) -> AsyncIterator[Transmitter]:
    """A transmitter at work on that log."""
    async with transmitting(nats_url, tmp_path) as it:
        yield it


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that takes whatever is pushed to it."""
    it = Receiver()
    async with it.listening():
        yield it
