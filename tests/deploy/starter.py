"""Starts both servers and waits to be killed: `python starter.py FOLDER` prints their process ids, one a line."""

import signal
import sys
from pathlib import Path

from deploy.dev.servers import nats_server, postgres_server


def main(folder: Path) -> None:
    nats = nats_server(folder / "nats")
    postgres = postgres_server(folder / "postgres", password="a password", durable=False)
    sys.stdout.write(f"{nats.pid} {postgres.pid}\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
