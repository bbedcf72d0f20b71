"""What a person sees instead of a page: a sentence on what is wrong, and where to go from there."""

from collections.abc import Callable
from typing import Any, Final

from litestar import Response

from console import gate, rendering
from console.api import Away, Refused
from door.problems import Problem

TITLES: Final = {
    400: "This address cannot be understood",
    401: "Sign in first",
    403: "Not from here",
    404: "There is nothing here",
    405: "That cannot be done here",
    409: "It changed meanwhile",
    410: "It was deleted",
    413: "That was too much at once",
    421: "Not under this name",
    429: "Too much at once",
    500: "Something went wrong here",
    503: "Not available right now",
}
AWAY: Final = "away"


def of_refused(refused: Exception) -> Problem:
    """The API said no."""
    assert isinstance(refused, Refused)
    status = refused.status if refused.status in TITLES else 500
    return Problem(status, refused.code, refused.detail or "The service gave no reason.")


def of_away(away: Exception) -> Problem:
    """A service is away."""
    assert isinstance(away, Away)
    return Problem(
        503,
        AWAY,
        f"The {away.service} cannot be asked right now: {away.why}.",
        headers={"Retry-After": "2"},
        members={"service": away.service},
    )


ANSWERS: Final[dict[type[Exception], Callable[[Exception], Problem]]] = {Refused: of_refused, Away: of_away}


def shown(problem: Problem, path: str) -> Response[bytes]:
    """A problem as a page; where signing in helps, the way there."""
    if problem.code == gate.NOT_SIGNED_IN and "return_to" in problem.members:
        wanted = problem.members["return_to"]
        return rendering.see_other(rendering.address("/console/sign-in", return_to=wanted))
    answer = rendering.html(
        "refused.html",
        problem.status,
        layout="page.html",
        admin=None,
        path=path,
        troubles=[],
        title=TITLES.get(problem.status, "Something went wrong here"),
        detail=problem.detail,
        status=problem.status,
        code=problem.code,
        away=problem.members.get("service"),
    )
    answer.headers.update({name: value for name, value in problem.headers.items() if name != "Content-Type"})
    return answer


RENDERINGS: Final[dict[str, Any]] = {"/console": shown}
