"""The one table from what the registry refuses or cannot do to the problem that it answers with."""

from collections.abc import Callable
from typing import Final

from door.problems import Problem, unavailable
from grantbook.sdk.log import Unavailable
from grantbook.wire import Malformed
from registry.clients import ClientGone, ClientNotAdmitted, ClientNotFound
from registry.commit import AppendFailed
from registry.grants import GrantConflict, GrantNotFound
from registry.many import ListTooOld
from registry.store import Contended, Halted, LogFull, WrittenByNewer

PATIENCE_SECONDS: Final = 60


def _problem(status: int, code: str, detail: str) -> Callable[[Exception], Problem]:
    return lambda _: Problem(status, code, detail)


def _later(detail: str, *, code: str = "unavailable", seconds: int = 1) -> Callable[[Exception], Problem]:
    return lambda _: unavailable(detail, code=code, retry_after_seconds=seconds)


ANSWERS: Final[dict[type[Exception], Callable[[Exception], Problem]]] = {
    ClientNotFound: _problem(404, "client_not_found", "No client was ever registered under this id."),
    ClientGone: _problem(410, "client_deleted", "The client was deleted; no grant of it is valid."),
    ClientNotAdmitted: _problem(403, "client_suspended", "The client is suspended; an admin may resume it."),
    ListTooOld: _problem(409, "list_too_old", "Much was used since the list was made; make it again."),
    GrantNotFound: _problem(404, "grant_not_found", "The client has no grant of this id."),
    GrantConflict: _problem(409, "grant_conflict", "The grant id is taken by a grant with other content."),
    LogFull: _later("Only revocations are recorded until the log has room.", code="log_full", seconds=PATIENCE_SECONDS),
    Contended: _later("Others were faster, or the log did not answer; nothing is promised. Try again."),
    Halted: lambda halted: unavailable(f"Nothing is recorded here: {halted}.", retry_after_seconds=PATIENCE_SECONDS),
    AppendFailed: _later("The log does not take appends right now. Try again."),
    Unavailable: _later("The log cannot be reached right now. Try again."),
    WrittenByNewer: _later(
        "The log has facts of a newer version of Grantbook: update this one.", seconds=PATIENCE_SECONDS
    ),
    Malformed: _later(
        "The log has something here that is no event of ours; see the service's log.", seconds=PATIENCE_SECONDS
    ),
}
