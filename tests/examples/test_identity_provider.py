"""The example identity provider is honest: what RFC 6749, 7009, 7636, 7662, 8707, 9068 and 9700 ask for, it does."""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import jwt
import pytest
from msgspec import Struct

from tests.examples.demo import Demo, Refused, consent, running

CALLBACK = "https://agent.example/callback"
SECONDS = 20.0
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("demo")) as it:
        yield it


class Flow(Struct, frozen=True):
    """An agent half-way in: it has a code, and can prove that it asked for it."""

    client: dict[str, Any]
    code: str
    verifier: str

    def form(self, **more: str) -> dict[str, str]:
        """The token request."""
        base = {
            "grant_type": "authorization_code",
            "code": self.code,
            "redirect_uri": CALLBACK,
            "client_id": self.client["client_id"],
            "code_verifier": self.verifier,
        }
        return base | more


async def registered(demo: Demo, **more: Any) -> dict[str, Any]:
    metadata = {
        "redirect_uris": [CALLBACK],
        "token_endpoint_auth_method": "none",
        "grant_types": ["authorization_code", "refresh_token"],
        "client_name": "Agent",
    }
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        answer = await http.post(f"{demo.grantbook}/auth/connect/register", json=metadata | more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def asked(demo: Demo, client: dict[str, Any], verifier: str, **more: str | None) -> str:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    query = {
        "response_type": "code",
        "client_id": client["client_id"],
        "redirect_uri": CALLBACK,
        "scope": "mail.read",
        "state": "s",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "resource": demo.mcp,
    } | more
    return f"{demo.issuer}/authorize?{urlencode({name: value for name, value in query.items() if value is not None})}"


async def consented(demo: Demo, user: str = "ada", client: dict[str, Any] | None = None) -> Flow:
    client = client or await registered(demo)
    verifier = secrets.token_urlsafe(48)
    query = parse_qs(urlsplit(await consent(asked(demo, client, verifier), user)).query)
    assert query["state"] == ["s"]
    assert query["iss"] == [demo.issuer]  # RFC 9207
    return Flow(client, query["code"][0], verifier)


async def post(demo: Demo, path: str, form: dict[str, str], **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        return await http.post(f"{demo.issuer}{path}", data=form, **more)


async def tokens(demo: Demo, flow: Flow) -> dict[str, Any]:
    answer = await post(demo, "/token", flow.form())
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    made: dict[str, Any] = answer.json()
    return made


async def refresh(demo: Demo, flow: Flow, token: str) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": flow.client["client_id"]}
    return await post(demo, "/token", form)


async def grant_of(demo: Demo, flow: Flow, made: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The grant's id, and its state at Grantbook."""
    claims = jwt.decode(made["access_token"], options={"verify_signature": False})
    path = f"/idp/v1/clients/{flow.client['client_id']}/grants/{claims['grant_id']}"
    return claims["grant_id"], (await asyncio.to_thread(demo.idp(), "GET", path)).body


async def test_access_tokens_are_what_the_standard_says(demo: Demo) -> None:
    """RFC 9068 section 2: type, claims, audience, and a key that is published."""
    flow = await consented(demo)
    made = await tokens(demo, flow)
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        keys = (await http.get(f"{demo.issuer}/jwks")).json()
    assert "d" not in keys["keys"][0]
    header = jwt.get_unverified_header(made["access_token"])
    assert header["typ"] == "at+jwt"
    claims = jwt.decode(
        made["access_token"],
        jwt.PyJWKSet.from_dict(keys)[header["kid"]].key,
        algorithms=["ES256"],
        audience=demo.mcp,
        issuer=demo.issuer,
    )
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("ada", flow.client["client_id"], "mail.read")
    assert claims["exp"] - claims["iat"] == made["expires_in"] == 300
    _, state = await grant_of(demo, flow, made)
    assert (state["active"], state["user_id"], state["scopes"]) == (True, "ada", ["mail.read"])


async def test_a_code_is_good_once_and_its_second_use_ends_the_grant(demo: Demo) -> None:
    """RFC 6749 section 4.1.2: whoever stole a code gets nothing, and takes it from nobody quietly."""
    flow = await consented(demo)
    made = await tokens(demo, flow)
    again = await post(demo, "/token", flow.form())
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    _, state = await grant_of(demo, flow, made)
    assert state == {"active": False}


async def test_of_two_exchanges_at_once_one_succeeds_at_most(demo: Demo) -> None:
    """RFC 6749 section 4.1.2, under concurrency."""
    flow = await consented(demo)
    answers = await asyncio.gather(*(post(demo, "/token", flow.form()) for _ in range(8)))
    assert sum(each.status_code == 200 for each in answers) <= 1


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_verifier": "x" * 43}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_request"),
        ({"redirect_uri": "https://agent.example/other"}, "invalid_grant"),
        ({"code": "x"}, "invalid_grant"),
        ({"client_id": "nobody"}, "invalid_client"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
    ],
)
async def test_a_token_request_that_does_not_fit_is_refused(demo: Demo, changed: dict[str, str], error: str) -> None:
    """RFC 7636 section 4.6, RFC 6749 section 5.2: and the code stays good for its owner."""
    flow = await consented(demo)
    answer = await post(demo, "/token", flow.form(**changed))
    assert answer.json()["error"] == error
    assert answer.status_code == (401 if error == "invalid_client" else 400)
    await tokens(demo, flow)


async def test_another_clients_code_is_refused(demo: Demo) -> None:
    """RFC 6749 section 4.1.3: a code is bound to its client."""
    flow, other = await consented(demo), await registered(demo)
    answer = await post(demo, "/token", flow.form(client_id=other["client_id"]))
    assert answer.json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    "changed",
    [
        {"code_challenge": None},
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge_method": None},
        {"code_challenge_method": "plain"},
        {"response_type": "token"},
    ],
)
async def test_an_authorization_request_without_pkce_goes_back_with_an_error(
    demo: Demo, changed: dict[str, Any]
) -> None:
    """RFC 7636 section 4.4.1; OAuth 2.1: S256 only, code only."""
    client = await registered(demo)
    try:
        place = await consent(asked(demo, client, "v" * 43, **changed), "ada")
    except Refused as refused:
        assert "cannot be used" in str(refused)  # noqa: PT017  either way is a refusal
    else:
        assert "error" in parse_qs(urlsplit(place).query)
        assert "code" not in parse_qs(urlsplit(place).query)


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "nobody"},
        {"redirect_uri": "https://evil.example/"},
        {"redirect_uri": CALLBACK + "/more"},
        {"redirect_uri": None},
        {"resource": "https://other.example"},
    ],
)
async def test_a_user_is_never_sent_where_nobody_registered(demo: Demo, changed: dict[str, Any]) -> None:
    """RFC 6749 section 4.1.2.1: what cannot be trusted is shown, and not followed."""
    client = await registered(demo)
    with pytest.raises(Refused, match="cannot be used"):
        await consent(asked(demo, client, "v" * 43, **changed), "ada")


