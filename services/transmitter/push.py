"""One push of a SET to its receiver (RFC 8935): what is sent, and what the answer means."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Final, Literal

import httpx
import msgspec
from msgspec import Struct

from transmitter.keys import TYP
from transmitter.reach import OutOfReach, Reach

PUSH_SECONDS: Final = 10.0
"""For a push, from the look-up of the host's name to the end of the answer."""
MAX_ANSWER_BYTES: Final = 4_096
MAX_RETRY_AFTER_SECONDS: Final = 3_600.0
NOT_OF_THE_SET: Final = frozenset(
    {"invalid_key", "invalid_issuer", "invalid_audience", "authentication_failed", "access_denied"}
)
"""Errors of RFC 8935 section 2.4 that say nothing against the SET: it is sent again until the receiver is set right. A
key that it does not know may be one that it fetches with its next look at our key set."""

Outcome = Literal["taken", "refused", "failed"]


class Answer(Struct, frozen=True):
    """What became of a push: the receiver took the SET, refuses this SET, or could not be brought to take any.

    `why` is for the operator's log; `after_seconds` is the receiver's wish for when to come again.
    """

    outcome: Outcome
    why: str = ""
    after_seconds: float = 0.0


class _Error(Struct, frozen=True):
    err: str
    description: str = ""


@contextlib.asynccontextmanager
async def opened_client(tls: ssl.SSLContext) -> AsyncIterator[httpx.AsyncClient]:
    """A client for one stream. Never shared: connections are to addresses, and their certificates of one host."""
    async with httpx.AsyncClient(verify=tls, trust_env=False, follow_redirects=False, timeout=PUSH_SECONDS) as client:
        yield client


async def push(client: httpx.AsyncClient, reach: Reach, url: str, token: str, *, authorization: str | None) -> Answer:
    """Send a SET to a URL. Never raises for what the receiver, or the network, does."""
    try:
        async with asyncio.timeout(PUSH_SECONDS):
            return await _sent(client, reach, httpx.URL(url), token, authorization)
    except TimeoutError:
        return Answer("failed", f"no answer within {PUSH_SECONDS:g} s")
    except OutOfReach as error:
        return Answer("failed", str(error))
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return Answer("failed", type(error).__name__)


async def _sent(
    client: httpx.AsyncClient, reach: Reach, url: httpx.URL, token: str, authorization: str | None
) -> Answer:
    address = await reach.address_of(url)
    headers = {
        "Host": url.netloc.decode(),
        "Content-Type": f"application/{TYP}",
        "Accept": "application/json",
        "User-Agent": "grantbook-transmitter",
    }
    if authorization is not None:
        headers["Authorization"] = authorization
    # To the address that was checked, as the host that was meant: its certificate is still held against the name.
    request = client.build_request(
        "POST",
        url.copy_with(host=address),
        content=token,
        headers=headers,
        extensions={"sni_hostname": url.host} if url.scheme == "https" else {},
    )
    answer = await client.send(request, stream=True)
    try:
        if answer.is_success:
            return Answer("taken")
        if answer.status_code == 400:
            return _refusal(await _start_of(answer))
        return Answer("failed", f"answered {answer.status_code}", _after_seconds(answer))
    finally:
        await answer.aclose()


async def _start_of(answer: httpx.Response) -> bytes:
    body = b""
    async for part in answer.aiter_raw(MAX_ANSWER_BYTES):
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            break
    return body


def _refusal(body: bytes) -> Answer:
    """RFC 8935 section 2.3: only a body with `err` is about the SET; any other 400 may be a proxy's."""
    try:
        error = msgspec.json.decode(body, type=_Error)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Answer("failed", "answered 400")
    why = f"answered 400: {error.err[:64]}: {error.description[:256]}"
    return Answer("failed" if error.err in NOT_OF_THE_SET else "refused", why)


def _after_seconds(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0
