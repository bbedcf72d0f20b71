"""RFC 7592: a client reads, replaces and deletes its own registration, and nobody else's."""

from typing import Any

import pytest
from httpx import Response
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from grantbook import subjects
from grantbook.events import Actor, ClientMetadataChanged, Event
from grantbook.sdk.log import LogReader
from registry import clients
from registry.clients import Client, Refusal
from registry.settings import Policy
from tests.registry.given import BY_ADMIN, CLAUDE, NOON, REGISTERED
from tests.registry.over_http import GRANT, PUBLIC, REGISTER, Http, as_, registered

SECRET = {"redirect_uris": ["https://agent.example/cb"]}


def own(body: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {body['registration_access_token']}"}


def path_of(body: dict[str, Any]) -> str:
    uri: str = body["registration_client_uri"]
    return uri.removeprefix("https://id.example")


async def replace(http: Http, body: dict[str, Any], **members: Any) -> Response:
    sent = PUBLIC | {"client_id": body["client_id"]} | members
    return await http.put(path_of(body), json=sent, headers=own(body))


async def test_rfc_7592_2_1_a_client_reads_its_registration(http: Http) -> None:
    """Agents: what was registered, and the token that they came with; nothing that another must not see."""
    body = await registered(http, client_name="Agent")
    answer = await http.get(path_of(body), headers=own(body))
    assert answer.status_code == 200
    assert answer.json() == body
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


async def test_rfc_7592_2_1_the_secret_is_not_shown_again(http: Http) -> None:
    """Everyone: what is kept is a hash."""
    body = (await http.post(REGISTER, json=SECRET)).json()
    answer = (await http.get(path_of(body), headers=own(body))).json()
    assert body["client_secret"] not in str(answer)
    assert answer == {name: value for name, value in body.items() if not name.startswith("client_secret")}


async def test_rfc_7592_2_2_an_update_replaces_the_whole_registration(http: Http, reader: LogReader) -> None:
    """Agents: members that are left out are gone, or have their defaults. Auditors: the event says what changed."""
    body = await registered(http, client_name="Agent", scope="read", software_id="a")
    answer = await replace(http, body, client_name="Agent 2", scope="read")
    assert answer.status_code == 200
    new = answer.json()
    assert new["client_id"] == body["client_id"]
    assert new["client_id_issued_at"] == body["client_id_issued_at"]
    assert new["client_name"] == "Agent 2"
    assert "software_id" not in new
    record = subjects.client_record(body["client_id"])
    event = (await reader.last_on_leader([record]))[record].recorded().event
    assert isinstance(event, ClientMetadataChanged)
    assert event.changed == ("client_name", "software_id")
    assert event.by == Actor("agent")
    seen = (await http.get(f"/idp/v1/clients/{body['client_id']}", headers=as_("idp"))).json()
    assert seen["client_name"] == "Agent 2"


async def test_an_update_rotates_the_registration_access_token(http: Http) -> None:
    """Everyone: a token that leaked is worth nothing after the next update."""
    body = await registered(http)
    new = (await replace(http, body, client_name="B")).json()
    assert new["registration_access_token"] != body["registration_access_token"]
    assert (await http.get(path_of(body), headers=own(body))).status_code == 401
    assert (await http.get(path_of(new), headers=own(new))).status_code == 200
    assert (await replace(http, body, client_name="C")).status_code == 401


async def test_an_update_that_changes_nothing_records_nothing(http: Http, reader: LogReader) -> None:
    """Auditors: the log says what changed, and not that somebody asked."""
    body = await registered(http)
    before = (await reader.state()).last
    assert (await replace(http, body)).status_code == 200
    assert (await reader.state()).last == before


async def test_an_update_gives_a_new_secret(http: Http) -> None:
    """Agents that keep the answer as their registration: the secret in it works, and the old one does not."""
    body = (await http.post(REGISTER, json=SECRET)).json()
    sent = SECRET | {"client_id": body["client_id"], "client_secret": body["client_secret"]}
    new = (await http.put(path_of(body), json=sent, headers=own(body))).json()
    path = f"/idp/v1/clients/{body['client_id']}/authenticate"
    for secret, status in ((new["client_secret"], 204), (body["client_secret"], 401)):
        answer = await http.post(path, json={"client_secret": secret}, headers=as_("idp"))
        assert answer.status_code == status


async def test_a_client_that_becomes_public_has_no_secret_any_more(http: Http) -> None:
    """Everyone: what is no secret of a client does not authenticate it."""
    body = (await http.post(REGISTER, json=SECRET)).json()
    new = (await replace(http, body)).json()
    assert "client_secret" not in new
    answer = await http.post(
        f"/idp/v1/clients/{body['client_id']}/authenticate",
        json={"client_secret": body["client_secret"]},
        headers=as_("idp"),
    )
    assert answer.status_code == 401


class TestKeptSecrets:
    """An operator who does not want secrets to change under their agents."""

    @pytest.fixture
    def policy(self) -> Policy:
        return Policy(rotate_client_secrets=False)

    async def test_by_policy_an_update_keeps_the_secret(self, http: Http) -> None:
        """Agents that do not read the answer of an update: the secret they have goes on."""
        body = (await http.post(REGISTER, json=SECRET)).json()
        sent = SECRET | {"client_id": body["client_id"], "client_name": "B"}
        new = (await http.put(path_of(body), json=sent, headers=own(body))).json()
        assert "client_secret" not in new
        answer = await http.post(
            f"/idp/v1/clients/{body['client_id']}/authenticate",
            json={"client_secret": body["client_secret"]},
            headers=as_("idp"),
        )
        assert answer.status_code == 204

    async def test_a_client_that_becomes_confidential_is_given_one_all_the_same(self, http: Http) -> None:
        """Agents: there is none yet that could be kept."""
        body = await registered(http)
        sent = SECRET | {"client_id": body["client_id"]}
        new = (await http.put(path_of(body), json=sent, headers=own(body))).json()
        assert new["client_secret"]


@pytest.mark.parametrize(
    "members",
    [
        {"client_id": "other"},
        {"client_id": None},
        {"registration_access_token": "x"},
        {"registration_client_uri": "https://id.example/x"},
        {"client_secret_expires_at": 0},
        {"client_id_issued_at": 1},
        {"client_secret": "chosen-by-the-client"},
        {"client_secret": None},
        {"redirect_uris": []},
        {"redirect_uris": ["javascript:alert(1)"]},
        {"grant_types": ["client_credentials"]},
        {"client_name": "a\u202eb"},
    ],
)
async def test_rfc_7592_2_2_an_update_is_as_strict_as_a_registration(
    http: Http, reader: LogReader, members: dict[str, Any]
) -> None:
    """Everyone: what could not be registered does not get in by the back door, and the token stays what it is."""
    body = await registered(http)
    before = (await reader.state()).last
    answer = await replace(http, body, **members)
    assert answer.status_code == 400
    assert answer.json()["error"] in {"invalid_client_metadata", "invalid_redirect_uri"}
    assert (await reader.state()).last == before
    assert (await http.get(path_of(body), headers=own(body))).status_code == 200


async def test_rfc_7592_2_2_an_update_without_the_client_id_is_refused(http: Http) -> None:
    """Agents: who it is for is said, and not guessed."""
    body = await registered(http)
    answer = await http.put(path_of(body), json=PUBLIC, headers=own(body))
    assert answer.status_code == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("authorization", ["", "Bearer x", "Bearer", "Basic eDp5", "of-another", "of-admin"])
async def test_no_other_token_manages_a_client(http: Http, method: str, authorization: str) -> None:
    """Clients: not another's token, not an admin's, none at all."""
    body, other = await registered(http), await registered(http)
    token = {"of-another": own(other)["Authorization"], "of-admin": as_("admin")["Authorization"]}
    sent = {"Authorization": token.get(authorization, authorization)} if authorization else {}
    answer = await http.request(method, path_of(body), headers=sent, json=PUBLIC | {"client_id": body["client_id"]})
    assert answer.status_code == 401
    assert answer.json()["error"] == "invalid_token"
    assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert answer.headers["cache-control"] == "no-store"
    assert (await http.get(path_of(body), headers=own(body))).status_code == 200


async def test_rfc_7592_2_3_a_client_deletes_itself_and_all_of_its_grants(http: Http) -> None:
    """Users: what an agent gives back is over, and its token opens nothing any more."""
    body = await registered(http)
    grants = f"/idp/v1/clients/{body['client_id']}/grants"
    grant = (await http.post(grants, json=GRANT, headers=as_("idp"))).json()
    answer = await http.delete(path_of(body), headers=own(body))
    assert answer.status_code == 204
    assert answer.headers["grantbook-position"].startswith("log-")
    state = (await http.get(f"{grants}/{grant['grant_id']}", headers=as_("idp"))).json()
    assert state == {"active": False}
    for method in ("GET", "PUT", "DELETE"):
        again = await http.request(method, path_of(body), headers=own(body), json=PUBLIC)
        assert again.status_code == 401


async def test_after_an_admins_deletion_the_clients_token_is_worth_nothing(http: Http) -> None:
    """Admins: gone is gone, also for the client's own management."""
    body = await registered(http)
    await http.delete(f"/admin/v1/clients/{body['client_id']}", headers=as_("admin"))
    assert (await http.get(path_of(body), headers=own(body))).status_code == 401


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_suspended_client_cannot_leave_its_suspension(http: Http, method: str) -> None:
    """Admins: what they suspended stays as they left it, to be looked at."""
    body = await registered(http)
    await http.post(f"/admin/v1/clients/{body['client_id']}/suspend", headers=as_("admin"))
    sent = PUBLIC | {"client_id": body["client_id"], "client_name": "Innocent"}
    answer = await http.request(method, path_of(body), headers=own(body), json=sent)
    assert answer.status_code == 403
    assert answer.json()["error"] == "access_denied"
    assert (await http.get(path_of(body), headers=own(body))).status_code == 200
    seen = (await http.get(f"/idp/v1/clients/{body['client_id']}", headers=as_("idp"))).json()
    assert seen["status"] == "suspended"
    assert "client_name" not in seen


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b'{"a":"' + b"a" * 65_536 + b'"}', {}, 413),
    ],
)
async def test_a_malformed_update_is_refused_as_a_malformed_registration(
    http: Http, content: bytes, headers: dict[str, str], status: int
) -> None:
    """Everyone: one way in, one set of rules."""
    body = await registered(http)
    sent = {"Content-Type": "application/json"} | headers | own(body)
    answer = await http.put(path_of(body), content=content, headers=sent)
    assert answer.status_code == status
    assert answer.json()["error"]


