"""The example identity provider is honest: what RFC 6749, 7009, 7636, 7662, 8707, 9068 and 9700 ask for, it does."""

import asyncio
import base64
import hashlib
import os
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import jwt
import pytest
from msgspec import Struct, structs

from deploy.dev.demo import Part
from deploy.dev.servers import free_port
from tests.examples.demo import Demo, Refused, consent, running
from tests.examples.relay import Relay, relaying

CALLBACK = "https://agent.example/callback"
SECONDS = 20.0
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("demo")) as it:
        yield it


class Outage(Struct, frozen=True):
    """The demo, with another identity provider that reaches Grantbook through a relay."""

    demo: Demo
    relay: Relay


@pytest.fixture(scope="module")
def outage(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    folder = tmp_path_factory.mktemp("relayed")
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    with relaying(demo.grantbook) as relay:
        arguments = ["examples.identity_provider", "--port", str(port), "--resource", demo.mcp]
        arguments += ["--grantbook", relay.url, "--data", str(folder / "idp")]
        environment = os.environ | {"GRANTBOOK_IDP_TOKEN": demo.variables["GRANTBOOK_IDP_TOKEN"]}
        part = Part("the identity provider", arguments, environment, folder / "idp.log")
        try:
            part.wait_ready(f"{issuer}/.well-known/oauth-authorization-server")
            yield Outage(structs.replace(demo, issuer=issuer), relay)
        finally:
            part.stop()


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


async def refresh(demo: Demo, flow: Flow, token: str, **more: str) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": flow.client["client_id"]}
    return await post(demo, "/token", form | more)


def sent_back(demo: Demo, place: str) -> str:
    """The error with which the user was sent back to the agent."""
    assert place.startswith(f"{CALLBACK}?"), place
    query = parse_qs(urlsplit(place).query)
    assert "code" not in query
    assert (query["state"], query["iss"]) == (["s"], [demo.issuer])  # RFC 6749 section 4.1.2.1, RFC 9207
    return query["error"][0]


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
    ("changed", "error"),
    [
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"response_type": None}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": "\\"}, "unsupported_response_type"),
        ({"resource": "https://other.example"}, "invalid_target"),
        ({"scope": "admin"}, "invalid_scope"),
        ({"scope": "mail.read admin"}, "invalid_scope"),
        ({"scope": "mail.read\tmail.send"}, "invalid_scope"),
        ({"scope": "\x00\u202e"}, "invalid_scope"),
        ({"scope": " ".join(f"s{number}" for number in range(1_000))}, "invalid_scope"),
    ],
)
async def test_an_authorization_request_that_does_not_fit_goes_back_with_an_error(
    demo: Demo, changed: dict[str, Any], error: str
) -> None:
    """RFC 6749 section 4.1.2.1, RFC 7636 section 4.4.1, RFC 8707: agents learn what is wrong; code and S256 only."""
    client = await registered(demo)
    place = await consent(asked(demo, client, "v" * 43, **changed), "ada")
    assert sent_back(demo, place) == error


async def test_a_parameter_that_comes_twice_goes_back_with_an_error(demo: Demo) -> None:
    """RFC 6749 section 3.1: of two scopes nobody knows which one the user would agree to."""
    client = await registered(demo)
    place = await consent(asked(demo, client, "v" * 43) + "&scope=mail.send", "ada")
    assert sent_back(demo, place) == "invalid_request"
    for twice in (f"&client_id={client['client_id']}", "&redirect_uri=https://evil.example/"):
        with pytest.raises(Refused, match="cannot be used"):
            await consent(asked(demo, client, "v" * 43) + twice, "ada")


async def test_an_agent_gets_no_scope_that_it_did_not_register(demo: Demo) -> None:
    """RFC 7591 section 2: what a client registered is the most that it can have."""
    client = await registered(demo, scope="mail.read")
    place = await consent(asked(demo, client, "v" * 43, scope="mail.read mail.send"), "ada")
    assert sent_back(demo, place) == "invalid_scope"
    assert (await tokens(demo, await consented(demo, client=client)))["scope"] == "mail.read"


