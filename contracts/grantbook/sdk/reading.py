"""Reading a stretch of a stream: where a moment stands in it, and everything from one place to another."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Final

from grantbook import as_of, positions, subjects
from grantbook.admin import ClientAsOf
from grantbook.sdk.log import LogReader, Raw, StreamState, Unavailable, assert_dense

QUIET_SECONDS: Final = 10.0
"""How long a read waits for what must come, before it gives up."""
_NEXT_SECONDS: Final = 1.0


async def before(reader: LogReader, state: StreamState, moment: datetime) -> int:
    """Sequence of the last message stored before `moment`; one less than `state.first` where there is none.

    Searched for on the leader, in a few reads: a consumer that starts by time on a node that is behind could start too
    late, and would not say where. Raises `Unavailable`.
    """
    low, high = max(state.first, 1), state.last + 1
    while low < high:
        middle = (low + high) // 2
        message = await reader.at_on_leader(middle)
        if message is None or message.stored_at < moment:
            low = middle + 1
        else:
            high = middle
    return low - 1


async def stretch(
    reader: LogReader, after: int, until: int, filters: Sequence[str] = ()
) -> AsyncIterator[Sequence[Raw]]:
    """Batches of the messages behind sequence `after`, up to and with `until`, in order.

    The end is told by the stream's leader, never by a consumer that says that nothing is pending: it may be behind.
    `until` must not lie behind the stream's end. Raises `Unavailable`, and `Gap` where an unfiltered read of a stream
    that keeps everything lacks something.
    """
    end = until
    if filters:
        last = await reader.last_on_leader(filters)
        end = min(until, max((each.sequence for each in last.values()), default=0))
    if end <= after:
        return
    loop = asyncio.get_running_loop()
    heard_at = loop.time()
    async with reader.follow(after, filters) as follower:
        while after < end:
            messages = await follower.next(_NEXT_SECONDS)
            if not messages:
                if loop.time() - heard_at >= QUIET_SECONDS:
                    raise Unavailable(follower.trouble or f"stream {reader.stream} went quiet at {after} of {end}")
                continue
            if not filters:
                assert_dense(messages, after)
            after = messages[-1].sequence
            yield messages if after <= end else [each for each in messages if each.sequence <= until]
            heard_at = loop.time()  # not before: whoever reads may take its time


async def moment(log: LogReader, when: positions.Position | datetime) -> as_of.Moment:
    """The place in the log that a position or a time (UTC) means: up to and with that position, or that time.

    Raises `ValueError` for a position of another log, or one that is not there yet, and `Unavailable`.
    """
    state = await log.state()
    if isinstance(when, datetime):
        sequence = await before(log, state, when + timedelta.resolution)
        return as_of.Moment(positions.Position("log", state.identity, sequence), when)
    if when.kind != "log" or when.identity != state.identity:
        raise ValueError(f"{when} is a position of another log; this one's are like log-{state.identity}-{state.last}")
    if when.sequence > state.last:
        raise ValueError(f"{when} is not there yet; the log ends at {state.last}")
    message = await log.at_on_leader(when.sequence) if when.sequence > 0 else None
    if message is None:
        raise ValueError(f"{when} names no event")
    return as_of.Moment(when, message.stored_at)


async def client_as_of(log: LogReader, client: str, when: positions.Position | datetime) -> ClientAsOf | None:
    """A client, by its subject token, and its grants as they were then. None where it was not registered yet.

    Reads all that the log has about the client and about users' cut-offs up to then, and keeps the client's grants in
    memory. Raises `ValueError` for a position that means nothing here, `Unavailable`,
    `wire.Malformed`, and `as_of.CannotTell`.
    """
    there = await moment(log, when)
    history = as_of.History()
    until = there.position.sequence
    # Two readers, merged by place: see `LogReader.follow` on filters.
    async with (
        aclosing(_each(stretch(log, 0, until, (subjects.USER_GATES,)))) as cut_offs,
        aclosing(_each(stretch(log, 0, until, (subjects.everything_of_client(client),)))) as of_client,
    ):
        cut_off = await anext(cut_offs, None)
        async for each in of_client:
            while cut_off is not None and cut_off.sequence < each.sequence:
                history.apply(cut_off.recorded())
                cut_off = await anext(cut_offs, None)
            history.apply(each.recorded())
        while cut_off is not None:
            history.apply(cut_off.recorded())
            cut_off = await anext(cut_offs, None)
    return history.as_of(there)


async def _each(pages: AsyncIterator[Sequence[Raw]]) -> AsyncGenerator[Raw, None]:
    async for page in pages:
        for each in page:
            yield each
        await asyncio.sleep(0)
