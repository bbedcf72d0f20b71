"""Forms of our own pages, as browsers send them."""

from typing import Any, Final

from litestar import Request
from litestar.datastructures import FormMultiDict, State

from door.problems import Problem

MEDIA_TYPE: Final = "application/x-www-form-urlencoded"


async def form_of(request: Request[Any, Any, State]) -> FormMultiDict:
    """What was filled in. Raises a `Problem` for what no form of ours is sent as: its parts could say anything."""
    if request.content_type[0] not in {MEDIA_TYPE, ""}:  # one without a field may have no type
        raise Problem(415, "unsupported_media_type", f"A form is sent as {MEDIA_TYPE}; nothing was done.")
    return await request.form()
