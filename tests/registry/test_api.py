"""The registry over HTTP, as http clients see it, on a real nats-server."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st
from litestar import Litestar
from nats.aio.client import Client

from door import roles
from door.limits import Rate
from grantbook import subjects
from grantbook.receipts import Receipt
from grantbook.sdk.log import LogReader
from grantbook.sdk.subscription import put_receipt, read_receipts
from registry import app
from registry.settings import Policy
from tests.registry.over_http import GRANT, PUBLIC, REGISTER, Http, as_, registered


async def test_a_registration_answers_with_every_final_value(http: Http) -> None:
    """Agents: RFC 7591 section 3.2.1."""
    answer = await http.post(REGISTER, json={"redirect_uris": ["https://agent.example/cb"], "client_name": "Agent"})
    body = answer.json()
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert body["token_endpoint_auth_method"] == "client_secret_basic"
    assert body["grant_types"] == ["authorization_code"]
    assert body["response_types"] == ["code"]
    assert body["client_secret_expires_at"] == 0
    assert len(body["client_secret"]) >= 43
    assert body["registration_client_uri"] == f"https://id.example{REGISTER}/{body['client_id']}"
    assert isinstance(body["client_id_issued_at"], int)


async def test_a_public_client_gets_no_secret(http: Http) -> None:
    """Agents: RFC 7591 section 3.2.1, `client_secret` only where the method needs one."""
    body = await registered(http)
    assert "client_secret" not in body
    assert "client_secret_expires_at" not in body
    assert body["registration_access_token"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "error"),
    [
        (b"{", {}, 400, "invalid_request"),
        (b"\xff\xfe", {}, 400, "invalid_request"),
        (b"[]", {}, 400, "invalid_client_metadata"),
        (b'"x"', {}, 400, "invalid_client_metadata"),
        (b"{}", {}, 400, "invalid_redirect_uri"),
        (b'{"redirect_uris": ["javascript:alert(1)"]}', {}, 400, "invalid_redirect_uri"),
        (b'{"redirect_uris": ["http://evil.example/cb"]}', {}, 400, "invalid_redirect_uri"),
        (b'{"redirect_uris": ["https://a.example"], "grant_types": []}', {}, 400, "invalid_client_metadata"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "invalid_request"),
        (b'{"client_name": "' + b"x" * 70_000 + b'"}', {}, 413, "invalid_request"),
        (b"[" * 50_000, {}, 400, "invalid_request"),
    ],
)
async def test_a_registration_that_is_wrong_is_refused_in_the_standards_words(
    http: Http, nats: Client, content: bytes, headers: dict[str, str], status: int, error: str
) -> None:
    """Agents and attackers: RFC 7591 section 3.2.2; what is refused leaves no trace."""
    answer = await http.post(REGISTER, content=content, headers={"Content-Type": "application/json"} | headers)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["error_description"].isascii()
    assert answer.headers["cache-control"] == "no-store"
    for stream in (subjects.LOG, subjects.bucket_stream(subjects.CREDENTIALS)):
        async with LogReader(nats, stream) as reader:
            assert (await reader.state()).last == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_not_allowed_on_the_collection(http: Http, method: str) -> None:
    """Agents: 405 with what is allowed."""
    answer = await http.request(method, REGISTER)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    assert answer.json()["error"] == "invalid_request"


async def test_agents_in_a_browser_may_register(http: Http) -> None:
    """MCP Inspector: a preflight, then the request, from any origin."""
    answer = await http.options(
        REGISTER, headers={"Origin": "http://localhost:6274", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    below = await http.get(f"{REGISTER}/somebody")
    assert "access-control-allow-origin" not in below.headers
    elsewhere = await http.get("/idp/v1/clients/x", headers=as_("idp") | {"Origin": "http://localhost:6274"})
    assert "access-control-allow-origin" not in elsewhere.headers


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/idp/v1/clients/x", "idp"),
        ("POST", "/idp/v1/clients/x/authenticate", "idp"),
        ("POST", "/idp/v1/clients/x/grants", "idp"),
        ("GET", "/idp/v1/clients/x/grants/y", "idp"),
        ("POST", "/idp/v1/activity", "idp"),
        ("POST", "/idp/v1/clients/x/grants/y/revoke", "idp"),
        ("POST", "/admin/v1/clients/x/grants/y/revoke", "admin"),
        ("DELETE", "/admin/v1/clients/x", "admin"),
        ("POST", "/admin/v1/clients/x/suspend", "admin"),
        ("POST", "/admin/v1/clients/x/resume", "admin"),
        ("POST", "/admin/v1/users/x/revoke", "admin"),
    ],
)
async def test_each_path_asks_for_its_role(http: Http, method: str, path: str, role: roles.Role) -> None:
    """Everyone: no token 401, a wrong one 401, another role's 403."""
    assert (await http.request(method, path)).status_code == 401
    wrong = await http.request(method, path, headers={"Authorization": "Bearer nonsense"})
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"].startswith("Bearer")
    for other in roles.ROLES:
        if other != role:
            answer = await http.request(method, path, headers=as_(other))
            assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")


