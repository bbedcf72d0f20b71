"""A nats-server that stands alone puts its batches together in memory, and not on the disk.

A batch for a stream of one replica is put together in a store of its own, in the stream's folder `batches`: five disk
syncs, before the one with which all of it gets into the stream. What is acknowledged is in the stream, and synced. What
is in that store is read again in one case: a server that starts, and finds the first part of a batch in the stream,
writes the rest of it from there. So it does here when the server was killed; after a power cut the first part stays, of
a batch that nobody was told of. Whoever appends here looks for each message by itself, and needs no whole batches.

Where that cannot be done, and for streams that were made since, batches are on the disk: slower, and as right. A stream
with more replicas has its batches in memory without our doing.
"""

import hashlib
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")  # noqa: S108  a folder of our own is made there, which nobody else may enter
LEAST_BYTES: Final = 128 * 1024 * 1024
"""Free there. A registry has 4 MiB of a batch under way; Postgres wants some of it, too."""
OURS_ALONE: Final = 0o700


def keep_in_memory(data: Path) -> None:
    """Have batches for the streams that are there now put together in memory.

    Args:
        data: the folder of a nats-server, which runs. A batch that is under way goes on where it is.

    """
    streams, folder = _streams(data), _folder(data)
    if not streams or not _is_ours(folder):
        return
    if shutil.disk_usage(MEMORY).free < LEAST_BYTES:
        return
    for stream in streams:
        in_memory = folder / stream.parent.parent.name / stream.name
        batches = stream / "batches"
        # It is a link already, a batch is under way or came meanwhile, there are no links here: then it stays as it is.
        with suppress(OSError):
            in_memory.mkdir(mode=OURS_ALONE, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # no batch came since the start
                batches.rmdir()
            batches.symlink_to(in_memory)


def trust(data: Path) -> None:
    """Before a start: what the server will read there must be its own.

    After a power cut nothing is left in memory, and anybody may have made a folder of that name, with the rest of a
    batch that would then stand in the log. `keep_in_memory` only looks at who can write there later on.
    """
    if any((stream / "batches").is_symlink() for stream in _streams(data)) and not _is_ours(_folder(data)):
        _unlink(data)


def begin(data: Path) -> None:
    """After a start: the server has read what it needed, and taken its links away. Begin with nothing."""
    forget(data)
    keep_in_memory(data)


def forget(data: Path) -> None:
    """Give back the memory of a nats-server that needs it no more, and take its links away, which lead nowhere then.

    Not of one that was killed, or ended by itself: it reads there at its next start. What follows links can copy the
    data afterwards.
    """
    _unlink(data)
    shutil.rmtree(_folder(data), ignore_errors=True)


def _unlink(data: Path) -> None:
    for stream in _streams(data):
        batches = stream / "batches"
        if batches.is_symlink():
            batches.unlink()


def _folder(data: Path) -> Path:
    """The same at each start: what was killed finds its own, and what it leaves is little."""
    return MEMORY / f"grantbook-{os.geteuid()}-{hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]}"


def _is_ours(folder: Path) -> bool:
    """Whether the folder is there, and nobody else can write to it: anybody may make one of that name."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=OURS_ALONE)
        found = folder.lstat()
    except OSError:  # there is no such place on this machine
        return False
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & ~OURS_ALONE == 0
    )


def _streams(data: Path) -> list[Path]:
    """The folder of each stream: <accounts>/<account>/streams/<stream>."""
    return [described.parent for described in data.glob("jetstream/jetstream/*/streams/*/meta.inf")]
