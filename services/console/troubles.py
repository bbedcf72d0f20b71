"""What is wrong right now, for the banner on top of every page: asked of the services themselves, seldom."""

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec import UNSET, Struct

from console.api import Api, Away, Refused
from grantbook.admin import Status

KEPT_SECONDS: Final = 2.0
ASK_SECONDS: Final = 1.5
"""A page is not held up for longer than this by a service that does not answer."""
MAX_BEHIND_SECONDS: Final = 5.0
READ_MODELS: Final = {"log": "The lists of clients and grants", "activity": "The times of last activity"}


class Found(Struct, frozen=True):
    """What was found at a moment of the monotonic clock."""

    at: float
    sentences: list[str]


class Troubles:
    """Asks the read API for its status at most every two seconds, however many pages are looked at."""

    def __init__(self, api: Api, *, clock: Callable[[], float]) -> None:
        self._api = api
        self._clock = clock
        self._found: Found | None = None
        self._asking: asyncio.Task[list[str]] | None = None

    async def now(self, admin: str) -> list[str]:
        """What is wrong, in sentences that hold nothing from outside; nothing when all is well."""
        if self._found is not None and self._clock() - self._found.at < KEPT_SECONDS:
            return self._found.sentences
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(admin))
        # Shielded: one browser that leaves must not take the answer from the others.
        sentences = await asyncio.shield(self._asking)
        self._found = Found(self._clock(), sentences)
        return sentences

    async def _ask(self, admin: str) -> list[str]:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                answer = await self._api.read(admin, "/admin/v1/status", Status)
        except (Away, Refused, TimeoutError):
            return ["The lists cannot be read right now. Who is cut off stays cut off, and cutting off still works."]
        return sentences_of(answer.content)


def sentences_of(status: Status) -> list[str]:
    """What is wrong in a status."""
    found = []
    if status.log_position is UNSET:
        found.append("The log cannot be reached: nothing can be revoked or registered until it is back.")
    for name, model in status.read_models.items():
        about = READ_MODELS.get(name, "A read model")
        if model.halted is not UNSET:
            found.append(f"{about} have halted, and are as they were then. The status page says why.")
        elif model.lag_seconds > MAX_BEHIND_SECONDS:
            found.append(f"{about} are {model.lag_seconds:.0f} seconds behind.")
    if status.subscribers is not UNSET and (gone := sum(each.state == "gone" for each in status.subscribers)):
        found.append(
            "A token service does not answer: nobody knows which tokens it still honours."
            if gone == 1
            else f"{gone} token services do not answer: nobody knows which tokens they still honour."
        )
    return found
