"""Calls from many threads on one connection, and from processes of `multiprocessing` with one each."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from texts import shout


def lengths(text: str) -> int:
    """What a process of a pool does: it connects on its first call."""
    return len(shout(text))


def main() -> None:
    """64 threads, then processes that are forked from this one, then fresh ones."""
    with ThreadPoolExecutor(64) as threads:
        print(*sorted(set(threads.map(shout, ["a", "b"] * 320))))
    for method in ("fork", "spawn"):
        if method in multiprocessing.get_all_start_methods():
            context = multiprocessing.get_context(method)
            with ProcessPoolExecutor(2, mp_context=context) as processes:
                print(method, sum(processes.map(lengths, ["one", "three", "two"])), flush=True)
    print(shout("and the parent goes on"))


if __name__ == "__main__":
    main()
    sys.exit(0)
