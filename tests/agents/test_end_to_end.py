"""A real agent, built on the MCP project's SDK for JavaScript, feels a revocation on its next call."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.dev.servers import dies_with_parent
from tests.examples.demo import Demo, consent, running

pytestmark = [pytest.mark.agents, pytest.mark.timeout(150)]

HERE: Final = Path(__file__).parent
SECONDS: Final = 40.0


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("demo")) as it:
        yield it


class Agent:
    """The agent as a process, and its user with a browser."""

    def __init__(self, demo: Demo, user: str) -> None:
        self.consents = 0
        self._demo = demo
        self._user = user
        self._process: asyncio.subprocess.Process | None = None

    async def call(self, tool: str) -> dict[str, Any]:
        """Call a tool; where the agent sends the user somewhere meanwhile, the user goes, and consents."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                "node",
                str(HERE / "call_with_sdk.mjs"),
                self._demo.mcp,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
        said = await self._say(tool)
        while "authorize" in said:
            place = await consent(said["authorize"], self._user)
            self.consents += 1
            said = await self._say(place)
        return said

    async def _say(self, text: str) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps(text) + "\n").encode())
        line = await asyncio.wait_for(self._process.stdout.readline(), SECONDS)
        assert line, "the agent ended"
        said: dict[str, Any] = json.loads(line)
        return said

    async def end(self) -> None:
        """Let it go."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), SECONDS)


async def test_an_agent_in_javascript_comes_back_by_itself(demo: Demo) -> None:
    """Users of agents on this SDK: revoked, it asks again; deleted, it registers anew; others notice nothing."""
    agent, other = Agent(demo, "ada"), Agent(demo, "grace")
    first, others = await agent.call("whoami"), await other.call("whoami")
    assert (first["result"][0]["text"], others["result"][0]["text"]) == ("ada", "grace")
    assert (agent.consents, first["registered"], first["refused"]) == (1, 1, 1)
    again = await agent.call("whoami")
    assert (agent.consents, again["refused"]) == (1, 1)

    # Revoked: the next call is refused, its refresh too, and the user is asked again. Same client.
    admin = demo.admin()
    path = f"/admin/v1/clients/{first['client']}"
    [grant] = (await asyncio.to_thread(admin, "GET", f"{path}/grants")).body["items"]
    answer = await asyncio.to_thread(admin, "POST", f"{path}/grants/{grant['grant_id']}/revoke", {})
    assert answer.status == 204
    await delivered(demo, answer.position)
    second = await agent.call("whoami")
    assert (agent.consents, second["refused"], second["registered"]) == (2, 2, 1)
    assert second["client"] == first["client"]

    # Deleted: the next call is refused, its refresh is answered `invalid_client`, and it registers anew.
    answer = await asyncio.to_thread(admin, "DELETE", path)
    assert answer.status == 204
    await delivered(demo, answer.position)
    third = await agent.call("whoami")
    assert (agent.consents, third["refused"], third["registered"]) == (3, 3, 2)
    assert third["client"] != first["client"]
    assert third["result"][0]["text"] == "ada"

    untouched = await other.call("whoami")
    assert (untouched["client"], untouched["refused"], other.consents) == (others["client"], 1, 1)
    await agent.end()
    await other.end()


async def test_a_suspended_agent_does_not_register_anew(demo: Demo) -> None:
    """Admins: who is cut off for a while does not come in by another door, and is back when it is let in again."""
    agent = Agent(demo, "ada")
    first = await agent.call("whoami")
    admin = demo.admin()
    path = f"/admin/v1/clients/{first['client']}"
    answer = await asyncio.to_thread(admin, "POST", f"{path}/suspend", {})
    await delivered(demo, answer.position)
    refresh = await asyncio.to_thread(refreshed, demo, first)
    assert refresh == "invalid_grant"
    answer = await asyncio.to_thread(admin, "POST", f"{path}/resume", {})
    await delivered(demo, answer.position)
    again = await agent.call("whoami")
    assert (again["client"], again["registered"]) == (first["client"], 1)
    await agent.end()


def refreshed(demo: Demo, said: dict[str, Any]) -> str:
    """The error with which a refresh is answered."""
    import httpx  # noqa: PLC0415  only here

    form = {
        "grant_type": "refresh_token",
        "refresh_token": said["tokens"]["refresh_token"],
        "client_id": said["client"],
    }
    return str(httpx.post(f"{demo.issuer}/token", data=form).json().get("error"))


async def delivered(demo: Demo, position: str) -> None:
    """Wait until the MCP server says that it has the revocation."""
    async with asyncio.timeout(SECONDS):
        while True:
            told = await asyncio.to_thread(demo.admin(), "GET", f"/admin/v1/revocations/{position}/delivery")
            if told.status == 200 and told.body["complete"]:
                return
            await asyncio.sleep(0.02)
