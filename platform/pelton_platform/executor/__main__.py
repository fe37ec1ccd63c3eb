"""`python -m pelton_platform.executor --fd N`: one executor, talking frames over descriptor N."""

from __future__ import annotations

import argparse
import asyncio
import atexit
import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from pelton import hooks
from pelton.client import session
from pelton.client.connection import Connection
from pelton.core.spec import FunctionKind
from pelton.errors import DefinitionError, TransportError
from pelton.protocol.frames import FromExecutor
from pelton.runtime.calling import Target
from pelton.transport.channel import ChannelTransport
from pelton_platform.executor.capture import Capture, LogQueue
from pelton_platform.executor.desk import Desk, Slots, failure_record
from pelton_platform.executor.loading import load_code, load_failure, load_function
from pelton_platform.executor.nesting import ExecutorNesting
from pelton_platform.executor.outbox import Outbox
from pelton_platform.executor.reader import BrokerTime, Hello, Reader
from pelton_platform.executor.tasks import TaskSlots
from pelton_platform.executor.threads import ThreadSlots

BROKEN_EXIT: Final = 3
"""Exit code after user code could not be loaded."""

SWITCH_INTERVAL_S: Final = 0.001
"""How long a computing thread keeps the interpreter while the reading or writing thread wants it."""


def main() -> None:
    """Runs an executor until it is stopped or its channel ends."""
    parser = argparse.ArgumentParser(prog="pelton_platform.executor", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the channel to the coordinator")
    parser.add_argument(
        "--root", default="", help="folder with the files of the image by their absolute paths"
    )
    arguments = parser.parse_args()
    shown = _show_image(arguments.root)
    channel = socket.socket(fileno=arguments.fd)
    # Programs that user code starts must not hold the channel open.
    channel.set_inheritable(False)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    faulthandler.enable()
    clock = BrokerTime()
    logs = LogQueue(clock.now_ms)
    outbox = Outbox(channel, logs)
    outbox.start()
    logs.connect(outbox.flush_logs)
    reader = Reader(channel, clock)
    reader.start()
    hello = reader.hello()
    if hello.workdir:
        hello = replace(hello, workdir=shown + hello.workdir)
    capture = Capture(logs, hello.log_level)
    capture.install()
    # Registered before user code registers anything, so it runs after all of that.
    atexit.register(_last_words, capture, outbox)
    slots, ending = _load(hello, reader, outbox, capture, channel, clock)
    outbox.post([int(FromExecutor.READY), os.getpid()])
    outbox.flush()
    slots.serve(ending)


def _show_image(root: str) -> str:
    """Shows the files of the image at their places, before there are threads; gives where those are then."""
    if root:
        # Late: few images have files.
        from pelton_platform.deploy import image_root

        try:
            image_root.enter(root)
        except OSError:
            # Doctor says so; PELTON_IMAGE_ROOT tells user code where they are.
            return root
    return ""


def _load(
    hello: Hello,
    reader: Reader,
    outbox: Outbox,
    capture: Capture,
    channel: socket.socket,
    clock: BrokerTime,
) -> tuple[Slots, Callable[[], None]]:
    """Loads user code and prepares its slots, and gives what it wants done at the end.

    Tells why and ends the process when it cannot be loaded.
    """
    kind = FunctionKind(hello.kind)
    loop = None
    transport = _transport(hello, outbox, clock)
    if kind in (FunctionKind.ASYNC, FunctionKind.ASYNC_GENERATOR):
        # Late: executors of sync functions do without it.
        from pelton.runtime import bridge

        loop = asyncio.new_event_loop()
        bridge.install(loop)
        asyncio.set_event_loop(loop)
    session.refuse(
        lambda: DefinitionError(
            f"{hello.module!r} calls a function while it is loaded; calls belong into functions, or under "
            '`if __name__ == "__main__":`'
        )
    )
    try:
        bundle = Path(hello.bundle)
        if hello.code:
            loaded = load_code(bundle, hello.function, hello.code)
        else:
            loaded = load_function(bundle, hello.module, hello.qualname)
        if hello.workdir:
            os.chdir(hello.workdir)
        hooks.start(loaded.function, loop)
        target = Target.of(hello.function, kind, loaded.function, transport.payloads, loaded.rule)
    except BaseException as error:
        outbox.post([int(FromExecutor.BROKEN), failure_record(load_failure(error))])
        _last_words(capture, outbox)
        os._exit(BROKEN_EXIT)
    desk = Desk(target, outbox, capture)
    os.register_at_fork(after_in_child=lambda: _leave(desk, channel))
    slots: Slots = ThreadSlots(desk, hello.slots) if loop is None else TaskSlots(desk, hello.slots, loop)
    nesting = ExecutorNesting(outbox, slots)
    transport.aside = nesting.aside
    _connect(desk, transport, nesting)
    reader.attend(desk, slots, transport)
    return slots, partial(hooks.stop, loaded.function, loop)


def _transport(hello: Hello, outbox: Outbox, clock: BrokerTime) -> ChannelTransport:
    """The way to the coordinator for what functions call, and for large payloads."""

    def post(record: list[Any]) -> None:
        outbox.post(record)
        outbox.nudge()

    return ChannelTransport(post, clock.now_ms, exchange=Path(hello.exchange) if hello.exchange else None)


def _connect(desk: Desk, transport: ChannelTransport, nesting: ExecutorNesting) -> None:
    """Has user code call functions by that way."""

    def opening() -> Connection:
        if desk.forked:
            raise TransportError(
                "a process that a function forked cannot call functions: only the executor itself speaks to "
                "its instance; call before the fork or after it, in the parent"
            )
        return Connection(transport, nesting)

    session.provide(opening)
    session.refuse(None)


def _leave(desk: Desk, channel: socket.socket) -> None:
    """In a child that user code forked: hands off the channel, and prints go to the plain descriptors."""
    desk.forked = True
    channel.close()
    desk.capture.leave()


def _last_words(capture: Capture, outbox: Outbox) -> None:
    capture.end()
    outbox.drain()


if __name__ == "__main__":
    main()
