"""The list of clients, and of families of clients: filters, order and page are all in the address."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from msgspec import Struct

from console.gate import Visitor
from console.house import Console
from grantbook.admin import ClientPage, FamilyPage

LIMITS: Final = (25, 50, 100, 200)
DEFAULT_LIMIT: Final = 50
FILTERS: Final = (
    "name",
    "redirect_uri",
    "redirect_host",
    "grant_type",
    "source",
    "status",
    "flag",
    "created_after",
    "created_before",
    "has_active_grants",
    "family",
    "client_id",
    "needs_review",
    "dormant",
    "cut_off_within",
)
"""What the address may hold to choose clients. `dormant` and `cut_off_within` are numbers of days, back from now."""
MANY: Final = frozenset({"grant_type", "flag"})
MAX_DAYS: Final = 3_650
MAX_PAGE: Final = 10_000_000
SPARK_DAYS: Final = 14


class View(Struct, frozen=True):
    """A list that many want, as the part of the address that makes it."""

    name: str
    query: Mapping[str, str]


VIEWS: Final = (
    View("All", {}),
    View("Needs review", {"needs_review": "true"}),
    View("Never used", {"flag": "never_used"}),
    View("Dormant 90 days", {"dormant": "90", "sort": "last_activity_at"}),
    View("Revoked lately", {"cut_off_within": "7", "status": "any"}),
    View("Suspended", {"status": "suspended"}),
    View("Deleted", {"status": "deleted"}),
)
SORTS: Final = {
    "client_name": "Client",
    "created_at": "Created",
    "last_activity_at": "Last activity",
    "active_grants": "Grants",
}


class Shown(Struct, frozen=True):
    """Which clients an address asks for: as it says it, and as the read API is asked."""

    query: dict[str, Any]
    """Filters alone, as they stand in the address."""
    sort: str
    limit: int
    cursor: str | None
    number: int
    """Of the page, from 1: what is told beside the total."""

    def asked(self, now: datetime) -> dict[str, Any]:
        """The same for the read API."""
        said = {name: value for name, value in self.query.items() if name not in {"dormant", "cut_off_within"}}
        if days := _days(self.query.get("dormant")):
            before = (now - timedelta(days=days)).isoformat()
            said |= {"last_activity_before": before, "created_before": said.get("created_before", before)}
        if days := _days(self.query.get("cut_off_within")):
            said["revoked_after"] = (now - timedelta(days=days)).isoformat()
        return said

    @property
    def address(self) -> dict[str, Any]:
        """All but the place in the list, for links that begin it anew."""
        said: dict[str, Any] = dict(self.query)
        if self.sort != "-created_at":
            said["sort"] = self.sort
        if self.limit != DEFAULT_LIMIT:
            said["limit"] = self.limit
        return said


def chosen(parameters: Any, *, limit: int = DEFAULT_LIMIT) -> Shown:
    """What an address's query, or a form, asks for. What it cannot be is for the read API to refuse."""
    query: dict[str, Any] = {}
    for name in FILTERS:
        values = [str(each) for each in parameters.getall(name, []) if each]
        if values:
            query[name] = list(dict.fromkeys(values)) if name in MANY else values[-1]
    return Shown(
        query,
        parameters.get("sort") or "-created_at",
        _number(parameters.get("limit"), limit, LIMITS[-1]),
        parameters.get("cursor") or None,
        _number(parameters.get("page"), 1, MAX_PAGE),
    )


def _number(said: str | None, default: int, most: int) -> int:
    return min(max(int(said), 1), most) if said and said.isascii() and said.isdecimal() and len(said) < 10 else default


def _days(said: str | None) -> int | None:
    return _number(said, 0, MAX_DAYS) or None


@get("/clients", include_in_schema=False)
async def list_clients(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """The clients, with all that is needed to judge them in a row each."""
    shown = chosen(request.query_params)
    answer = await console.api.read(
        visitor.name,
        "/admin/v1/clients",
        ClientPage,
        {
            **shown.asked(console.now()),
            "sort": shown.sort,
            "limit": shown.limit,
            "cursor": shown.cursor,
            "count": True,
            "activity_days": SPARK_DAYS,
        },
        seen=visitor.session.position,
    )
    return await console.page(
        request,
        visitor,
        "clients.html",
        page=answer.content,
        stale=answer.stale,
        shown=shown,
        views=VIEWS,
        sorts=SORTS,
        limits=LIMITS,
        filtered=bool(shown.query),
    )


@get("/families", include_in_schema=False)
async def list_families(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """Clients that are one piece of software, as one row."""
    shown = chosen(request.query_params)
    answer = await console.api.read(
        visitor.name,
        "/admin/v1/families",
        FamilyPage,
        {"name": shown.query.get("name"), "limit": shown.limit, "cursor": shown.cursor, "count": True},
        seen=visitor.session.position,
    )
    return await console.page(
        request,
        visitor,
        "families.html",
        page=answer.content,
        stale=answer.stale,
        shown=shown,
        limits=LIMITS,
    )


ROUTES: Final = [list_clients, list_families]
