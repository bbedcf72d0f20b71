"""Tasks that have to have ended."""

import asyncio

import pytest

from grantbook.sdk.tasks import AGAIN_SECONDS, end, heed, together

SECONDS = 10 * AGAIN_SECONDS


async def loses_one(begun: list[str]) -> None:
    """As `asyncio.wait_for` may do with a cancellation, up to Python 3.11."""
    begun.append("")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        begun.append("lost")
    await asyncio.Event().wait()


async def fails(begun: list[str]) -> None:
    while not begun:
        await asyncio.sleep(0)
    raise ValueError("why")


async def test_what_is_done_together_ends_together_when_one_part_fails() -> None:
    """Protects a feed that starts anew: what it began before must not go on beside it, nor hold it up."""
    begun: list[str] = []
    async with asyncio.timeout(SECONDS):
        with pytest.raises(ValueError, match="why"):
            await together(loses_one(begun), fails(begun))
    assert begun == ["", "lost"]
    assert len(asyncio.all_tasks()) == 1


async def test_what_is_done_together_can_be_ended_though_a_part_loses_that() -> None:
    """Protects who closes a feed: it returns, and nothing of it is left."""
    begun: list[str] = []
    whole = asyncio.create_task(together(loses_one(begun), loses_one(begun)))
    async with asyncio.timeout(SECONDS):
        while len(begun) < 2:
            await asyncio.sleep(0)
        await end(whole)
    assert whole.cancelled()
    assert len(asyncio.all_tasks()) == 1


async def test_a_cancellation_while_the_parts_are_ended_is_not_forgotten() -> None:
    """Protects a caller's time-out, which cancels once: the failure of a part must not swallow it."""
    begun: list[str] = []
    whole = asyncio.create_task(together(loses_one(begun), fails(begun)))
    async with asyncio.timeout(SECONDS):
        while begun != ["", "lost"]:
            await asyncio.sleep(0)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole


async def test_a_cancellation_that_was_lost_is_heeded() -> None:
    """Those who press Ctrl-C as an answer comes: what goes on until it is interrupted ends."""
    answered = asyncio.get_running_loop().create_future()
    went_on = False

    async def work() -> None:
        nonlocal went_on
        await asyncio.wait_for(answered, SECONDS)
        heed()
        went_on = True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    answered.set_result(None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on
    heed()  # nobody cancelled this one
