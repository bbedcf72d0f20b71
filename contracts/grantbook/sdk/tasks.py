"""Ending tasks so that they have ended."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

AGAIN_SECONDS: Final = 0.5


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait until they are done.

    Again and again: up to Python 3.11 `asyncio.wait_for` loses a cancellation that comes as what it waits for is done.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)


def heed() -> None:
    """Raise the cancellation of the current task, should it have been lost: see `end`.

    For work that goes on until it is interrupted, once it has waited for something that another library waited for.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of it, until one raises that; then the others have ended, for certain.

    A `TaskGroup` cancels each once, and would wait for ever for one that lost that: see `end`.
    """
    tasks = [asyncio.create_task(each) for each in work]
    cancelled = False
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        while not all(each.done() for each in tasks):
            try:
                await end(*tasks)
            except asyncio.CancelledError:
                cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    for failed in [each.exception() for each in tasks if not each.cancelled()]:
        if failed is not None:
            raise failed
