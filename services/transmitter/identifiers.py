"""Who a SET is about: subject identifiers (RFC 9493, SSF 1.0 section 3), and what a receiver chose to hear of.

Every stream hears of all subjects. A receiver may take some away, and put them back; the last of its rules that is
about a subject counts. A rule is about a subject when all that the rule names stands in the subject, too: taking a user
away also takes away that user's sessions, and nothing else. That is narrower than the matching of SSF 1.0 section
8.1.3.1, by which a rule about one user would match every event that names no user, and so hide the deletion of clients.
Sending more than was asked for is allowed (SSF 1.0 section 9.3); hiding a revocation by mistake is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

MAX_RULES: Final = 256
"""Of one stream: a receiver that wants to hear of few users filters by itself."""
MAX_SUBJECT_BYTES: Final = 1_024
"""Of one subject identifier as JSON."""

SubjectId = Mapping[str, Any]

_COMPLEX: Final = "complex"


class Rule(Struct, frozen=True):
    """What a receiver said about a subject: to hear of it, or not."""

    hears: bool
    subject: dict[str, Any]


class TooManyRules(Exception):
    """A stream takes no more rules about subjects."""


def opaque(id_: str) -> dict[str, Any]:
    """RFC 9493 section 3.2.5."""
    return {"format": "opaque", "id": id_}


def iss_sub(issuer: str, subject: str) -> dict[str, Any]:
    """RFC 9493 section 3.2.4."""
    return {"format": "iss_sub", "iss": issuer, "sub": subject}


def complex_of(**members: SubjectId) -> dict[str, Any]:
    """A complex subject (SSF 1.0 section 3.3): all of its members together say who it is."""
    return {"format": _COMPLEX, **members}


def is_identifier(subject: SubjectId) -> bool:
    """Whether it can be one: it says its format, and a complex one has members that are identifiers themselves."""
    format_ = subject.get("format")
    if not isinstance(format_, str) or not format_ or len(subject) < 2:
        return False
    if format_ != _COMPLEX:
        return True
    members = [value for name, value in subject.items() if name != "format"]
    return all(isinstance(each, Mapping) and each.get("format") != _COMPLEX and is_identifier(each) for each in members)


def _members(subject: SubjectId) -> Mapping[str, Any]:
    if subject["format"] == _COMPLEX:
        return {name: value for name, value in subject.items() if name != "format"}
    # A user alone is a user: whoever names one simply means the same as whoever names it in a complex subject.
    return {"": subject} if subject["format"] == "opaque" else {"user": subject}


def is_about(rule: Rule, subject: SubjectId) -> bool:
    """Whether all that the rule names stands in the subject, too."""
    named, members = _members(rule.subject), _members(subject)
    return all(members.get(name) == value for name, value in named.items())


def hears_of(rules: Sequence[Rule], subject: SubjectId) -> bool:
    """Whether a stream with these rules hears of a subject: the last rule about it says so, and without any it does."""
    return next((rule.hears for rule in reversed(rules) if is_about(rule, subject)), True)


def with_rule(rules: Sequence[Rule], rule: Rule) -> tuple[Rule, ...]:
    """The rules after a receiver said another. Raises `TooManyRules`."""
    others = tuple(each for each in rules if each.subject != rule.subject)
    if rule.hears and not any(not each.hears for each in others):
        return ()  # nothing is taken away, so nothing needs to be put back
    if len(others) >= MAX_RULES:
        raise TooManyRules
    return (*others, rule)