async def test_a_secret_authenticates_its_client_alone(http: Http) -> None:
    """Clients: RFC 6749 section 2.3.1; a wrong secret, another's, and a deleted client's are all `invalid_client`."""
    mine, other = [await registered(http, token_endpoint_auth_method="client_secret_post") for _ in range(2)]

    async def authenticate(client: str, secret: str) -> int:
        path = f"/idp/v1/clients/{client}/authenticate"
        return (await http.post(path, json={"client_secret": secret}, headers=as_("idp"))).status_code

    assert await authenticate(mine["client_id"], mine["client_secret"]) == 204
    assert await authenticate(mine["client_id"], other["client_secret"]) == 401
    assert await authenticate(mine["client_id"], "") == 401
    assert await authenticate("nobody", mine["client_secret"]) == 401
    public = await registered(http)
    assert await authenticate(public["client_id"], "") == 401
    for act in ("suspend", "resume"):
        await http.post(f"/admin/v1/clients/{mine['client_id']}/{act}", headers=as_("admin"))
        expected = 401 if act == "suspend" else 204
        assert await authenticate(mine["client_id"], mine["client_secret"]) == expected
    await http.delete(f"/admin/v1/clients/{mine['client_id']}", headers=as_("admin"))
    assert await authenticate(mine["client_id"], mine["client_secret"]) == 401


async def test_commands_on_what_never_existed_are_404(http: Http) -> None:
    """Admins: a typing error is told, and writes nothing."""
    client = (await registered(http))["client_id"]
    for method, path, code in [
        ("DELETE", "/admin/v1/clients/nobody", "client_not_found"),
        ("POST", "/admin/v1/clients/nobody/suspend", "client_not_found"),
        ("POST", "/admin/v1/clients/nobody/grants/g/revoke", "client_not_found"),
        ("POST", f"/admin/v1/clients/{client}/grants/g/revoke", "grant_not_found"),
    ]:
        answer = await http.request(method, path, headers=as_("admin"))
        assert (answer.status_code, answer.json()["code"]) == (404, code)
        assert answer.headers["content-type"].startswith("application/problem+json")


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": ""},
        {"user_id": 7},
        {"scopes": "read"},
        {"scopes": ["two words"]},
        {"expires_at": "tomorrow"},
        {"expires_at": "2099-01-01T00:00:00"},
        {"expires_at": "9999-12-31T23:59:59-12:00"},
        {"expires_at": "0001-01-01T00:00:00+12:00"},
        {"username": None},
        {"grant_id": "x" * 600},
        {"grant_id": "a\nb"},
        {"username": "a\0b"},
    ],
    ids=str,
)
async def test_a_grant_that_cannot_be_understood_names_the_member(http: Http, change: dict[str, object]) -> None:
    """Identity providers: 400 says which member, and nothing is recorded."""
    client = (await registered(http))["client_id"]
    answer = await http.post(f"/idp/v1/clients/{client}/grants", json=GRANT | change, headers=as_("idp"))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    assert next(iter(change)) in answer.json()["detail"]