async def test_what_the_user_was_shown_is_what_is_granted(demo: Demo) -> None:
    """Users: nothing in the body of the decision adds to what the page said."""
    client = await registered(demo)
    verifier = "v" * 43
    for shown in (None, "mail.read"):
        url = asked(demo, client, verifier, scope=shown)
        async with httpx.AsyncClient(timeout=SECONDS, follow_redirects=True) as browser:
            page = await browser.get(url)
            csrf = page.text.split('name="csrf" value="')[1].split('"')[0]
            login = {"csrf": csrf, "next": url.removeprefix(demo.issuer), "username": "ada", "password": "ada-password"}
            page = await browser.post(f"{demo.issuer}/login", data=login)
            decision = {
                "csrf": page.text.split('name="csrf" value="')[1].split('"')[0],
                "decision": "allow",
                "scope": "mail.read mail.send",
            }
            answer = await browser.post(str(page.url), data=decision, follow_redirects=False)
        code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
        made = await tokens(demo, Flow(client, code, verifier))
        assert made["scope"] == (shown or "")
        _, state = await grant_of(demo, Flow(client, code, verifier), made)
        assert state["scopes"] == (shown or "").split()


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "nobody"},
        {"client_id": None},
        {"client_id": "\x00"},
        {"client_id": ".."},
        {"redirect_uri": "https://evil.example/"},
        {"redirect_uri": CALLBACK + "/more"},
        {"redirect_uri": CALLBACK + "#"},
        {"redirect_uri": CALLBACK + "\t"},
        {"redirect_uri": CALLBACK + "\\"},
        {"redirect_uri": CALLBACK + "\u00e9"},
        {"redirect_uri": None},
    ],
)
async def test_a_user_is_never_sent_where_nobody_registered(demo: Demo, changed: dict[str, Any]) -> None:
    """RFC 6749 section 4.1.2.1: what cannot be trusted is shown, and not followed."""
    client = await registered(demo)
    with pytest.raises(Refused, match="cannot be used"):
        await consent(asked(demo, client, "v" * 43, **changed), "ada")


@pytest.mark.parametrize(
    "wrong",
    [
        "http://127.0.0.1:5555/other",
        "http://localhost:1234/cb",
        "https://127.0.0.1:1234/cb",
        "http://x@127.0.0.1:1/cb",
        "http://127.0.0.1:1@evil.example/cb",
        "http://127.0.0.1:1\\@evil.example/cb",
        "http://127.0.0.1.evil.example/cb",
        "http://127.0.0.1:x/cb",
        "http://127.0.0.1:1/c\tb",
        "http://127.0.0.1:1/\r\ncb",
        "http://127.0.0.1:1/cb#",
        "http://127.0.0.1:1/cb?",
        "http://127.0.0.1:1/cb?x=1",
        "http://127.0.0.1:1/cb;x",
        "HTTP://127.0.0.1:1/cb",
    ],
)
async def test_nothing_but_the_port_of_a_loopback_redirect_may_differ(demo: Demo, wrong: str) -> None:
    """RFC 9700 section 2.1: parsers read one URI in different ways, so strings are compared."""
    client = await registered(demo, redirect_uris=["http://127.0.0.1:1234/cb"])
    with pytest.raises(Refused, match="cannot be used"):
        await consent(asked(demo, client, "v" * 43, redirect_uri=wrong), "ada")


@pytest.mark.parametrize("registered_uri", ["http://127.0.0.1:1234/cb", "http://127.0.0.1/cb", "http://[::1]/cb"])
async def test_loopback_redirects_may_have_any_port(demo: Demo, registered_uri: str) -> None:
    """RFC 8252 section 7.3: an agent on this computer takes the port that is free."""
    client = await registered(demo, redirect_uris=[registered_uri])
    chosen = registered_uri.replace(":1234", "").replace("/cb", ":5555/cb")
    place = await consent(asked(demo, client, "v" * 43, redirect_uri=chosen), "ada")
    assert place.startswith(f"{chosen}?code=")


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


async def test_tokens_are_for_the_resource_that_was_agreed_to(demo: Demo) -> None:
    """RFC 8707 section 2.2: asking for another gets nothing, and uses nothing up."""
    flow = await consented(demo)
    wrong = await post(demo, "/token", flow.form(resource="https://other.example"))
    assert (wrong.status_code, wrong.json()["error"]) == (400, "invalid_target")
    made = (await post(demo, "/token", flow.form(resource=demo.mcp))).json()
    wrong = await refresh(demo, flow, made["refresh_token"], resource="https://other.example")
    assert (wrong.status_code, wrong.json()["error"]) == (400, "invalid_target")
    assert (await refresh(demo, flow, made["refresh_token"], resource=demo.mcp)).status_code == 200


async def test_a_token_request_is_in_the_body(demo: Demo) -> None:
    """RFC 6749 section 4.1.3: what is in a URL is in logs."""
    flow = await consented(demo)
    answer = await post(demo, "/token", {}, params=flow.form())
    assert answer.status_code == 400
    await tokens(demo, flow)


@pytest.mark.parametrize("path", ["/token", "/revoke", "/introspect"])
@pytest.mark.parametrize(
    "header",
    [
        b"Basic",
        b"Basic ////",
        b"Basic " + base64.b64encode(b"\xff\xfe:\xff"),
        b"Basic " + base64.b64encode(b"no colon"),
        b"Basic \xff",
        b"Basic " + base64.b64encode(b"%00:%zz"),
        b"Basic " + base64.b64encode(b"..:x"),
    ],
)
async def test_credentials_that_cannot_be_read_are_wrong_credentials(demo: Demo, path: str, header: bytes) -> None:
    """RFC 6749 section 5.2: operators are not woken by what anybody may send."""
    form = {"grant_type": "refresh_token", "refresh_token": "x", "token": "x"}
    answer = await post(demo, path, form, headers=[(b"Authorization", header)])
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


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
        for elsewhere in (
            "https://evil.example/",
            "/authorize?\r\nSet-Cookie: a=b",
            "/authorize?\\",
            "//evil.example/",
        ):
            away = await browser.post(
                f"{demo.issuer}/login", data=login | {"csrf": csrf, "next": elsewhere}, follow_redirects=False
            )
            assert (away.status_code, away.headers["location"]) == (303, "/")
            page = await browser.get(f"{demo.issuer}/login")
            csrf = page.text.split('name="csrf" value="')[1].split('"')[0]


