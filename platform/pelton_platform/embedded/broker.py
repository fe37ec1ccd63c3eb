"""One embedded Apache Kafka broker as a process: started, known to be ready, stopped, never forgotten."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pelton.transport.kafka.readiness import cluster_ready
from pelton_platform import process
from pelton_platform.embedded import archive
from pelton_platform.embedded.cache import (
    FreeSpace,
    Installation,
    Progress,
    free_space,
    java_environment,
    resolve,
)
from pelton_platform.embedded.failure import EmbeddedKafkaError
from pelton_platform.embedded.jvm import (
    BROKER_CLASS,
    DEFAULT_HEAP,
    archive_flags,
    java_command,
)
from pelton_platform.embedded.properties import broker_properties, render
from pelton_platform.embedded.storage import format_storage, is_formatted

HOST = process.LOOPBACK
DEFAULT_MIN_FREE_BYTES = 512 * 1024 * 1024
TEMPORARY_PREFIX = "pelton-kafka-"

_OWNER_FILE = "owner.json"
_PORT_TRIES = 4
_LOOK_INTERVAL_S = 0.02
_METADATA_TRY_S = 2.0
_TAIL_BYTES = 4096
_TAIL_LINES = 25
_IN_USE = re.compile(r"Address already in use|BindException")
# What a line of the log means for a person; the first that matches is told.
_HINTS = (
    (re.compile(r"No space left on device"), "the disk is full: make room, or choose another data_dir="),
    (re.compile(r"OutOfMemoryError"), "the heap is too small: give more, for example heap='1g'"),
    (
        re.compile(r"Failed to acquire lock on file"),
        "another broker uses this data folder: stop it, or choose another data_dir=",
    ),
    (re.compile(r"ConfigException|Unknown configuration"), "correct the setting in config="),
    (
        re.compile(r"CorruptRecordException|InconsistentClusterIdException|InvalidConfigurationException"),
        "the data folder does not belong to this broker or is damaged: choose another data_dir=",
    ),
)


class EmbeddedKafka:
    """A single-node Apache Kafka on loopback.

    Use it as a context manager, or call `start` and `stop`. It can be started again after `stop` or after its
    process died, with the same port and data.

    Attributes:
        data_dir: Folder of records, settings and log.
        port: Port for clients; fixed from the first start on.
        bootstrap_servers: `host:port` for clients.
        log_path: The server's log.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int = 0,
        config: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        die_with_parent: bool = True,
        heap: str = DEFAULT_HEAP,
        min_free_bytes: int = DEFAULT_MIN_FREE_BYTES,
        space: FreeSpace = free_space,
        build_archive: bool = True,
        installation: Installation | None = None,
        java_flags: Sequence[str] = (),
        sasl_port: int = 0,
    ) -> None:
        """Describe a broker; nothing is started or written yet.

        Args:
            data_dir: Where records are kept for good; None keeps them in a temporary folder that `stop`
                deletes.
            port: Port for clients; 0 picks a free one.
            config: Broker settings that win over the embedded defaults, `{"log.retention.ms": "60000"}`.
            cache_dir: Where the jars are kept; see `resolve`.
            progress: Gets lines for a person while jars are fetched; stderr unless told.
            die_with_parent: The broker ends with the calling process, however that ends. False leaves it
                running until somebody stops it.
            heap: Largest Java heap, in Java's words.
            min_free_bytes: Free disk space below which the broker is not started.
            space: How free disk space is found out.
            build_archive: Build the class-data archive in the background when there is none.
            installation: What `resolve` returned, if the caller has it already.
            java_flags: Further flags for the virtual machine; they win over those it gets anyway.
            sasl_port: Port for clients that log in; 0 for none. `Admin.set_login` makes logins.
        """
        self._temporary = data_dir is None
        self._data_dir = None if data_dir is None else Path(data_dir).expanduser().absolute()
        self.port = port
        self._config = dict(config or {})
        self._cache_dir = cache_dir
        self._progress = progress
        self._die_with_parent = die_with_parent
        self._heap = heap
        self._min_free_bytes = min_free_bytes
        self._space = space
        self._build_archive = build_archive
        self._installation = installation
        self._java_flags = tuple(java_flags)
        self._sasl_port = sasl_port
        self._child: subprocess.Popen[bytes] | None = None
        self._identity: process.ProcessIdentity | None = None
        self._builder: archive.Builder | None = None
        self._owner_pid = os.getpid()

    @property
    def data_dir(self) -> Path:
        """Folder of records, settings and log."""
        if self._data_dir is None:
            raise EmbeddedKafkaError("a broker with temporary data has a folder only while it runs: start it")
        return self._data_dir

    @property
    def log_path(self) -> Path:
        """File of the server's log; the log of the start before is beside it as `kafka.log.1`."""
        return self.data_dir / "kafka.log"

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients, `host:port`."""
        if self.port == 0:
            raise EmbeddedKafkaError("the port is picked by start(): call it first")
        return f"{HOST}:{self.port}"

    @property
    def identity(self) -> process.ProcessIdentity:
        """The broker's process, told apart from others that get its pid later."""
        if self._identity is None:
            raise EmbeddedKafkaError("the broker was not started: call start() first")
        return self._identity

    @property
    def pid(self) -> int:
        """Pid of the broker's process."""
        return self.identity.pid

    def is_running(self) -> bool:
        """Say whether the broker's process is alive (a frozen one is)."""
        return self._identity is not None and process.is_alive(self._identity)

    def start(self, timeout: float = 60) -> None:
        """Start the broker and return when it answers a metadata request; a running one is left alone.

        Fetches Apache Kafka first if this was never done; that takes as long as the network needs.

        Args:
            timeout: Seconds from here until the broker has to answer, without the fetching.

        Raises:
            EmbeddedKafkaError: It cannot be fetched or started; the message says why and what to do.
        """
        if self.is_running():
            return
        self._reap()
        if self._installation is None:
            self._installation = resolve(self._cache_dir, self._progress, space=self._space)
        try:
            self._prepare_data_dir(self._installation)
            self._start_on_a_port(self._installation, time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise
        if self._die_with_parent:
            self._owner_pid = os.getpid()
            atexit.register(self._at_exit)
        if self._build_archive and not self._installation.archive.exists():
            self._builder = archive.build_in_background(
                self._installation, die_with_parent=self._die_with_parent
            )

    def stop(self, timeout: float = 15) -> None:
        """Stop the broker and delete temporary data.

        It gets SIGTERM, `timeout` seconds to end in good order, then SIGKILL. Nothing happens if it is not
        running.
        """
        atexit.unregister(self._at_exit)
        if self._builder is not None and self._die_with_parent:
            self._builder.stop()
            self._builder = None
        if self._child is not None:
            process.terminate_child(self._child, timeout)
            self._reap()
        elif self._identity is not None:
            process.terminate(self._identity, timeout, group=True)
        if self._data_dir is not None:
            discard(self._data_dir, self._identity, temporary=self._temporary)
        self._identity = None
        if self._temporary:
            self._data_dir = None

    def release(self) -> None:
        """Let go of a broker that does not die with its parent: this object no longer stops it."""
        if self._die_with_parent:
            raise EmbeddedKafkaError("a broker that dies with its parent cannot be released")
        if self._child is not None:
            process.release(self._child)
        self._child = self._identity = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _at_exit(self) -> None:
        """Stop what still runs when the interpreter ends; a forked child is not the owner."""
        if os.getpid() == self._owner_pid:
            self.stop()

    def _reap(self) -> None:
        """Take the exit code of an ended child, so that no zombie stays."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
            self._identity = None

    def _prepare_data_dir(self, installation: Installation) -> None:
        if self._data_dir is None:
            sweep_temporary_folders()
            self._data_dir = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
            self._write_owner(process.own_identity())
        folder = self.data_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            holder = _read_owner(folder)
            if not self._temporary and holder is not None and process.is_alive(holder):
                raise EmbeddedKafkaError(
                    f"the broker with pid {holder.pid} runs on the data folder {folder}: stop it, or choose "
                    "another data_dir="
                )
            self._check_space(folder)
            shutil.rmtree(folder / "tmp", ignore_errors=True)
            (folder / "tmp").mkdir()
            if not is_formatted(folder):
                format_storage(installation, folder, self._properties(port=1, controller_port=2), _explain)
            if self.log_path.exists():
                self.log_path.replace(self.log_path.with_name("kafka.log.1"))
        except OSError as error:
            raise EmbeddedKafkaError(
                f"cannot write the data folder {folder}: {error}; make it writable, or choose another "
                "data_dir="
            ) from error

    def _check_space(self, folder: Path) -> None:
        free = self._space(folder)
        if free < self._min_free_bytes:
            raise EmbeddedKafkaError(
                f"no space for records in {folder}: {free / 1e6:.0f} MB free, "
                f"{self._min_free_bytes / 1e6:.0f} MB wanted; make room, or choose another data_dir="
            )

    def _properties(self, port: int, controller_port: int) -> dict[str, str]:
        return broker_properties(
            host=HOST,
            port=port,
            controller_port=controller_port,
            overrides=self._config,
            sasl_port=self._sasl_port,
        )

    def _start_on_a_port(self, installation: Installation, deadline: float) -> None:
        for attempt in range(1, _PORT_TRIES + 1):
            port, controller_port = process.free_ports(2)
            if self.port:
                port = self.port
                if not process.port_is_free(port):
                    raise _port_in_use(port)
            try:
                self._launch(installation, port, controller_port)
                self._await_ready(port, deadline)
            except _PortTaken as error:
                # Somebody was faster; a port of our choice can be another one.
                if self.port and not process.port_is_free(self.port):
                    raise _port_in_use(self.port) from error
                if attempt == _PORT_TRIES:
                    raise EmbeddedKafkaError(f"no free port was found on {HOST}: {error}") from error
                continue
            self.port = port
            return

    def _launch(self, installation: Installation, port: int, controller_port: int) -> None:
        folder = self.data_dir
        settings = folder / "server.properties"
        settings.write_text(render(self._properties(port, controller_port)), encoding="latin-1")
        command = java_command(
            installation,
            BROKER_CLASS,
            [settings.name],
            temporary=folder / "tmp",
            heap=self._heap,
            flags=(*archive_flags(installation), *self._java_flags),
        )
        with self.log_path.open("wb") as log:
            try:
                self._child = process.spawn(
                    command,
                    cwd=folder,
                    env=java_environment(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    die_with_parent=self._die_with_parent,
                )
            except OSError as error:
                raise EmbeddedKafkaError(
                    f"cannot start {installation.java}: {error}; install pelton[embedded] again"
                ) from error
        self._identity = process.identify(self._child.pid)
        if self._identity is not None and not (self._temporary and self._die_with_parent):
            self._write_owner(self._identity)

    def _await_ready(self, port: int, deadline: float) -> None:
        address = f"{HOST}:{port}"
        while True:
            if self._child is None or self._child.poll() is not None:
                raise self._ended_at_start()
            left = deadline - time.monotonic()
            if left <= 0:
                tail = self._log_tail()
                raise EmbeddedKafkaError(
                    f"the broker did not answer in time; it may need a larger timeout= here. Its log "
                    f"({self._kept_log()}) ends:\n{tail}"
                )
            if not process.port_answers(port):
                time.sleep(_LOOK_INTERVAL_S)
            elif cluster_ready(address, min(_METADATA_TRY_S, left)) and self._child.poll() is None:
                return

    def _ended_at_start(self) -> EmbeddedKafkaError:
        code = None if self._child is None else self._child.poll()
        self._child = self._identity = None
        tail = self._log_tail()
        if _IN_USE.search(tail):
            return _PortTaken(tail)
        ended = (
            f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
        )
        return EmbeddedKafkaError(f"the broker {ended} while starting: {_explain(tail, self._kept_log())}")

    def _kept_log(self) -> Path:
        """Return a path of the log that a person can still read after temporary data is gone."""
        if not self._temporary:
            return self.log_path
        kept = Path(tempfile.gettempdir()) / f"{self.data_dir.name}.log"
        with contextlib.suppress(OSError):
            shutil.copyfile(self.log_path, kept)
        return kept

    def _log_tail(self) -> str:
        return log_tail(self.log_path)

    def _write_owner(self, identity: process.ProcessIdentity) -> None:
        target = self.data_dir / _OWNER_FILE
        fresh = target.with_suffix(".new")
        fresh.write_text(json.dumps(identity.to_json()))
        fresh.replace(target)


class _PortTaken(EmbeddedKafkaError):
    """Another process listens on the port that the broker was told to use."""


def discard(data_dir: Path, broker: process.ProcessIdentity | None, *, temporary: bool) -> None:
    """Clear up after an ended broker: its folder if that was temporary, else the note that it runs."""
    if temporary:
        shutil.rmtree(data_dir, ignore_errors=True)
    elif broker is not None and _read_owner(data_dir) == broker:
        (data_dir / _OWNER_FILE).unlink(missing_ok=True)


def log_tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """Return the last lines of a log, at most 4 KiB; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def sweep_temporary_folders() -> None:
    """Delete the temporary folders of brokers whose owner died without doing so (SIGKILL leaves them)."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            holder = _read_owner(folder)
            if folder.stat().st_uid == os.getuid() and holder is not None and not process.is_alive(holder):
                shutil.rmtree(folder, ignore_errors=True)


def _read_owner(folder: Path) -> process.ProcessIdentity | None:
    try:
        return process.ProcessIdentity.from_json(json.loads((folder / _OWNER_FILE).read_text()))
    except (OSError, ValueError, AttributeError):
        return None


def _port_in_use(port: int) -> EmbeddedKafkaError:
    holder = process.listener(port)
    who = "" if holder is None else f" by {holder[1]} (pid {holder[0]})"
    return EmbeddedKafkaError(
        f"port {port} on {HOST} is in use{who}: stop that program, or choose another port= "
        "(0 picks a free one)"
    )


def _explain(log: str, path: Path | None = None) -> str:
    """Put the way out, if the log tells it, before the log's end."""
    hint = next((hint for pattern, hint in _HINTS if pattern.search(log)), "the log tells why")
    where = "" if path is None else f" ({path})"
    return f"{hint}. The log{where} ends:\n{log.strip() or '(it is empty)'}"