async def test_ids_that_would_break_a_subject_are_safe(http: Http) -> None:
    """Everyone: wildcards, dots, spaces and newlines in an id name one grant, by its key in paths."""
    client = (await registered(http))["client_id"]
    for grant_id in ("*", ">", "a.b", "a b", "~x", "ä", "x" * 65):
        body = GRANT | {"grant_id": grant_id, "user_id": f"user {grant_id}"}
        issued = await http.post(f"/idp/v1/clients/{client}/grants", json=body, headers=as_("idp"))
        assert issued.status_code == 201, grant_id
        key = issued.json()["grant_key"]
        assert key == subjects.token(grant_id)
        found = await http.get(f"/idp/v1/clients/{client}/grants/{key}", headers=as_("idp"))
        assert found.json()["grant_id"] == grant_id


async def test_a_report_that_is_sent_again_counts_once(http: Http, nats: Client) -> None:
    """Token services: a lost answer does not double the use of a grant."""
    client = (await registered(http))["client_id"]
    grant = (await http.post(f"/idp/v1/clients/{client}/grants", json=GRANT, headers=as_("idp"))).json()["grant_id"]
    use = {"client_id": client, "grant_id": grant, "kind": "tool_call", "at": "2026-11-23T12:00:00Z", "count": 3}
    for _ in range(3):
        answer = await http.post("/idp/v1/activity", json={"activity": [use], "report_id": "r1"}, headers=as_("idp"))
        assert (answer.status_code, answer.json()) == (202, {"recorded": 1, "rejected": []})
    async with LogReader(nats, subjects.ACTIVITY) as reader:
        assert (await reader.state()).last == 1


async def test_a_far_refresh_moves_the_expiry_and_a_small_one_does_not_fill_the_log(http: Http, nats: Client) -> None:
    """Users and operators: look-ups follow a refresh; a refresh a minute is not an event a minute."""
    client = (await registered(http))["client_id"]
    grant = (await http.post(f"/idp/v1/clients/{client}/grants", json=GRANT, headers=as_("idp"))).json()["grant_id"]
    for expires_at in ("2099-01-01T01:00:00Z", "2099-02-01T00:00:00Z"):
        use = {
            "client_id": client,
            "grant_id": grant,
            "kind": "refresh",
            "at": "2026-11-23T12:00:00Z",
            "expires_at": expires_at,
        }
        await http.post("/idp/v1/activity", json={"activity": [use]}, headers=as_("idp"))
    state = (await http.get(f"/idp/v1/clients/{client}/grants/{grant}", headers=as_("idp"))).json()
    assert state["expires_at"] == "2099-02-01T00:00:00Z"
    async with LogReader(nats, subjects.LOG) as reader:
        assert (await reader.state()).last == 3


async def test_a_client_whose_id_is_a_url_is_found_by_its_key(http: Http) -> None:
    """Admins: no path needs an escaped slash; an unknown key is as unknown as an unknown id."""
    key = subjects.token("https://agent.example/client.json")
    answer = await http.get(f"/idp/v1/clients/{key}", headers=as_("idp"))
    assert (answer.status_code, answer.json()["code"]) == (404, "client_not_found")


@pytest.mark.parametrize("count", [0, -1, 2**31, 2**70])
async def test_a_count_that_no_read_model_can_hold_is_rejected(http: Http, count: int) -> None:
    """Operators: one report of nonsense does not halt the projection of all others."""
    client = (await registered(http))["client_id"]
    grant = (await http.post(f"/idp/v1/clients/{client}/grants", json=GRANT, headers=as_("idp"))).json()["grant_id"]
    use = {"client_id": client, "grant_id": grant, "kind": "tool_call", "at": "2026-11-23T12:00:00Z", "count": count}
    answer = await http.post("/idp/v1/activity", json={"activity": [use]}, headers=as_("idp"))
    assert (answer.status_code, answer.json()["recorded"]) == (202, 0)
    assert [each["code"] for each in answer.json()["rejected"]] == ["invalid_parameter"]


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+12:00", "9999-12-31T23:59:59-12:00"])
async def test_a_report_of_times_that_nobody_means_is_refused(http: Http, at: str) -> None:
    """Operators: no time overflows a reader."""
    use = {"client_id": "c", "grant_id": "g", "kind": "tool_call", "at": at}
    answer = await http.post("/idp/v1/activity", json={"activity": [use]}, headers=as_("idp"))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@for_all(body=JSON, place=st.sampled_from([REGISTER, "/idp/v1/activity", "/idp/v1/clients/c/grants"]))
