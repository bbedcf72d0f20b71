"""Hostile input by the thousand, against a product that runs: never a 5xx, memory that stays, nothing left behind.

How many: `GRANTBOOK_INPUTS`, 5,000 by default.
"""

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from grantbook import subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader

INPUTS = int(os.environ.get("GRANTBOOK_INPUTS", "5000"))
REGISTER = "/auth/connect/register"
MEMORY_GROWTH_BYTES = 60 * 1024 * 1024
WARM_UP = 500
CALL_SECONDS = 30.0
AT_ONCE = 8

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3_600)]
EVERY = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("fuzz")) as servers:
        for limit in ("GRANTBOOK_REGISTRATION_LIMIT", "GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE"):
            servers.environment[limit] = "off"  # refusing by number would hide how the rest refuses
        yield servers


@pytest.fixture(scope="module")
def registry(product: Product) -> Iterator[Service]:
    yield from running(Service(product, "registry", "serve"))


@pytest.fixture(scope="module")
def projector(product: Product) -> Iterator[Service]:
    with processes.service(product, "projector", "project", serves=False):
        yield from running(Service(product, "projector", "serve"))


def running(service: Service) -> Iterator[Service]:
    service.start()
    try:
        service.wait_ready()
        yield service
    finally:
        service.stop()


def memory(service: Service) -> int:
    assert service._process is not None
    return int(psutil.Process(service._process.pid).memory_info().rss)


async def last_position(product: Product) -> int:
    nats = await connection.connect(product.nats_url, name="fuzz")
    try:
        async with LogReader(nats, subjects.LOG) as log:
            return (await log.state()).last
    finally:
        await connection.close(nats)


MEMBERS = """
    redirect_uris token_endpoint_auth_method grant_types response_types application_type client_name client_uri logo_uri
    scope contacts tos_uri policy_uri jwks_uri jwks software_id software_version software_statement client_id
    client_secret client_name#de client_uri#x-\u00e4 logo_uri# source status __proto__
""".split()  # noqa: SIM905  as a list it would fill a page
URIS = st.sampled_from(
    """
    https://a.example/cb http://localhost:1/cb cursor://x/cb javascript:alert(1) https://u@a.example/ https://a.example/#f
    https://\u0430.example/ http://a.example/ data:text/html,x https://[::1 //a.example /cb https:a https://a.example:99999/
    """.split()  # noqa: SIM905  as a list it would fill a page
)
TEXTS = (
    st.text(max_size=50)
    | URIS
    | st.sampled_from(["", "none", "client_secret_basic", "code", "authorization_code", "a.b.c"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(TEXTS | st.sampled_from(["keys", "kty", "n"]), inner, max_size=4)
    ),
    max_leaves=12,
)
REGISTRATIONS = st.dictionaries(st.sampled_from(MEMBERS) | st.text(max_size=10), VALUES, max_size=8).flatmap(
    lambda members: st.just(members) | URIS.map(lambda uri: members | {"redirect_uris": [uri]})
)


def mutated(body: bytes, dice: random.Random) -> bytes:
    """The body with some of its bytes cut out, doubled, or made others."""
    for _ in range(dice.randrange(1, 4)):
        place = dice.randrange(len(body) + 1)
        end = place + dice.randrange(1, 6)
        body = (
            body[:place]
            + dice.choice([b"", body[place:end] * 2, dice.randbytes(end - place), b'"', b"{", b"\\u"])
            + body[end:]
        )
    return body


def test_no_registration_is_a_server_error_or_leaves_a_trace(product: Product, registry: Service) -> None:
    """Operators: what strangers send is registered or refused; what is refused is nowhere; memory stays what it was."""
    sent = registered = 0
    before = asyncio.run(last_position(product))
    measured = 0
    url = f"http://127.0.0.1:{registry.port}{REGISTER}"

    with httpx.Client(timeout=CALL_SECONDS) as http:

        @settings(
            max_examples=INPUTS // 2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=EVERY
        )
        @given(REGISTRATIONS, st.randoms(use_true_random=False))
        def register(members: dict[str, Any], dice: random.Random) -> None:
            body = json.dumps(members).encode()
            send(body)
            send(mutated(body, dice))

        def send(body: bytes) -> None:
            nonlocal sent, registered, measured
            answer = http.post(url, content=body, headers={"Content-Type": "application/json"})
            sent += 1
            if sent == WARM_UP:
                measured = memory(registry)
            assert answer.status_code in {201, 400, 413}, answer.text
            assert answer.headers["cache-control"] == "no-store"
            said = answer.json()
            if answer.status_code == 201:
                registered += 1
                assert None not in said.values()
                assert "" not in said.values()
            else:
                assert said["error"]
                assert said["error_description"].isascii()

        register()
    assert sent >= INPUTS - 1
    assert asyncio.run(last_position(product)) - before == registered
    assert 0 < registered < sent
    assert memory(registry) - measured < MEMORY_GROWTH_BYTES


def test_the_documented_operations_hold_against_schemathesis(
    product: Product, registry: Service, projector: Service
) -> None:
    """Everyone who reads the OpenAPI document: whatever fits it, and whatever does not, no operation is a 5xx."""
    checked = 0
    for service in (registry, projector):
        url = f"http://127.0.0.1:{service.port}"
        schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json").json())
        operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
        kept = [each for each in operations if not each.path.startswith(("/revocations", "/metrics"))]
        with httpx.Client(base_url=url, timeout=CALL_SECONDS) as http:
            for operation in kept:
                checked += hammered(http, operation, product, max(1, INPUTS // (2 * len(kept))))
    assert checked >= INPUTS * 0.8


def hammered(http: httpx.Client, operation: Any, product: Product, examples: int) -> int:
    """Send so many generated requests; how many were sent."""
    roles = {"/idp": "idp", "/admin": "admin", "/audit": "auditor"}
    token = next((product.tokens[role] for path, role in roles.items() if operation.path.startswith(path)), None)  # type: ignore[index]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    count = 0

    def send(case: Any) -> None:
        nonlocal count
        count += 1
        arguments = case.as_transport_kwargs(base_url=str(http.base_url).rstrip("/"))
        given_headers = {
            key: value for key, value in dict(arguments.get("headers") or {}).items() if _sendable(key, value)
        }
        request = http.build_request(
            arguments["method"],
            arguments["url"],
            params=arguments.get("params"),
            json=arguments.get("json"),
            content=arguments.get("data"),
            headers=given_headers | headers,
        )
        answer = http.send(request)
        assert answer.status_code < 500 or answer.headers.get("retry-after"), (
            f"{request.method} {request.url} {request.content[:500]!r}: {answer.status_code} {answer.text[:500]}"
        )

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        configured: Any = settings(
            max_examples=max(1, examples // 2 + 1),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        strategy = operation.as_strategy(generation_mode=mode)
        run: Any = configured(given(strategy)(send))  # type: ignore[no-untyped-call]
        try:
            run()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # there is nothing about it that could be wrong
    return count


def _sendable(name: str, value: object) -> bool:
    return name.isascii() and isinstance(value, str) and value.isascii() and value.isprintable()
