"""The transmitter as a process of its own beside a registry: killed, started again, with receivers that come and go."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import jwt
import pytest
from litestar import Response

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from tests.system.http import Caller
from tests.transmitter.given import POLL_SECONDS, Receiver, unverified
from transmitter import sets

GRANTS = 60
SECONDS = 60.0


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    with processes.servers(tmp_path) as servers:
        yield servers


async def until_sessions(receiver: Receiver, count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while len({each["sub_id"]["session"]["id"] for each in receiver.claims if "session" in each["sub_id"]}) < count:
            await asyncio.sleep(POLL_SECONDS)


@pytest.mark.faults
async def test_every_revoked_grant_arrives_whatever_dies(product: Product, tmp_path: Path) -> None:
    """Users: their grants' end reaches every receiver, though the transmitter is killed and the receiver goes away."""
    receiver = Receiver()
    transmitter = Service(product, "transmitter", "serve")
    url = f"http://127.0.0.1:{transmitter.port}"
    transmitter.environment |= {
        "GRANTBOOK_SSF_ISSUER": url,
        "GRANTBOOK_SSF_SUBJECT_ISSUER": "https://idp.example",
        "GRANTBOOK_SSF_SIGNING_KEYS_FILE": str(tmp_path / "signing.json"),
        "GRANTBOOK_SSF_SEALING_KEY_FILE": str(tmp_path / "sealing.key"),
        "GRANTBOOK_SSF_DEVELOPMENT": "on",
    }
    transmitter.start()
    with processes.service(product, "registry", "serve") as writes:
        try:
            await asyncio.to_thread(transmitter.wait_ready)
            registry = f"http://127.0.0.1:{writes}"
            idp, admin = Caller(registry, product.tokens["idp"]), Caller(registry, product.tokens["admin"])
            feed = Caller(url, product.tokens["feed"])
            client = Caller(registry)("POST", "/auth/connect/register", {"redirect_uris": ["http://localhost/cb"]}).body
            expires_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            for number in range(GRANTS):
                grant = {"user_id": f"u{number}", "username": "u", "scopes": [], "expires_at": expires_at}
                issued = idp(
                    "POST", f"/idp/v1/clients/{client['client_id']}/grants", grant | {"grant_id": f"g{number}"}
                )
                assert issued.status == 201
            delivery = {"method": "urn:ietf:rfc:8935", "endpoint_url": receiver.url}
            stream = feed("POST", "/ssf/v1/streams", {"delivery": delivery}).body
            # The receiver is away when it happens, and fails every other time when it is there again.
            assert admin("DELETE", f"/admin/v1/clients/{client['client_id']}").status == 204
            answers = iter(range(1_000_000))
            receiver.answer = lambda _: Response(None, status_code=202 if next(answers) % 2 else 503)
            async with receiver.listening():
                await until_sessions(receiver, 10)
                transmitter.kill()
            transmitter.start()
            await asyncio.to_thread(transmitter.wait_ready)
            receiver.answer = lambda _: Response(None, status_code=202)
            async with receiver.listening():
                await until_sessions(receiver, GRANTS)
            by_subject: dict[str, set[str]] = {}
            for claims in receiver.claims:
                by_subject.setdefault(str(claims["sub_id"]), set()).add(claims["jti"])
            assert len(by_subject) == GRANTS + 1
            assert all(len(jtis) == 1 for jtis in by_subject.values())
            known = jwt.PyJWKClient(f"{url}/ssf/v1/jwks.json")
            for token in receiver.tokens:
                key = await asyncio.to_thread(known.get_signing_key_from_jwt, token)
                jwt.decode(token, key, algorithms=["ES256"], audience=stream["aud"], issuer=url)
            (deleted,) = {each["jti"] for each in receiver.claims if sets.CLIENT_DELETED in each["events"]}
            assert deleted in by_subject[str(next(c["sub_id"] for c in receiver.claims if c["jti"] == deleted))]
            reasons = {
                unverified(each)["events"][sets.SESSION_REVOKED]["reason_admin"]["en"]
                for each in receiver.tokens
                if sets.SESSION_REVOKED in unverified(each)["events"]
            }
            assert reasons == {"client_deleted: the client was deleted"}
            async with httpx.AsyncClient(base_url=url) as operator:
                metrics = await operator.get("/metrics", headers={"Authorization": f"Bearer {product.tokens['ops']}"})
                assert 'grantbook_ssf_sets_total{outcome="taken"}' in metrics.text
        finally:
            transmitter.stop()
