"""Data keys of people: one a person, whoever needs it first."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import pytest

from grantbook import sealed, subjects
from grantbook.sdk import connection
from registry import streams
from registry.buckets import Bucket
from registry.keys import Seals
from tests.registry.conftest import MAX_BYTES, new_id

PEOPLE: Final = 30


@pytest.fixture
async def buckets(nats_cluster_urls: list[str]) -> AsyncIterator[list[Bucket]]:
    """The bucket of keys as the registries of a cluster have it, each at a node of its own."""
    async with AsyncExitStack() as stack:
        found = []
        for url in nats_cluster_urls:
            client = await connection.connect(url, name="test")
            stack.push_async_callback(client.close)
            await streams.ensure(client, replicas=3, log_max_bytes=MAX_BYTES)
            found.append(await stack.enter_async_context(Bucket(client, subjects.USER_KEYS, new_id=new_id)))
        yield found


async def test_registries_that_need_a_persons_key_at_once_agree_on_one(buckets: list[Bucket]) -> None:
    """Users who let two agents in at once: both grants are recorded, and both names can be opened, and erased.

    On three nodes a write that finds another under way is refused before anybody can say what that one wrote.
    """
    registries = [Seals(bucket, random=secrets.token_bytes) for bucket in buckets]
    for number in range(PEOPLE):
        user = f"user-{number}"
        names = await asyncio.gather(*(each.username(user, "ada") for each in registries for _ in range(2)))
        entry = await buckets[0].get(sealed.user_key_id(user))
        assert entry is not None
        assert entry.value is not None
        assert {sealed.unseal(each, entry.value) for each in names} == {b"ada"}
