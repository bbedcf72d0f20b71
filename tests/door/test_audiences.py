"""The paths of the whole house: each prefix opens to one role, on every route that was ever added under it."""

from collections.abc import Iterator

import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute

import projector.app
import registry.app
from door import front, roles
from tests.door.conftest import KEYRING, ask, bearer

AUDIENCES: dict[str, roles.Role] = {
    "/idp/v1": "idp",
    "/admin/v1": "admin",
    "/audit/v1": "auditor",
    "/revocations/v1": "feed",
    "/metrics": "ops",
}
OPEN_TO_ALL = {
    "/auth/connect/register",
    "/auth/connect/register/{client_id}",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/docs/openapi.json",
}
UNDER_DOCS = "/docs/{path}"


@pytest.fixture(scope="module")
def house() -> Litestar:
    """All routes of both services, with no server behind them: whoever passes a guard here would find out."""
    return front.litestar_app(
        [*registry.app.ROUTES, *projector.app.ROUTES],
        name="house",
        keyring=KEYRING,
        mint_request_id=lambda: "minted",
        dependencies=registry.app.DEPENDENCIES | projector.app.DEPENDENCIES,
        renderings=registry.app.RENDERINGS,
    )


def operations(app: Litestar) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        assert isinstance(route, HTTPRoute)
        for method in sorted(route.route_handler_map):
            if method != "OPTIONS":  # says which methods there are, and nothing else
                yield method, route.path_format


def role_of(path: str) -> roles.Role | None:
    return next((role for prefix, role in AUDIENCES.items() if path == prefix or path.startswith(f"{prefix}/")), None)


async def test_every_route_opens_to_the_role_of_its_prefix_alone(house: Litestar) -> None:
    """A route that somebody adds without a guard, or with another prefix's, would show or end grants for anybody."""
    guarded = [(method, path, role) for method, path in operations(house) if (role := role_of(path)) is not None]
    assert {role for _, _, role in guarded} == set(roles.ROLES) - {"console"}  # which has the rights of a person alone
    for method, path, role in guarded:
        filled = path.replace("{", "").replace("}", "")
        assert (await ask(house, filled, method=method)).status == 401, (method, path)
        for other in roles.ROLES:
            if other != role:
                answer = await ask(house, filled, method=method, headers=bearer(other))
                assert answer.status == 403, (method, path, other)


def test_what_is_open_to_all_was_meant_to_be(house: Litestar) -> None:
    """A new path is either under a prefix that has a role, or was thought about here."""
    assert {path for _, path in operations(house) if role_of(path) is None} - {UNDER_DOCS} == OPEN_TO_ALL


async def test_the_documentation_shows_every_operation_with_its_role(house: Litestar) -> None:
    """Integrators read the roles from the document; it is made of the real routes, and so must be able to be made."""
    document = (await ask(house, "/openapi.json")).json()
    page = (await ask(house, "/docs")).body.decode()
    assert len(document["paths"]) > len(AUDIENCES)
    for path, item in document["paths"].items():
        assert f"<code>{path}</code>" in page
        for operation in item.values():
            role = role_of(path)
            assert operation.get("security") == (None if role is None else [{"bearer": [role]}]), path
