"""What the platform knows about operating system processes: who they are, how they start, how they end.

A process is named by pid *and* birth (`ProcessIdentity`), because the system gives pids out again: whatever
waits, signals or kills here first makes sure that the pid still belongs to the process that was meant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

LOOPBACK = "127.0.0.1"

_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
# How long what got SIGKILL may take to be gone.
_KILLED_S = 10.0
# Without pidfd the end of a process is found by looking; this is how often.
_LOOK_INTERVAL_S = 0.02
# Kernels hand ports of the ephemeral range to outgoing connections, and a client that retries a closed port
# of that range can even connect to itself and keep a server from coming back. Servers take ports below it.
_FIRST_SERVER_PORT = 15_000
_USUAL_EPHEMERAL_START = 32_768
_PORT_TRIES = 200
# Handed to `python -c`: asks for the signal, makes sure that the parent is still there, becomes the program.
_DIE_WITH_PARENT_PROGRAM = (
    "import ctypes,os,sys\n"
    "p,s=int(sys.argv[1]),int(sys.argv[2])\n"
    "c=ctypes.CDLL(None,use_errno=True)\n"
    "if c.prctl(1,s,0,0,0):\n"
    "    sys.exit('prctl: '+os.strerror(ctypes.get_errno()))\n"
    "if os.getppid()!=p:\n"
    "    sys.exit(1)\n"
    "try:\n"
    "    os.execvpe(sys.argv[3],sys.argv[3:],os.environ)\n"
    "except OSError as e:\n"
    "    sys.exit(f'{sys.argv[3]}: {e.strerror}')\n"
)

Output = int | IO[bytes] | None


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, told apart from every other that has had or will have its pid.

    Attributes:
        pid: Process id.
        birth: Opaque text that differs between two processes with one pid; compared only for equality.
            It stays the same for every observer, so it can be kept in a file.
    """

    pid: int
    birth: str

    def to_json(self) -> dict[str, Any]:
        """Return the identity as plain data for a state file."""
        return {"pid": self.pid, "birth": self.birth}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProcessIdentity:
        """Read what `to_json` wrote.

        Raises:
            ValueError: The data is not an identity.
        """
        pid, birth = data.get("pid"), data.get("birth")
        if not isinstance(pid, int) or not isinstance(birth, str) or pid <= 0:
            raise ValueError(f"not a process identity: {dict(data)!r}")
        return cls(pid, birth)


def identify(pid: int) -> ProcessIdentity | None:
    """Return who has this pid now, also when it is a zombie; None if nobody has."""
    seen = _look(pid)
    return None if seen is None else ProcessIdentity(pid, seen[0])


def own_identity() -> ProcessIdentity:
    """Return the identity of the calling process."""
    identity = identify(os.getpid())
    if identity is None:
        raise RuntimeError("this process does not find itself; is /proc mounted?")
    return identity


def is_alive(identity: ProcessIdentity) -> bool:
    """Say whether this very process still runs. A zombie, or another process with its pid, does not count."""
    seen = _look(identity.pid)
    return seen is not None and seen[0] == identity.birth and not seen[1]


def send_signal(identity: ProcessIdentity, sig: signal.Signals) -> bool:
    """Send a signal to this very process; False if it is gone (nothing else is ever signalled).

    Raises:
        PermissionError: The process belongs to somebody else.
    """
    with _pidfd(identity) as fd:
        if not is_alive(identity):
            return False
        try:
            if fd is None:
                os.kill(identity.pid, sig)
            else:
                signal.pidfd_send_signal(fd, sig)
        except ProcessLookupError:
            return False
    return True


def send_group_signal(leader: ProcessIdentity, sig: signal.Signals) -> bool:
    """Send a signal to the process group that `leader` leads; False if none of it is left.

    Members that outlived the leader are reached too: the system does not give a pid out again while a group
    bears its number.
    """
    holder = identify(leader.pid)
    if holder is not None and holder != leader:
        return False
    try:
        os.killpg(leader.pid, sig)
    except ProcessLookupError:
        return False
    except PermissionError:
        if _LINUX:
            raise
        # macOS answers so when only zombies are left in the group.
        return False
    return True


