"""Who is bound to a keeper ends with the lease: frozen, deaf to signals, or busy in one long call."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton_platform.boottime import boot_ms
from pelton_platform.coordinator.keeper import Keeper

LOOP = "\nwhile True:\n    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10**6\n    beat(now)\n"
DEAF = (
    "\nfor number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
    "    signal.signal(number, signal.SIG_IGN)\n"
)
HELD = "\nbeat(1)\nsorted(range(10**6), key=lambda _: 0)\nimport re\nre.match(r'(a+)+$', 'a' * 60 + 'b')\n"


class Bound:
    """A process bound to a keeper, which writes the time over and over."""

    def __init__(self, keeper: Keeper, folder: Path, code: str) -> None:
        self.path = folder / f"beat{len(list(folder.iterdir()))}"
        prelude = (
            "import os, signal, time\nfrom pelton_platform.executor.bound import bind\n"
            f"kept = bind({keeper.fd})\nfile = os.open({str(self.path)!r}, os.O_WRONLY | os.O_CREAT)\n"
            "def beat(now): os.pwrite(file, b'%020d' % now, 0)\n"
        )
        self.child = subprocess.Popen([sys.executable, "-c", prelude + code], pass_fds=(keeper.fd,))
        deadline = time.monotonic() + 20
        while not self.beat:
            assert self.child.poll() is None
            assert time.monotonic() < deadline

    @property
    def beat(self) -> int:
        """When it ran last, as far as it wrote."""
        return int(self.path.read_bytes() or b"0") if self.path.exists() else 0


def wait_for_more(keeper: Keeper) -> None:
    """Waits until a keeper has done what it was told: all is read, and it waits for more."""
    deadline = time.monotonic() + 10
    unread = array("i", [1])
    while unread[0] or Path(f"/proc/{keeper.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        fcntl.ioctl(keeper._tell, termios.FIONREAD, unread)
        assert time.monotonic() < deadline


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """One that keeps nothing yet."""
    made = Keeper()
    yield made
    made.close()


@pytest.mark.parametrize("code", [LOOP, DEAF + LOOP, HELD], ids=["busy", "deaf", "holds the lock"])
def test_bound_processes_end_with_the_lease(keeper: Keeper, tmp_path: Path, code: str) -> None:
    """All of them, at the time, whatever they do; and not before it."""
    bound = [Bound(keeper, tmp_path, code) for _ in range(2)]
    ends_ms = boot_ms() + 400
    keeper.arm(ends_ms)
    for each in bound:
        assert each.child.wait(10) == -signal.SIGKILL
    assert boot_ms() >= ends_ms
    assert keeper.ended
    if code != HELD:
        assert all(each.beat <= ends_ms + 100 for each in bound)


def test_frozen_processes_do_not_go_on(keeper: Keeper, tmp_path: Path) -> None:
    """Stopped before the end of the lease, with their keeper, they never run again."""
    bound = Bound(keeper, tmp_path, LOOP)
    keeper.arm(boot_ms() + 1_000)
    wait_for_more(keeper)
    os.kill(keeper.pid, signal.SIGSTOP)
    bound.child.send_signal(signal.SIGSTOP)
    frozen_ms = boot_ms()
    assert bound.child.wait(10) == -signal.SIGKILL
    assert bound.beat <= frozen_ms + 50


def test_renewed_leases_keep_processes(keeper: Keeper, tmp_path: Path) -> None:
    """As long as the end moves on nothing happens, and without a lease neither."""
    bound = Bound(keeper, tmp_path, LOOP)
    for _ in range(10):
        keeper.arm(boot_ms() + 300)
        time.sleep(0.1)
    keeper.arm(0)
    time.sleep(0.5)
    assert bound.child.poll() is None
    assert not keeper.ended
    bound.child.kill()
    bound.child.wait(10)


def test_who_binds_too_late_ends_at_once(tmp_path: Path) -> None:
    """A keeper that is gone binds nobody any more."""
    keeper = Keeper()
    keeper.arm(1)
    while not keeper.ended:
        time.sleep(0.01)
    code = f"from pelton_platform.executor.bound import bind\nbind({keeper.fd})\nprint('goes on')"
    program = [sys.executable, "-c", code]
    ended = subprocess.run(program, pass_fds=(keeper.fd,), capture_output=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"")
    keeper.close()