async def test_loopback_redirects_may_have_any_port(demo: Demo) -> None:
    """RFC 8252 section 7.3: an agent on this computer takes the port that is free. Nothing else may differ."""
    client = await registered(demo, redirect_uris=["http://127.0.0.1:1234/cb"])
    place = await consent(asked(demo, client, "v" * 43, redirect_uri="http://127.0.0.1:5555/cb"), "ada")
    assert place.startswith("http://127.0.0.1:5555/cb?")
    for wrong in ("http://127.0.0.1:5555/other", "http://localhost:1234/cb", "http://x@127.0.0.1:1/cb"):
        with pytest.raises(Refused):
            await consent(asked(demo, client, "v" * 43, redirect_uri=wrong), "ada")


async def test_refresh_tokens_rotate_and_a_second_use_ends_the_grant(demo: Demo) -> None:
    """RFC 9700 section 4.14.2: of a thief and an owner neither keeps it; Grantbook says why."""
    flow = await consented(demo)
    first = await tokens(demo, flow)
    second = await refresh(demo, flow, first["refresh_token"])
    assert second.status_code == 200
    assert second.json()["refresh_token"] != first["refresh_token"]
    assert (await refresh(demo, flow, first["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await refresh(demo, flow, second.json()["refresh_token"])).json()["error"] == "invalid_grant"
    grant, state = await grant_of(demo, flow, first)
    assert state == {"active": False}
    admin = demo.admin()
    path = f"/admin/v1/clients/{flow.client['client_id']}/grants?status=any"
    async with asyncio.timeout(SECONDS):
        while True:
            [item] = (await asyncio.to_thread(admin, "GET", path)).body["items"]
            if item["status"] == "revoked":
                break
            await asyncio.sleep(0.02)
    assert (item["grant_id"], item["ended_reason"]) == (grant, "reuse_detected")


async def test_a_refresh_keeps_the_grant_alive_on_the_register(demo: Demo) -> None:
    """Admins: use and expiry of a grant that is refreshed are on the register."""
    flow = await consented(demo)
    made = await tokens(demo, flow)
    assert (await refresh(demo, flow, made["refresh_token"])).status_code == 200
    admin, path = demo.admin(), f"/admin/v1/clients/{flow.client['client_id']}/grants"
    async with asyncio.timeout(SECONDS):
        while "last_activity_at" not in (await asyncio.to_thread(admin, "GET", path)).body["items"][0]:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
async def test_revoking_a_token_ends_its_grant_everywhere(demo: Demo, which: str) -> None:
    """RFC 7009: a user who disconnects an agent is done with it; a token of nobody is 200, too."""
    flow = await consented(demo)
    made = await tokens(demo, flow)
    form = {"token": made[which], "client_id": flow.client["client_id"]}
    other = await registered(demo)
    assert (await post(demo, "/revoke", form | {"client_id": other["client_id"]})).status_code in {200, 400}
    assert (await grant_of(demo, flow, made))[1]["active"] is True
    assert (await post(demo, "/revoke", form)).status_code == 200
    assert (await grant_of(demo, flow, made))[1] == {"active": False}
    assert (await post(demo, "/revoke", form | {"token": "x"})).status_code == 200


async def test_introspection_tells_the_grants_state_as_it_is_now(demo: Demo) -> None:
    """RFC 7662 section 2.2: active until the admin's click, and nothing but `active: false` after it."""
    flow = await consented(demo)
    made = await tokens(demo, flow)
    form = {"token": made["access_token"], "client_id": flow.client["client_id"]}
    told = (await post(demo, "/introspect", form)).json()
    assert (told["active"], told["sub"], told["client_id"]) == (True, "ada", flow.client["client_id"])
    other = await registered(demo)
    assert (await post(demo, "/introspect", form | {"client_id": other["client_id"]})).json() == {"active": False}
    grant, _ = await grant_of(demo, flow, made)
    revoke = f"/admin/v1/clients/{flow.client['client_id']}/grants/{grant}/revoke"
    await asyncio.to_thread(demo.admin(), "POST", revoke, {})
    assert (await post(demo, "/introspect", form)).json() == {"active": False}


async def test_a_client_with_a_secret_must_show_it(demo: Demo) -> None:
    """RFC 6749 section 3.2.1: the hash is at Grantbook; a weaker way in than the registered one is none."""
    client = await registered(demo, token_endpoint_auth_method="client_secret_basic")
    flow = await consented(demo, client=client)
    assert (await post(demo, "/token", flow.form())).json()["error"] == "invalid_client"
    wrong = await post(demo, "/token", flow.form(), auth=(client["client_id"], "wrong"))
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")
    right = await post(demo, "/token", flow.form(), auth=(client["client_id"], client["client_secret"]))
    assert right.status_code == 200


async def test_pages_are_safe_from_what_agents_call_themselves(demo: Demo) -> None:
    """Users: a name is text, whatever is in it; no page of ours may be framed, and no form of others counts."""
    name = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    client = await registered(demo, client_name=name)
    url = asked(demo, client, "v" * 43)
    async with httpx.AsyncClient(timeout=SECONDS, follow_redirects=True) as browser:
        page = await browser.get(url)
        assert 'name="password"' in page.text
        csrf = page.text.split('name="csrf" value="')[1].split('"')[0]
        login = {"csrf": csrf, "next": url.removeprefix(demo.issuer), "username": "ada", "password": "ada-password"}
        forged = await browser.post(f"{demo.issuer}/login", data=login | {"csrf": "x"})
        assert forged.status_code == 400
        wrong = await browser.post(f"{demo.issuer}/login", data=login | {"password": "x"})
        assert wrong.status_code == 401
        page = await browser.post(f"{demo.issuer}/login", data=login)
        assert "Let it in" in page.text
        assert "<script>" not in page.text
        assert "<img" not in page.text
        assert "agent.example" in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        forged = await browser.post(str(page.url), data={"decision": "allow"})
        assert forged.status_code == 400
        # Nobody is sent elsewhere by logging in.
        csrf = page.text.split('name="csrf" value="')[1].split('"')[0]
        away = await browser.post(
            f"{demo.issuer}/login", data=login | {"csrf": csrf, "next": "https://evil.example/"}, follow_redirects=False
        )
        assert away.headers["location"] == "/"


async def test_a_client_that_is_suspended_gets_nothing(demo: Demo) -> None:
    """Admins: cut off for a while means no consent, no code, no refresh."""
    flow = await consented(demo)
    made = await tokens(demo, flow)
    path = f"/admin/v1/clients/{flow.client['client_id']}"
    await asyncio.to_thread(demo.admin(), "POST", f"{path}/suspend", {})
    with pytest.raises(Refused, match="suspended"):
        await consent(asked(demo, flow.client, "v" * 43), "ada")
    assert (await refresh(demo, flow, made["refresh_token"])).json()["error"] == "invalid_grant"
    await asyncio.to_thread(demo.admin(), "POST", f"{path}/resume", {})
    assert (await refresh(demo, flow, made["refresh_token"])).status_code == 200
