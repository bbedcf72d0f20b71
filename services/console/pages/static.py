"""Our own style sheet, script and pictures. A file's URL changes with the file, so browsers keep what they have."""

from typing import Final

from litestar import Response, get
from litestar.params import FromPath

from console.rendering import HEADERS, STATIC, STATIC_URLS
from door.problems import CODES, Problem

MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
KEPT: Final = "public, max-age=31536000, immutable"
_FILES: Final = {url: (STATIC / name).read_bytes() for name, url in STATIC_URLS.items()}


@get("/static/{fingerprint:str}/{name:str}", include_in_schema=False, sync_to_thread=False)
def static_file(fingerprint: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    """One of our files."""
    content = _FILES.get(f"/console/static/{fingerprint}/{name}")
    if content is None:
        raise Problem(404, "not_found", CODES["not_found"].text)
    media_type = MEDIA_TYPES[name[name.rindex(".") :]]
    return Response(content, media_type=media_type, headers={**HEADERS, "Cache-Control": KEPT})


ROUTES: Final = [static_file]
