"""What filters of the list of clients ask, as conditions on the tables that know it.

Rows go by these names: `l` of `listed`, or of a table that has traits as it has; `r` of `redirections`; `s` of
`standings`; `c` of `clients`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct, structs

from appraisal import flags
from projector import traits
from projector.pages import Where

Of = Literal["l", "s"]
"""Which of the two tables, where both know."""

CLIENT_STATES: Final = ("active", "suspended", "deleted", "any")


class ClientFilter(Struct, frozen=True, kw_only=True):
    """Which clients. Repeated values must all hold."""

    name: str | None = None
    redirect_uri: str | None = None
    redirect_host: str | None = None
    grant_types: Sequence[str] = ()
    source: str | None = None
    status: str = "active"
    flags: Sequence[str] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    last_activity_before: datetime | None = None
    has_active_grants: bool | None = None
    family: str | None = None
    needs_review: bool | None = None
    client_key: str | None = None
    revoked_after: datetime | None = None

    @property
    def asks_of_time(self) -> bool:
        """Whether it asks when clients were registered."""
        return self.created_after is not None or self.created_before is not None

    @property
    def asks_of_standing(self) -> bool:
        """Whether it asks of what changes all the time."""
        return self.asks_of_grants or self.asks_of_activity

    @property
    def asks_of_activity(self) -> bool:
        """Whether it asks when clients were used: what no tally can tell."""
        return self.last_activity_before is not None or traits.TIMELY_FLAG in self.flags

    @property
    def asks_of_redirects(self) -> bool:
        """Whether it asks where clients redirect to."""
        return self.redirect_uri is not None or self.redirect_host is not None

    @property
    def asks_of_grants(self) -> bool:
        """Whether it asks for active grants, or for none, where both are possible."""
        return self.has_active_grants is not None and not self.is_of_closed

    @property
    def is_of_closed(self) -> bool:
        """Whether all that it finds are suspended, or all deleted. No grant of these is active."""
        return self.status in traits.CLOSED

    @property
    def contradicts_itself(self) -> bool:
        """Whether nothing can pass."""
        never_used = traits.TIMELY_FLAG in self.flags
        return (self.is_of_closed and bool(self.has_active_grants)) or (self.status == "deleted" and never_used)

    @property
    def asks_of_others(self) -> bool:
        """Whether it asks what only `clients`, or labels that hardly any client has, can tell."""
        return (
            self.family is not None
            or self.client_key is not None
            or self.revoked_after is not None
            or bool(_rare(self))
        )


def of_traits(where: Where, wanted: ClientFilter) -> None:
    """Of `l`: all that traits tell, the status included."""
    known = [each for each in (*wanted.flags, *(f"grant:{each}" for each in wanted.grant_types)) if each in _TRAITS]
    if wanted.source is not None and f"source:{wanted.source}" in _TRAITS:
        known.append(f"source:{wanted.source}")
    if known:
        where.add(traits.has(*known))
    if wanted.source is not None and f"source:{wanted.source}" not in _TRAITS:
        where.add(traits.lacks("source:cimd", "source:manual"))
    if wanted.needs_review is not None:
        where.add((traits.has_any if wanted.needs_review else traits.lacks)(*flags.TO_REVIEW))
    if wanted.status != "any":
        where.add(_STATES[wanted.status])


def asks_of_traits(wanted: ClientFilter) -> bool:
    """Whether it asks for any but the status."""
    where = Where()
    of_traits(where, structs.replace(wanted, status="any"))
    return bool(where)


def tallied(wanted: ClientFilter) -> str:
    """Of `l` of a tally: how many of its clients are as asked for, of all that tallies tell."""
    if not wanted.asks_of_grants:
        return "l.clients"
    return "l.in_use" if wanted.has_active_grants else "l.clients - l.in_use"


def of_labels(where: Where, wanted: ClientFilter) -> None:
    """Of `l`: the labels of what is asked for, as an index of these finds them."""
    labels = [each for each in wanted.flags if each != traits.TIMELY_FLAG]
    labels += [f"grant:{each}" for each in wanted.grant_types]
    if wanted.source is not None:
        labels.append(f"source:{wanted.source}")
    if wanted.status != "any":
        labels.append(f"status:{wanted.status}")
    if labels:
        where.add("l.labels @> {}", labels)
    if wanted.needs_review:
        where.add("l.labels && {}", list(flags.TO_REVIEW))


def of_name(where: Where, wanted: ClientFilter) -> None:
    """Of `l`: a part of its name, looked at."""
    if wanted.name is not None:
        where.add("l.name LIKE {}", _pattern(wanted.name.casefold()))


def of_name_by_index(where: Where, wanted: ClientFilter) -> None:
    """Of `names`: the same, as its index finds it: by trigrams or, where there are none, by pairs of characters."""
    name = (wanted.name or "").casefold()
    if _TRIGRAM.search(name):
        of_name(where, wanted)
    else:
        # Not `LIKE`, which the index would be asked, too, and have to be read whole for.
        where.add("pairs(l.name) @@ {}::text::tsquery AND strpos(l.name, {}) > 0", _pairs(name), name)


def of_redirects(where: Where, wanted: ClientFilter, row: str = "r") -> None:
    """Of `redirections`: a part of one of them, and a host."""
    if wanted.redirect_uri is not None:
        where.add(f"{row}.redirects LIKE {{}}", _pattern(wanted.redirect_uri))
        if "\n" in wanted.redirect_uri:
            where.add("false")  # no URI has a line break, and nothing may be found across two
    if wanted.redirect_host is not None:
        where.add(f"{row}.hosts @> {{}}", [wanted.redirect_host.lower().strip(".").strip("[]")])


def of_time(where: Where, wanted: ClientFilter, of: Of) -> None:
    """When it was registered."""
    if wanted.created_after is not None:
        where.add(f"{of}.created_at > {{}}", wanted.created_after)
    if wanted.created_before is not None:
        where.add(f"{of}.created_at < {{}}", wanted.created_before)


def of_standing(where: Where, wanted: ClientFilter) -> None:
    """Of `s`: what changes all the time."""
    if wanted.last_activity_before is not None:
        where.add("s.last_activity_at < {}", wanted.last_activity_before)
    if wanted.asks_of_grants:
        where.add("s.active_grants > 0" if wanted.has_active_grants else "s.active_grants = 0")
    if traits.TIMELY_FLAG in wanted.flags:
        where.add("s.status <> 'deleted'")
        where.add(NEVER_USED)


def of_status(where: Where, wanted: ClientFilter) -> None:
    """Of `s`: the status. That of clients with active grants goes without saying, as an index of those has it."""
    if wanted.status != "any" and not (wanted.has_active_grants and wanted.status == "active"):
        where.add("s.status = {}", wanted.status)


def of_others(where: Where, wanted: ClientFilter, of: Of, since: int | None) -> None:
    """What only `clients` tells, asked for the few that have it; and labels that hardly any client has.

    `since` is the first position at or behind `revoked_after`.
    """
    if rare := _rare(wanted):
        where.add("l.labels @> {}", rare)
    if wanted.client_key is not None:
        where.add(_AMONG[of].format("c.client_key = {}"), wanted.client_key)
    if wanted.family is not None:
        where.add(_AMONG[of].format("c.family = {}"), wanted.family)
    if wanted.revoked_after is not None:
        if since is None:
            where.add("false")
        else:
            where.add(_AMONG[of].format(_CUT_OFF_SINCE), since, since)


NEVER_USED: Final = f"""
    s.last_granted_at = '-infinity' AND s.last_activity_at = '-infinity'
    AND s.created_at < now() - interval '{flags.NEVER_USED_DAYS} days'