def wait_gone(identity: ProcessIdentity, timeout_s: float) -> bool:
    """Wait until this very process has ended (a zombie has); False if it runs on after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    with _pidfd(identity) as fd:
        if not is_alive(identity):
            return True
        if fd is not None:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poller.poll(max(0, round(timeout_s * 1000)))
            return not is_alive(identity)
    while is_alive(identity):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_INTERVAL_S)
    return True


def terminate(identity: ProcessIdentity, grace_s: float, *, group: bool = False) -> bool:
    """End a process: SIGTERM, `grace_s` seconds to end by itself, then SIGKILL.

    With `group` the whole process group that it leads gets both signals, and what is left of the group when
    the leader has ended is killed, and gone on return. A child of the caller stays a zombie until the caller
    waits for it.

    Returns:
        True when it ended by itself, False when it had to be killed.

    Raises:
        TimeoutError: It survived SIGKILL for 10 seconds (the kernel holds it, for example in disk IO).
    """
    send = send_group_signal if group else send_signal
    send(identity, signal.SIGTERM)
    # A stopped process does not see SIGTERM before it continues.
    send(identity, signal.SIGCONT)
    graceful = wait_gone(identity, grace_s)
    killed = (group or not graceful) and send(identity, signal.SIGKILL)
    deadline = time.monotonic() + _KILLED_S
    for member in (identity, *(group_members(identity.pid) if group and killed else ())):
        if not wait_gone(member, max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"process {member.pid} does not end even after SIGKILL")
    return graceful


def group_members(pgid: int) -> tuple[ProcessIdentity, ...]:
    """Return the live processes of a process group."""
    import psutil

    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == pgid:
                identity = identify(pid)
                if identity is not None and is_alive(identity):
                    found.append(identity)
    return tuple(found)


def processes_with_environment(name: str, value: str) -> tuple[ProcessIdentity, ...]:
    """Return the live processes that were started with `name=value` in their environment.

    This is how what a dead supervisor left behind is found. Processes that the caller may not look into are
    left out; the caller itself too.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                identity = identify(process.pid)
                if identity is not None and is_alive(identity):
                    found.append(identity)
    return tuple(found)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: Output = subprocess.DEVNULL,
    stdout: Output = None,
    stderr: Output = None,
    pass_fds: Sequence[int] = (),
    own_group: bool = True,
    die_with_parent: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program without a shell.

    Args:
        argv: Program and arguments.
        env: The whole environment; None inherits the caller's.
        cwd: Folder to start in.
        stdin: As for `subprocess.Popen`; nothing to read unless told.
        stdout: As for `subprocess.Popen`.
        stderr: As for `subprocess.Popen`.
        pass_fds: Descriptors that the program keeps.
        own_group: Lead a new session and process group, out of reach of the terminal's Ctrl-C; the group's
            number is the pid.
        die_with_parent: Let the kernel send SIGKILL to the program when the calling *process* ends, however
            it ends. Only Linux can; elsewhere this changes nothing, and a program of ours watches for end of
            file on a channel.

    Raises:
        OSError: The program cannot be started.
    """

    def start() -> subprocess.Popen[bytes]:
        command = list(argv)
        if die_with_parent and _LINUX:
            command = _dying_with(os.getpid(), command)
        return subprocess.Popen(
            command,
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=own_group,
        )

    # The death signal fires when the *thread* that started the child ends, so a thread that lives as long as
    # the process starts all of these.
    return _starter().run(start) if die_with_parent and _LINUX else start()


def die_with_parent(expected_parent: int, sig: signal.Signals = signal.SIGKILL) -> bool:
    """Ask the kernel to signal the calling process when its parent ends; for programs that are ours.

    Args:
        expected_parent: Pid of the process that started this one; when it is gone already, this process ends.
        sig: What to get.

    Returns:
        False where the system cannot do it (all but Linux): watch for end of file on a channel instead.
    """
    if not _LINUX:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != expected_parent:
        os.kill(os.getpid(), sig)
    return True


def terminate_child(child: subprocess.Popen[bytes], grace_s: float, *, group: bool = True) -> int:
    """End a child of the caller as `terminate` does, and take its exit code, so that no zombie stays.

    Returns:
        The exit code, negative for the signal that ended it.
    """
    if child.poll() is None:
        identity = identify(child.pid)
        if identity is not None:
            terminate(identity, grace_s, group=group)
    elif group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if identify(child.pid) is None:
                os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def release(child: subprocess.Popen[bytes]) -> None:
    """Let go of a child that may end after the caller has forgotten it, or after the caller itself.

    As long as this process lives its exit code is taken when it ends, so that no zombie stays; whoever keeps
    the child may wait for it and end it as before.
    """
    threading.Thread(target=child.wait, name=f"pelton-reaper-{child.pid}", daemon=True).start()


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Say whether a server could listen on this TCP port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def port_answers(port: int, host: str = LOOPBACK) -> bool:
    """Say whether a server accepts connections on this TCP port; unlike `port_is_free` it never takes it."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as probe:
            # A connection to a closed port of the ephemeral range can come out as one to itself.
            return bool(probe.getsockname() != probe.getpeername())
    except OSError:
        return False