async def test_no_body_makes_a_server_error(http: Http, body: object, place: str) -> None:
    """Operators: whatever is sent, the answer is a client's error, or a success."""
    answer = await http.post(place, content=json.dumps(body), headers=as_("idp") | {"Content-Type": "application/json"})
    assert answer.status_code < 500


class TestLimited:
    """An operator who lets a source register twice, and no more for a long time."""

    @pytest.fixture
    def policy(self) -> Policy:
        return Policy(source=Rate(0.01, 2))

    async def test_beyond_its_limit_a_source_is_told_when_to_come_again(self, http: Http, reader: LogReader) -> None:
        """Agents: RFC 6585, in the shape of RFC 7591's errors; browsers may read it. Operators: nothing is stored."""
        for _ in range(2):
            await registered(http)
        before = (await reader.state()).last
        answer = await http.post(REGISTER, json=PUBLIC, headers={"X-Forwarded-For": "203.0.113.9"})
        assert answer.status_code == 429
        assert answer.json()["error"] == "temporarily_unavailable"
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cache-control"] == "no-store"
        assert (await reader.state()).last == before

    async def test_a_large_registration_counts_as_several(self, http: Http) -> None:
        """Operators: what fills the log is bytes. One of a source's two requests is not enough for 2 KiB."""
        large = PUBLIC | {"unknown": "a" * 2_048}
        assert (await http.post(REGISTER, json=large)).status_code == 429
        assert (await http.post(REGISTER, json=PUBLIC | {"unknown": "a" * 1_024})).status_code == 201
        assert (await http.post(REGISTER, json=PUBLIC)).status_code == 429

    @pytest.mark.parametrize(
        ("length", "status"), [(None, 401), ("0", 401), ("1023", 401), ("2048", 429), ("9" * 11, 429)]
    )
    async def test_a_read_counts_for_what_it_announces(self, http: Http, length: str | None, status: int) -> None:
        """Operators: who asks without a body counts once, and who announces a length without end as the most."""
        headers = {} if length is None else {"Content-Length": length}
        assert (await http.get(f"{REGISTER}/nobody", headers=headers)).status_code == status

    async def test_admins_and_the_identity_provider_are_not_limited(self, http: Http) -> None:
        """Admins: while strangers flood, they can act."""
        bodies = [await registered(http) for _ in range(2)]
        for body in bodies:
            for _ in range(3):
                path = f"/idp/v1/clients/{body['client_id']}"
                assert (await http.get(path, headers=as_("idp"))).status_code == 200
            answer = await http.delete(f"/admin/v1/clients/{body['client_id']}", headers=as_("admin"))
            assert answer.status_code == 204


class TestIdentical:
    """An operator who wants one client for identical registrations."""

    @pytest.fixture
    def policy(self) -> Policy:
        return Policy(idempotent_registration=True)

    async def test_identical_public_clients_are_one(self, http: Http, reader: LogReader) -> None:
        """Admins: one row for an agent that registers at every start. Agents: nobody else can manage what they use."""
        first = await registered(http, client_name="Agent")
        before = (await reader.state()).last
        assert await registered(http, client_name="Agent") == first
        assert (await reader.state()).last == before
        assert "registration_access_token" not in first
        assert "registration_client_uri" not in first
        assert (await registered(http, client_name="Other"))["client_id"] != first["client_id"]

    async def test_one_that_was_deleted_is_another_client_the_next_time(self, http: Http) -> None:
        """Agents that register anew after they were cut off. Admins: what they deleted stays so."""
        first = await registered(http)
        await http.delete(f"/admin/v1/clients/{first['client_id']}", headers=as_("admin"))
        second = await registered(http)
        assert second["client_id"] != first["client_id"]
        assert (await registered(http))["client_id"] == second["client_id"]

    async def test_clients_with_a_secret_are_each_their_own(self, http: Http) -> None:
        """Agents: a secret is for one."""
        bodies = [(await http.post(REGISTER, json={"redirect_uris": ["https://a.example/"]})).json() for _ in range(2)]
        assert bodies[0]["client_id"] != bodies[1]["client_id"]
        assert bodies[0]["registration_access_token"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GRANTBOOK_REGISTRATION_LIMIT", "many"),
        ("GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE", "1/0"),
        ("GRANTBOOK_TRUSTED_PROXIES", "proxy.example"),
        ("GRANTBOOK_MAX_UNUSED_CLIENTS", "-1"),
        ("GRANTBOOK_IDEMPOTENT_REGISTRATION", "yes"),
    ],
)
def test_a_setting_that_is_not_understood_is_named(variable: str, value: str) -> None:
    """Operators: a typing error does not switch a limit off."""
    with pytest.raises(ValueError, match=variable):
        app.policy_from({variable: value})


