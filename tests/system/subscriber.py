"""A token service that does nothing else: it asks its feed what it is asked on standard input.

`python -m tests.system.subscriber NAME LIFETIME_SECONDS MAX_STALENESS_SECONDS nats URL`, or `... http URL TOKEN`. Each
line in is a JSON list of questions `[client, grant, user, iat]`; each line out is `{"state": ..., "denied": [...]}`.
"""

import asyncio
import json
import sys
from datetime import timedelta

from grantbook.sdk.revocations import FeedUnavailable, RevocationFeed, Revocations
from grantbook.sdk.revocations_http import HttpRevocationFeed

CATCH_UP_SECONDS = 5.0


def feed_of(name: str, lifetime: str, staleness: str, kind: str, url: str, token: str = "") -> Revocations:
    """The feed that the command line asks for."""
    kept, stale = timedelta(seconds=float(lifetime)), timedelta(seconds=float(staleness))
    if kind == "http":
        return HttpRevocationFeed(
            url, token, kept, max_staleness=stale, catch_up_seconds=CATCH_UP_SECONDS, subscriber=name
        )
    return RevocationFeed(url, kept, max_staleness=stale, catch_up_seconds=CATCH_UP_SECONDS, subscriber=name)


async def main() -> None:
    """Answer until standard input ends."""
    while True:
        try:
            async with feed_of(*sys.argv[1:]) as feed:
                while line := await asyncio.to_thread(sys.stdin.readline):
                    denied = [feed.is_revoked(*question) for question in json.loads(line)]
                    sys.stdout.write(json.dumps({"state": feed.state, "denied": denied}) + "\n")
                    sys.stdout.flush()
                return
        except (FeedUnavailable, OSError):  # cut off at its start: a supervisor would start it again
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())
