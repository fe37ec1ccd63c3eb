"""Showing programs the files of an image at their absolute paths, by a mount namespace of their own."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
# The same numbers on every architecture that has been added since; these two are older.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_OLD = ".machine"
_SCRATCH = ("/tmp", "/var/tmp")  # noqa: S108 (these very folders are replaced by private ones)

VIEW = "view"
"""Beside the root: the empty folder where each process makes its own view."""


class NoNamespace(OSError):
    """This machine does not let programs have a mount namespace of their own; the message says why."""


def enter(root: str, *, machine_read_only: bool = False) -> None:
    """Lay the files of an image over those of the machine, for this process and its children alone.

    Must be called before the process has a second thread. What the image has is bound to its folder, so what
    is written there is kept; everything else is the machine's.

    Args:
        root: Folder that holds the image's files by their absolute paths; an empty folder is made beside it.
        machine_read_only: Refuse to let the machine's own files be changed; temporary folders are private.

    Raises:
        NoNamespace: The machine does not allow it; nothing was changed that others could see.
    """
    if sys.platform != "linux" or os.uname().machine not in _PIVOT_ROOT:
        raise NoNamespace(f"mount namespaces are not used on {sys.platform} {os.uname().machine}")
    root = os.path.realpath(root)
    working = os.getcwd()
    _unshare()
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    place = os.path.join(os.path.dirname(root), VIEW)
    os.makedirs(place, mode=0o700, exist_ok=True)
    _mount("tmpfs", place, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    ours = list(_lay(root, "/", place, ""))
    old = os.path.join(place, _OLD)
    os.mkdir(old)
    _check(_libc().syscall(_PIVOT_ROOT[os.uname().machine], place.encode(), old.encode()), "pivot_root")
    os.chdir("/")
    _check(_libc().umount2(f"/{_OLD}".encode(), _MNT_DETACH), "umount2")
    os.rmdir(f"/{_OLD}")
    if machine_read_only:
        _make_read_only(ours, os.path.dirname(root))
    os.chdir(working if os.path.isdir(working) else "/")


def rewritten(command: Sequence[str], root: str) -> list[str]:
    """Return a command whose absolute paths into the image lead to where its files really are."""
    return [
        root + word if word.startswith("/") and os.path.lexists(root + os.path.normpath(word)) else word
        for word in command
    ]


def reason_against() -> str:
    """Return why namespaces cannot be used here, "" when they can; tries in a process of its own."""
    import subprocess

    with tempfile.TemporaryDirectory(prefix="pelton-probe-") as folder:
        os.makedirs(os.path.join(folder, "root", "pelton-probe"))
        done = subprocess.run(
            [sys.executable, "-m", __name__, os.path.join(folder, "root"), "test", "-d", "/pelton-probe"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=30,
        )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it was refused"])[-1]


def _lay(image: str, machine: str, place: str, inside: str) -> Iterator[str]:
    """Fill a folder with what the machine has there and what the image has over it; yield the latter."""
    ours = {entry.name: entry for entry in os.scandir(image)}
    try:
        theirs = {entry.name: entry for entry in os.scandir(machine)}
    except (FileNotFoundError, NotADirectoryError):
        theirs = {}
    for name in sorted(ours.keys() | theirs.keys()):
        target = os.path.join(place, name)
        mine, other = ours.get(name), theirs.get(name)
        if mine is None:
            if other is not None:
                _bind(other.path, target)
        elif mine.is_dir(follow_symlinks=False) and other is not None and other.is_dir():
            os.mkdir(target)
            yield from _lay(mine.path, other.path, target, f"{inside}/{name}")
        else:
            _bind(mine.path, target)
            if not mine.is_symlink():
                yield f"{inside}/{name}"


def _bind(source: str, target: str) -> None:
    kind = os.lstat(source).st_mode
    if stat.S_ISLNK(kind):
        os.symlink(os.readlink(source), target)
        return
    if stat.S_ISDIR(kind):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    _mount(source, target, "", _MS_BIND | _MS_REC)


def _make_read_only(ours: Sequence[str], folder: str) -> None:
    """Protect the machine from what a build runs: only the image, its environment and scratch are written."""
    _set_attributes("/", add=_MOUNT_ATTR_RDONLY, flags=_AT_RECURSIVE)
    for scratch in _SCRATCH:
        # An image may lie in a temporary folder: then that stays what it is, and is not written to.
        if os.path.isdir(scratch) and not folder.startswith(scratch + os.sep):
            _mount("tmpfs", scratch, "tmpfs", _MS_NOSUID | _MS_NODEV)
    _mount(folder, folder, "", _MS_BIND)
    for path in (*ours, folder):
        _set_attributes(path, remove=_MOUNT_ATTR_RDONLY)


def _set_attributes(path: str, *, add: int = 0, remove: int = 0, flags: int = 0) -> None:
    words = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(words))
    done = _libc().syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, ctypes.byref(words), size)
    _check(done, f"mount_setattr {path}")


def _unshare() -> None:
    libc = _libc()
    if libc.unshare(_CLONE_NEWNS) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    _check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = _libc().mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(done, f"mount {target}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise NoNamespace(number, f"{what}: {os.strerror(number)}")


def main(arguments: list[str]) -> int:
    """Run a command in the namespace of an image: ROOT [--build] COMMAND...

    As a step of a build it cannot change the machine, and all that it started ends with it.
    """
    root, *command = arguments
    building = command[0] == "--build"
    try:
        enter(root, machine_read_only=building)
        if building:
            return _run_contained(command[1:])
    except OSError as error:
        print(f"no mount namespace: {error.strerror or error}", file=sys.stderr)
        return 1
    os.execvp(command[0], command)


def _run_contained(command: list[str]) -> int:
    """Run a command as the first process of a namespace: when it ends, all others in it do."""
    from pelton_platform import process

    _check(_libc().unshare(_CLONE_NEWPID), "unshare")
    child = os.fork()
    if child == 0:
        # The parent is outside of the namespace, where it has no number.
        process.die_with_parent(0)
        os.execvp(command[0], command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