def listener(port: int) -> tuple[int, str] | None:
    """Return pid and name of the program that listens on a TCP port, as far as the caller may see it."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return connection.pid, psutil.Process(connection.pid).name()
    except (psutil.Error, OSError):
        return None
    return None


def free_port(host: str = LOOPBACK) -> int:
    """Return a TCP port that no server listens on, outside the range of outgoing connections."""
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = LOOPBACK) -> tuple[int, ...]:
    """Return `count` different TCP ports that no server listens on.

    They can still be taken by somebody else before they are used: whoever listens on one must be ready to
    hear that it is in use.

    Raises:
        OSError: Not enough free ports were found.
    """
    end = _ephemeral_start()
    candidates: Iterator[int] = iter(())
    if end - _FIRST_SERVER_PORT >= 1000:
        # Not the shared generator: callers seed that one, and two of them would meet on one port.
        dice = random.SystemRandom()
        candidates = (dice.randrange(_FIRST_SERVER_PORT, end) for _ in range(_PORT_TRIES + count))
    found: list[int] = []
    for port in candidates:
        if port not in found and port_is_free(port, host):
            found.append(port)
        if len(found) == count:
            return tuple(found)
    with contextlib.ExitStack() as held:
        while len(found) < count:
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.bind((host, 0))
            found.append(sock.getsockname()[1])
    return tuple(found)


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL_START


def _dying_with(parent: int, command: list[str]) -> list[str]:
    """Wrap a command so that it asks for the death signal and becomes the command, under the same pid."""
    return [
        sys.executable,
        "-ISc",
        _DIE_WITH_PARENT_PROGRAM,
        str(parent),
        str(int(signal.SIGKILL)),
        *command,
    ]


def _look(pid: int) -> tuple[str, bool] | None:
    """Return (birth, is a zombie) of the process that has this pid now.

    On Linux a process whose first thread has ended is marked as a zombie while others of its threads still
    run, or die, and hold its ports and files: such a one is no zombie yet.
    """
    if not _LINUX:
        import psutil

        try:
            process = psutil.Process(pid)
            return f"{process.create_time():.6f}", process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets and may hold anything, brackets and blanks too.
    fields = stat[stat.rindex(")") + 2 :].split()
    threads = int(fields[17])
    return f"{_boot_id()}:{fields[19]}", fields[0] in "ZX" and threads <= 1


def _boot_id() -> str:
    # Start times count from boot: without the boot's own id an old state file could name a process of today.
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextlib.contextmanager
def _pidfd(identity: ProcessIdentity) -> Iterator[int | None]:
    """Hold a descriptor of the process, where the system has them; check the identity *after* entering.

    If the pid still has the right birth after the descriptor was opened, the descriptor is of that process.
    """
    if not _LINUX:
        yield None
        return
    try:
        fd = os.pidfd_open(identity.pid)
    except OSError:
        # Gone, or a kernel without pidfd: the caller's check and the plain calls tell which.
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


class _Starter:
    """A thread that starts children and never ends before the process does."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[
            tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]
        ] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="pelton-process-starter", daemon=True).start()

    def run(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        done: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((start, done))
        return done.result()

    def _work(self) -> None:
        while True:
            start, done = self._jobs.get()
            try:
                done.set_result(start())
            except BaseException as error:
                done.set_exception(error)


_starter_lock = threading.Lock()
_the_starter: _Starter | None = None


def _starter() -> _Starter:
    global _the_starter
    with _starter_lock:
        if _the_starter is None:
            _the_starter = _Starter()
        return _the_starter


def _forget_starter() -> None:
    """A forked child has no starter thread: it makes its own."""
    global _the_starter, _starter_lock
    _the_starter = None
    _starter_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_starter)
