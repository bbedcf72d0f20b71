"""The demo as it is started by `make demo`, on ports of its own, and a user with a browser."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import httpx
from msgspec import Struct

from deploy.dev.demo import variables
from deploy.dev.servers import dies_with_parent, free_port
from tests.system.http import Caller

ROOT: Final = Path(__file__).parents[2]
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
_CSRF: Final = re.compile(r'name="csrf" value="([^"]+)"')
_NEXT: Final = re.compile(r'name="next" value="([^"]*)"')


class Demo(Struct, frozen=True):
    """Where the three are, the tokens of this installation, and its folder."""

    grantbook: str
    issuer: str
    mcp: str
    variables: dict[str, str]
    data: Path

    def admin(self) -> Caller:
        """An admin, at Grantbook."""
        return Caller(self.grantbook, self.variables["GRANTBOOK_ADMIN_TOKEN"])

    def idp(self) -> Caller:
        """The identity provider's own access, for tests that make things up."""
        return Caller(self.grantbook, self.variables["GRANTBOOK_IDP_TOKEN"])


class Refused(Exception):
    """The identity provider showed a page instead of sending the user on. Says what it shows."""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Demo]:
    """All three, for as long as this is open."""
    ports = [free_port() for _ in range(3)]
    names = ("--port", "--idp-port", "--mcp-port")
    arguments = [text for name, port in zip(names, ports, strict=True) for text in (name, str(port))]
    log = folder / "demo.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.dev", "demo", "--quiet", "--data", str(folder / "data"), *arguments],
            cwd=ROOT,
            stdout=out,
            stderr=out,
            preexec_fn=dies_with_parent(signal.SIGTERM),
        )
    demo = None
    try:
        until = time.monotonic() + START_SECONDS
        mcp = f"http://127.0.0.1:{ports[2]}/mcp"
        while not answers(mcp):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        demo = Demo(
            f"http://127.0.0.1:{ports[0]}",
            f"http://127.0.0.1:{ports[1]}",
            mcp,
            variables(folder / "data" / "dev.env"),
            folder / "data",
        )
        yield demo
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def answers(url: str) -> bool:
    """Whether somebody answers there."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


_remembered: defaultdict[tuple[str, str], httpx.Cookies] = defaultdict(httpx.Cookies)
"""Cookies of a user's browser, by site and user: a login takes the identity provider a tenth of a second."""


async def consent(url: str, user: str, *, decision: str = "allow") -> str:
    """What a user does whom an agent sends to a URL: log in, look, decide. Where the browser is sent then."""
    cookies = _remembered[url.partition("/authorize")[0], user]
    async with httpx.AsyncClient(timeout=10, follow_redirects=False, cookies=cookies) as browser:
        page = await browser.get(url)
        while True:
            if page.status_code in {302, 303}:
                place = urljoin(str(page.url), page.headers["location"])
                if not place.startswith(url.partition("/authorize")[0] + "/"):
                    return place  # to the agent
                page = await browser.get(place)
            elif page.status_code == 200 and 'name="password"' in page.text:
                login = {
                    "csrf": _CSRF.findall(page.text)[0],
                    "next": unescape(_NEXT.findall(page.text)[0]),
                    "username": user,
                    "password": f"{user}-password",
                }
                page = await browser.post(urljoin(str(page.url), "/login"), data=login)
                cookies.update(browser.cookies)
            elif page.status_code == 200 and 'value="allow"' in page.text:
                sent = {"csrf": _CSRF.findall(page.text)[0], "decision": decision}
                page = await browser.post(str(page.url), data=sent)
            else:
                raise Refused(" ".join(re.sub(r"<[^>]*>", " ", page.text).split()))


async def eventually_answers(url: str) -> None:
    """Wait until somebody answers there."""
    async with asyncio.timeout(START_SECONDS):
        while not await asyncio.to_thread(answers, url):
            await asyncio.sleep(0.1)
