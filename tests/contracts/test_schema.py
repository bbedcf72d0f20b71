"""What is published for other languages and for people says what the code says."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from grantbook import events, schema, sealed, subjects, wire
from grantbook.events import EVENT_TYPES
from grantbook.schema.__main__ import examples
from tests.contracts.examples import EXAMPLES

FOLDER = Path(schema.__file__).parent
DOCS = Path(__file__).parents[2] / "docs" / "events.md"
GOLDEN = Path(__file__).with_name("golden")
COMMON = {"type", "at", "by", "caused_by"}
DOCUMENTS = schema.documents(examples(GOLDEN))
GATES = {
    "client.suspended": "clientGate",
    "client.resumed": "clientGate",
    "client.deleted": "clientGate",
    "grant.revoked": "grantGate",
    "user.grants_revoked": "userGate",
}
"""All that the feed has, and where."""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_generated_files_are_not_stale(name: str) -> None:
    """Protects readers in other languages from files of yesterday: `python -m grantbook.schema` writes them anew."""
    assert (FOLDER / name).read_text(encoding="utf-8") == DOCUMENTS[name]


def test_nothing_else_lies_beside_the_generated_files() -> None:
    """Protects from a generated file that is no longer generated."""
    assert {each.name for each in FOLDER.glob("*.json")} == set(DOCUMENTS)


@cache
def validator() -> jsonschema.Draft202012Validator:
    document = json.loads((FOLDER / schema.EVENTS_FILE).read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_golden_bodies_fit_the_schema_and_spoiled_ones_do_not(type_: str) -> None:
    """Protects writers and readers that validate: the schema takes what we write, and not everything."""
    body = json.loads((GOLDEN / f"{type_}.json").read_text())
    validator().validate(body)
    for name in body:
        with pytest.raises(jsonschema.ValidationError):
            validator().validate(body | {name: None})
    for each in msgspec.structs.fields(EVENT_TYPES[type_]):
        if each.required:
            with pytest.raises(jsonschema.ValidationError):
                validator().validate({name: value for name, value in body.items() if name != each.encode_name})
    validator().validate(body | {"from_the_future": 1})


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        found = [each for name, each in value.items() if name == "$ref"]
        return found + [each for child in value.values() for each in references(child)]
    return [each for child in value for each in references(child)] if isinstance(value, list) else []


def test_every_reference_leads_somewhere() -> None:
    """Protects generators of code, which stop at the first dead reference."""
    for name in DOCUMENTS:
        found = references(json.loads((FOLDER / name).read_text()))
        assert found
        for reference in found:
            file, _, path = reference.partition("#")
            target = json.loads((FOLDER / (file or name)).read_text())
            for part in path.removeprefix("/").split("/"):
                target = target[part]


@pytest.mark.parametrize(
    ("file", "types"), [(schema.ASYNCAPI_FILE, set(EVENT_TYPES)), (schema.FEED_FILE, set(GATES))], ids=["log", "feed"]
)
def test_the_channels_are_the_subjects(file: str, types: set[str]) -> None:
    """Protects readers who subscribe to what AsyncAPI says."""
    document = json.loads((FOLDER / file).read_text())
    assert document["asyncapi"] == "3.1.0"
    assert set(document["components"]["messages"]) == types
    for type_ in types:
        subject = wire.subject_of(EXAMPLES[type_])
        [channel] = [each for each in document["channels"].values() if type_ in each["messages"]]
        assert re.fullmatch(re.sub(r"\\{\w+\\}", "[^.]+", re.escape(channel["address"])), subject)
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel["parameters"])
    for name, channel in document["channels"].items():
        [operation] = [each for each in document["operations"].values() if each["channel"]["$ref"].endswith(f"/{name}")]
        assert {each["$ref"] for each in operation["messages"]} == {
            f"#/channels/{name}/messages/{type_}" for type_ in channel["messages"]
        }


def test_the_feed_has_the_gates_and_nothing_else() -> None:
    """Protects token services from waiting for what never comes, and others from what they should not see."""
    document = json.loads((FOLDER / schema.FEED_FILE).read_text())
    assert {type_: name for name, channel in document["channels"].items() for type_ in channel["messages"]} == GATES
    addresses = {re.sub(r"\{\w+\}", "*", each["address"]) for each in document["channels"].values()}
    assert addresses == set(subjects.GATES)
    assert {each["x-jetstream"]["stream"] for each in document["operations"].values()} == {subjects.REVOCATIONS}
    assert not [each for each in references(document) if not each.startswith("#/")]


def resolved(document: dict[str, Any], value: Any) -> Any:
    """With what its references lead to in their places."""
    if isinstance(value, list):
        return [resolved(document, each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" not in value:
        return {name: resolved(document, each) for name, each in value.items()}
    file, _, path = value["$ref"].partition("#")
    target = root = json.loads((FOLDER / file).read_text()) if file else document
    for part in path.removeprefix("/").split("/"):
        target = target[part]
    return resolved(root, target)


@pytest.mark.parametrize("file", [schema.ASYNCAPI_FILE, schema.FEED_FILE])
def test_the_examples_are_golden_and_fit(file: str) -> None:
    """Protects people who begin with the example: it is what stands in logs, and the schemas beside it take it."""
    document = json.loads((FOLDER / file).read_text())
    for type_, message in document["components"]["messages"].items():
        headers = json.loads((GOLDEN / f"{type_}.headers.json").read_text())
        subject = headers.pop("subject")
        [example] = message["examples"]
        assert example["payload"] == json.loads((GOLDEN / f"{type_}.json").read_text())
        source = example["headers"].pop(wire.STREAM_SOURCE_HEADER, None)
        assert example["headers"] == headers
        whole = resolved(document, message)
        payload = jsonschema.Draft202012Validator(whole["payload"].get("schema", whole["payload"]))
        payload.validate(example["payload"])
        spoiled = {"at": 7, "by": None, "type": "client.frozen"}
        assert not [name for name, bad in spoiled.items() if payload.is_valid(example["payload"] | {name: bad})]
        described = jsonschema.Draft202012Validator(whole["headers"])
        if file == schema.FEED_FILE:
            assert source is not None
            assert wire.position_in_log(source) > 0
            assert source.endswith(f" {subject}")
            assert not described.is_valid(headers)
            headers |= {wire.STREAM_SOURCE_HEADER: source}
        described.validate(headers)
        assert not described.is_valid(headers | {"ce-type": "client.frozen"})


def section(type_: str) -> str:
    text = DOCS.read_text(encoding="utf-8")
    start = text.index(f"### `{type_}`\n")
    ends = [at for mark in ("\n### ", "\n## ") if (at := text.find(mark, start + 1)) != -1]
    return text[start : min(ends, default=len(text))]


def rows(text: str) -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def names(type_: type[msgspec.Struct]) -> set[str]:
    return {each.encode_name for each in msgspec.structs.fields(type_)}


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_the_page_of_events_names_every_member_and_no_other(type_: str) -> None:
    """Protects people who read the page: an event that grows, grows there too."""
    assert rows(section(type_)) == names(EVENT_TYPES[type_]) - COMMON


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_the_page_of_events_says_where_an_event_stands_and_who_writes_it(type_: str) -> None:
    """Protects people who subscribe to what the page says."""
    text = " ".join(section(type_).split())
    [address] = re.findall(r"Subject `([^`]+)`", text)
    assert re.fullmatch(re.sub(r"\\{\w+\\}", "[^.]+", re.escape(address)), wire.subject_of(EXAMPLES[type_]))
    assert "Written by the registry" in text


def test_the_page_of_events_has_no_section_of_a_type_that_is_none() -> None:
    """Protects people from a type that was never built."""
    found = re.findall(r"^### `([^`]+)`$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(found) == sorted(EVENT_TYPES)


@pytest.mark.parametrize(
    "type_",
    [events.Actor, events.ClientMetadata, events.Window, sealed.Sealed, sealed.Note],
    ids=lambda each: each.__name__,
)
def test_the_page_of_events_names_the_members_inside_of_members(type_: type[msgspec.Struct]) -> None:
    """Protects people from members that stand nowhere."""
    text = DOCS.read_text(encoding="utf-8")
    assert [each for each in names(type_) if f"`{each}`" not in text] == []


@pytest.mark.parametrize(
    "words",
    [events.ACTOR_KINDS, events.SOURCES, events.ACTIVITY_KINDS, events.REVOKE_REASONS, (events.CLIENT_DELETED,)],
    ids=lambda each: each[0],
)
def test_the_page_of_events_names_the_words_in_use(words: tuple[str, ...]) -> None:
    """Protects readers who switch on a word."""
    text = DOCS.read_text(encoding="utf-8")
    assert [each for each in words if f"`{each}`" not in text] == []


def test_the_page_of_events_knows_the_limits() -> None:
    """Protects reporters from a limit that moved."""
    assert f"up to {events.MAX_WINDOWS} windows" in DOCS.read_text(encoding="utf-8")