def test_a_limit_that_workers_cannot_share_is_named() -> None:
    """Operators: several processes never let in more together than the limit says."""
    with pytest.raises(ValueError, match=r"GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE: .*130 or more"):
        app.policy_from({app.WORKERS: "2", "GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE": "1/129"})


@pytest.mark.parametrize(("off", "said"), [(0.5, None), (30.0, "+30"), (-30.0, "-30"), (120.0, "+120")])
async def test_a_clock_that_is_off_is_told(off: float, said: str | None) -> None:
    """Operators: a registry that tells another time than the log is taken out before it cuts users off wrongly."""
    now = datetime(2026, 3, 14, tzinfo=UTC)
    register: Any = SimpleNamespace(now=lambda: now + timedelta(seconds=off), log=SimpleNamespace(clock_wrong=None))
    log: Any = SimpleNamespace(now=now)
    nobody: Any = None
    run = app.Running(register, nobody, None, None)
    run.compare_clocks(log)
    state: Any = SimpleNamespace(registry=run)
    warned, unready = await app.clock_drifts(state), await app.clock_agrees(state)
    assert (warned is not None) is (said is not None)
    assert said is None or said in str(warned)
    assert (unready is not None) is (abs(off) > app.MAX_CLOCK_SECONDS)


async def test_a_registry_with_a_wrong_clock_writes_nothing(http: Http, application: Litestar) -> None:
    """Users: a cut-off by a clock that is behind would spare tokens from before it; better another registry does it."""
    run: app.Running = application.state.registry
    # Its watch would find the clock right, and so wrong be mended: it compares with another time, too.
    run.register = msgspec.structs.replace(run.register, now=lambda: datetime.now(UTC) - timedelta(minutes=15))
    run.register.log.clock_wrong = "the registry's clock is -900 s off the log's: set it"
    answer = await http.post("/admin/v1/users/u/revoke", headers=as_("admin"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert "clock is -900 s off" in answer.json()["detail"]
    run.register = msgspec.structs.replace(run.register, now=lambda: datetime.now(UTC))
    run.register.log.clock_wrong = None
    assert (await http.post("/admin/v1/users/u/revoke", headers=as_("admin"))).status_code == 204


async def test_an_admin_takes_a_subscriber_that_is_gone_off_the_list(http: Http, nats: Client) -> None:
    """Admins: a token service that was dismantled without a goodbye does not stay on the list for ever."""
    path = "/admin/v1/subscribers/mail/host-1"
    assert (await http.delete(path, headers=as_("admin"))).status_code == 404
    await put_receipt(nats, Receipt(name="mail", instance="host-1", state="fresh"))
    await put_receipt(nats, Receipt(name="mail", instance="host-2", state="fresh"))
    assert (await http.delete(path, headers=as_("feed"))).status_code == 403
    assert (await http.delete(path, headers=as_("admin"))).status_code == 204
    assert [each.receipt.instance for each in (await read_receipts(nats)).received] == ["host-2"]
    answer = await http.delete(path, headers=as_("admin"))
    assert (answer.status_code, answer.json()["code"]) == (404, "subscriber_not_found")


async def test_a_body_that_is_encoded_is_refused_as_such(http: Http) -> None:
    """Agents: RFC 9110 section 8.4, not a complaint about JSON that they did send."""
    answer = await http.post(
        REGISTER, content=b"\x1f\x8b", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert answer.json()["error"] == "invalid_request"