async def test_a_query_that_is_no_text_is_refused(demo: Demo) -> None:
    """Operators: nor are they woken by bytes that are not UTF-8."""
    url = urlsplit(asked(demo, await registered(demo), "v" * 43))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(b"GET /authorize?state=\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    status = await asyncio.wait_for(reader.readline(), SECONDS)
    writer.close()
    await writer.wait_closed()
    assert status.split()[1] in {b"303", b"400"}


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


async def test_a_client_with_a_secret_that_is_suspended_keeps_its_registration(demo: Demo) -> None:
    """Admins: `invalid_client` would make it register anew. But who shows no token of the client learns nothing."""
    client = await registered(demo, token_endpoint_auth_method="client_secret_basic")
    auth = (client["client_id"], client["client_secret"])
    flow, late = await consented(demo, client=client), await consented(demo, client=client)
    made = (await post(demo, "/token", flow.form(), auth=auth)).json()
    form = {"grant_type": "refresh_token", "refresh_token": made["refresh_token"]}
    path = f"/admin/v1/clients/{client['client_id']}"
    await asyncio.to_thread(demo.admin(), "POST", f"{path}/suspend", {})
    for sent in (form, late.form()):
        told = await post(demo, "/token", sent, auth=auth)
        assert (told.status_code, told.json()["error"]) == (400, "invalid_grant")
    other = await post(demo, "/token", form | {"refresh_token": "x"}, auth=auth)
    assert (other.status_code, other.json()["error"]) == (401, "invalid_client")
    await asyncio.to_thread(demo.admin(), "POST", f"{path}/resume", {})
    assert (await post(demo, "/token", form, auth=auth)).status_code == 200


async def test_nobody_learns_of_a_suspension_by_a_clients_id_alone(demo: Demo) -> None:
    """Admins: a client's id is no secret, what they do about it is."""
    flow = await consented(demo)
    before = await refresh(demo, flow, "x")
    await asyncio.to_thread(demo.admin(), "POST", f"/admin/v1/clients/{flow.client['client_id']}/suspend", {})
    after = await refresh(demo, flow, "x")
    assert (after.status_code, after.json()) == (before.status_code, before.json())


@pytest.mark.parametrize("what", ["code", "refresh"])
async def test_a_retry_after_grantbook_was_away_is_no_reuse(outage: Outage, what: str) -> None:
    """Honest agents: told 503, they send the same again, and must not be taken for thieves."""
    demo = outage.demo
    flow = await consented(demo)
    form = flow.form()
    if what == "refresh":
        made = await tokens(demo, flow)
        form = {"grant_type": "refresh_token", "refresh_token": made["refresh_token"], "client_id": form["client_id"]}
    outage.relay.fail_once("GET", "/grants/")
    first = await post(demo, "/token", form)
    assert (first.status_code, first.headers["retry-after"]) == (503, "1")
    assert outage.relay.failed
    again = await post(demo, "/token", form)
    assert again.status_code == 200, again.text
    assert (await grant_of(demo, flow, again.json()))[1]["active"] is True


async def test_a_second_use_that_cannot_be_told_yet_still_ends_the_grant(outage: Outage) -> None:
    """Users: an outage does not save a thief."""
    demo = outage.demo
    flow = await consented(demo)
    made = await tokens(demo, flow)
    outage.relay.fail_once("POST", "/revoke")
    assert (await post(demo, "/token", flow.form())).status_code == 503
    assert (await post(demo, "/token", flow.form())).json()["error"] == "invalid_grant"
    assert (await grant_of(demo, flow, made))[1] == {"active": False}


async def test_a_refresh_that_cannot_be_reported_is_answered_and_reported_with_the_next(outage: Outage) -> None:
    """Honest agents get their token; admins see the use a little later."""
    demo = outage.demo
    flow, other = await consented(demo), await consented(demo)
    made, others = await tokens(demo, flow), await tokens(demo, other)
    outage.relay.fail_once("POST", "/activity")
    answer = await refresh(demo, flow, made["refresh_token"])
    assert answer.status_code == 200
    assert outage.relay.failed
    assert (await grant_of(demo, flow, made))[1]["active"] is True
    assert (await refresh(demo, other, others["refresh_token"])).status_code == 200
    admin, path = demo.admin(), f"/admin/v1/clients/{flow.client['client_id']}/grants"
    async with asyncio.timeout(SECONDS):
        while "last_activity_at" not in (await asyncio.to_thread(admin, "GET", path)).body["items"][0]:
            await asyncio.sleep(0.02)