async def test_other_methods_on_a_registration_are_405(http: Http) -> None:
    """Agents: the methods that there are."""
    body = await registered(http)
    answer = await http.post(path_of(body), headers=own(body))
    assert answer.status_code == 405
    assert {"GET", "PUT", "DELETE"} <= set(answer.headers["allow"].split(", "))


class AgentsAndAdmins(RuleBasedStateMachine):
    """A client, an agent that may try everything, and an admin."""

    @initialize()
    def begin(self) -> None:
        self.record: Event = REGISTERED
        self.gate: Event | None = None
        self.client: Client | None = clients.evolve(self.record, self.gate)
        self.status_by_admin = "active"

    def _apply(self, event: Any) -> None:
        if event is None:
            return
        if isinstance(event, ClientMetadataChanged):
            self.record = event
        else:
            self.gate = event
        self.client = clients.evolve(self.record, self.gate)

    @rule(name=st.text(max_size=5))
    def agent_updates(self, name: str) -> None:
        said = (
            CLAUDE
            if not name
            else type(CLAUDE)(
                redirect_uris=CLAUDE.redirect_uris,
                token_endpoint_auth_method="none",
                grant_types=CLAUDE.grant_types,
                client_name=name,
            )
        )
        try:
            event = clients.update(self.client, metadata=said, at=NOON, by=Actor("agent"))
        except Refusal:
            return
        self._apply(event)

    @rule()
    def agent_deletes(self) -> None:
        try:
            event = clients.unregister(self.client, at=NOON, by=Actor("agent"))
        except Refusal:
            return
        self._apply(event)
        self.status_by_admin = "deleted"

    @rule(act=st.sampled_from([clients.suspend, clients.resume]))
    def admin_acts(self, act: Any) -> None:
        try:
            event = act(self.client, BY_ADMIN)
        except Refusal:
            return
        self._apply(event)
        assert self.client is not None
        self.status_by_admin = self.client.status

    @invariant()
    def only_admins_move_the_gate(self) -> None:
        """But for leaving for good: no agent command takes a client out of a suspension or back from a deletion."""
        if hasattr(self, "client") and self.client is not None:
            assert self.client.status == self.status_by_admin


TestAgentsAndAdmins = AgentsAndAdmins.TestCase
