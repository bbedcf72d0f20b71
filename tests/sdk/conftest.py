from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from tests.sdk.given import opened_log


@pytest.fixture
async def log(nats_url: str) -> AsyncIterator[Client]:
    """A connection to a NATS that has the register's streams, empty."""
    async with opened_log(nats_url) as connection:
        yield connection