"""
_TRAITS: Final = traits.CONDITIONS
_STATES: Final[Mapping[str, str]] = {
    "active": traits.lacks(*traits.CLOSED),
    "suspended": f"{traits.has('suspended')} AND {traits.lacks('deleted')}",
    "deleted": traits.has("deleted"),
}
_AMONG: Final = {
    "l": "l.registered_position IN (SELECT c.registered_position FROM clients c WHERE {})",
    "s": "s.client_key IN (SELECT c.client_key FROM clients c WHERE {})",
}
_CUT_OFF_SINCE: Final = """
    c.client_key IN (
        SELECT e.client_key FROM events e
        WHERE e.position >= {} AND e.type IN ('grant.revoked', 'client.suspended', 'client.deleted')
        UNION
        SELECT g.client_key FROM cut_offs k JOIN grants g ON g.user_key = k.user_key
        WHERE k.position >= {} AND g.issued_position < k.position AND g.lapses_at > k.recorded_at
            AND (g.revoked_position IS NULL OR g.revoked_position > k.position)
    )
"""
"""Clients that lost a grant by a revocation since, or were suspended or deleted."""
_TRIGRAM: Final = re.compile("[0-9A-Za-z]{3}")


def _rare(wanted: ClientFilter) -> list[str]:
    """Labels of what no trait tells."""
    asked = (*wanted.flags, *(f"grant:{each}" for each in wanted.grant_types))
    return [each for each in asked if each not in _TRAITS and each != traits.TIMELY_FLAG]


def _pattern(text: str) -> str:
    """What `LIKE` is asked for any text with this one in it."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _pairs(text: str) -> str:
    """What asks for all pairs of characters of a text; of a single character, for those that it begins."""
    pairs = [text[each : each + 2].replace("\\", "\\\\").replace("'", "''") for each in range(max(1, len(text) - 1))]
    return " & ".join(f"'{each}'" for each in pairs) + (":*" if len(text) == 1 else "")
