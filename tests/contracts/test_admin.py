"""Answers of the read API: what every one of them keeps to."""

from typing import get_args

import msgspec
import pytest
from msgspec import UNSET, Struct, structs

from grantbook import admin

ANSWERS = [
    each for each in vars(admin).values() if isinstance(each, type) and issubclass(each, Struct) and each is not Struct
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_unset_is_absent(answer: type[Struct]) -> None:
    """Callers: a member that is there has a value; nobody has to tell null, the empty text and nothing apart."""
    for each in structs.fields(answer):
        if each.default is not msgspec.NODEFAULT:
            assert each.default is UNSET, each.name
        else:
            assert type(None) not in get_args(each.type), each.name


def test_a_stale_client_is_a_client_and_when_it_was_last_used() -> None:
    """Consoles: one row for clients shows these, too."""
    members = {each.name for each in structs.fields(admin.StaleClient)}
    assert members == {each.name for each in structs.fields(admin.ClientItem)} | {"last_used_at"}
