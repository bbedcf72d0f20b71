"""The laws of the house, held against the code as it stands."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "grantbook": ROOT / "contracts" / "grantbook",
    "door": ROOT / "services" / "door",
    "appraisal": ROOT / "services" / "appraisal",
    "registry": ROOT / "services" / "registry",
    "projector": ROOT / "services" / "projector",
    "transmitter": ROOT / "services" / "transmitter",
    "console": ROOT / "services" / "console",
    "deploy": ROOT / "deploy",
}
MAY_IMPORT = {
    "grantbook": set(),
    "door": {"grantbook"},
    "appraisal": {"grantbook"},
    "registry": {"grantbook", "door", "appraisal"},
    "projector": {"grantbook", "door", "appraisal"},
    "transmitter": {"grantbook", "door"},
    "console": {"grantbook", "door", "appraisal"},
    "deploy": {"grantbook", "door", "appraisal", "registry", "projector", "console"},
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager"}


def files(room: str) -> list[Path]:
    return sorted(ROOMS[room].rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    """Everyone who changes a room: the others need not be read."""
    ours = set(ROOMS) | {"tests", "benchmarks"}
    broken = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files(room)
        for name in imported(file)
        if (top := name.partition(".")[0]) in ours and top != room and top not in MAY_IMPORT[room]
    ]
    assert not broken


def test_the_contracts_need_nothing_of_a_server() -> None:
    """Token services: what they install is small."""
    needed = {"grantbook", "msgspec", "nats", "cryptography"} | set(sys.stdlib_module_names)
    extras = {  # what each of these modules needs beyond that is an extra of the package
        "cli.py": {"click", "httpx", "rich"},
        "doctor.py": {"httpx"},
        "findings.py": {"httpx"},
        "replay.py": {"click", "rich"},
        "activity.py": {"httpx"},
        "revocations_http.py": {"httpx"},
        "tokens.py": {"httpx", "jwt"},
        "mcp.py": {"mcp"},
        "metrics.py": {"prometheus_client"},
    }
    assert not [
        f"{file.name} imports {name}"
        for file in files("grantbook")
        for name in imported(file)
        if name.partition(".")[0] not in needed | extras.get(file.name, set())
    ]


def test_one_module_appends() -> None:
    """Auditors: whoever wants to know what can get into the log reads one file."""
    appends = re.compile(r"jetstream\(|publish_async|\.js\.publish|Nats-Msg-Id|Nats-Batch")
    found = {str(file.relative_to(ROOT)) for room in ROOMS for file in files(room) if appends.search(file.read_text())}
    assert found == {"services/registry/commit.py"}


def test_only_the_store_hands_events_of_the_log_to_the_commit() -> None:
    """Auditors: what an append expects is decided in one place."""
    found = {
        file.name for file in files("registry") if "GroupCommit(" in file.read_text() and "LOG" in file.read_text()
    }
    assert found == {"app.py"}  # which makes it and gives it to the store alone
    assert {file.name for file in files("registry") if "wire.encode(" in file.read_text()} == {
        "store.py",
        "activity.py",
    }


def test_only_the_projector_speaks_sql() -> None:
    """Operators: the register works with Postgres down, because it does not know it."""
    speaks = {
        room for room in ROOMS for file in files(room) if any(name.startswith("asyncpg") for name in imported(file))
    }
    assert speaks == {"projector"}


def test_only_one_module_builds_subjects() -> None:
    """Everyone: an id in a subject goes through the one function that makes it safe."""
    builds = re.compile(r"""["']grantbook\.(client|user|activity)\.|\$KV\.""")
    found = {
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in files(room)
        for line in file.read_text().splitlines()
        if builds.search(line) and not line.strip().startswith("#")
    }
    assert found == {"contracts/grantbook/subjects.py"}


def test_nobody_is_called_helper() -> None:
    """Readers: a module's name says what it is about."""
    assert not [str(file.relative_to(ROOT)) for room in ROOMS for file in files(room) if file.stem in FORBIDDEN_NAMES]


def test_every_test_says_whom_it_protects() -> None:
    """Whoever breaks one: the docstring says what for."""
    silent = [
        f"{file.relative_to(ROOT)}::{node.name}"
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert not silent


def test_no_file_is_large_and_no_place_is_named() -> None:
    """Strangers: nothing of the machine that it was written on."""
    import subprocess  # noqa: PLC0415  only here

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    tracked = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert not [str(file) for file in tracked if file.exists() and file.stat().st_size > 1_048_576]
    registries = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(org|com)"]))
    assert not [
        str(file.relative_to(ROOT))
        for file in tracked
        if file.exists() and registries.search(file.read_text(errors="ignore"))
    ]
