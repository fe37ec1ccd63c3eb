"""What an executor hears: the channel is read on a thread that never runs user code."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from pelton.protocol.frames import FrameReader, ToExecutor
from pelton.transport.channel import HEARD, ChannelTransport
from pelton_platform.executor.desk import Desk, Slots
from pelton_platform.executor.run import Run

PARENT_GONE_EXIT: Final = 4
"""Exit code when the channel ended: the coordinator is gone."""

BAD_FRAME_EXIT: Final = 5
"""Exit code when the coordinator sent something that is no frame."""

_READ_BYTES: Final = 256 * 1024
_RUN: Final = int(ToExecutor.RUN)
_CREDIT: Final = int(ToExecutor.CREDIT)


@dataclass(frozen=True, slots=True)
class Hello:
    """What the coordinator says first.

    Attributes:
        namespace, container, instance, version: where the executor belongs.
        function: name of the function.
        kind: how it is called.
        module, qualname: where it is in the bundle.
        bundle: folder of the source bundle.
        slots: attempts at the same time.
        chunk_credit: chunks a run may have unacknowledged.
        log_level: level of the root logger.
        code: SHA-256 hex of the code that the coordinator verified, "" for a function of a module.
        exchange: folder by which large payloads go to and fro, "" for none.
        workdir: working folder that the image sets, "" for that of the sources.
    """

    namespace: str
    function: str
    kind: str
    module: str
    qualname: str
    bundle: str
    slots: int
    container: str
    instance: str
    version: int
    chunk_credit: int
    log_level: str = "INFO"
    code: str = ""
    exchange: str = ""
    workdir: str = ""

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Hello:
        """Takes the settings it knows; others are for other versions of executors."""
        return cls(**{item.name: settings[item.name] for item in fields(cls) if item.name in settings})


class BrokerTime:
    """Broker time as the coordinator tells it."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000 + self.offset_ms


class Reader:
    """Reads the channel and ends the process when it ends.

    Args:
        channel: the socket.
        clock: takes the broker's clock.
    """

    def __init__(self, channel: socket.socket, clock: BrokerTime) -> None:
        self._channel = channel
        self._clock = clock
        self._frames = FrameReader()
        self._greeted = threading.Event()
        self._hello: Hello | None = None
        self._desk: Desk | None = None
        self._slots: Slots | None = None
        self._transport: ChannelTransport | None = None

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._read, name="pelton-reader", daemon=True).start()

    def hello(self) -> Hello:
        """Waits for the first record.

        Raises:
            ValueError: the first record was another one.
        """
        self._greeted.wait()
        if self._hello is None:
            raise ValueError("the channel did not begin with HELLO")
        return self._hello

    def attend(self, desk: Desk, slots: Slots, transport: ChannelTransport) -> None:
        """From now on runs and what they called may come; call it before READY is sent."""
        self._desk = desk
        self._slots = slots
        self._transport = transport

    def _read(self) -> None:
        code = PARENT_GONE_EXIT
        try:
            while data := self._channel.recv(_READ_BYTES):
                self._take(data)
        except OSError as error:
            os.write(2, f"pelton: the channel of the executor failed: {error}\n".encode())
        except BaseException as error:
            code = BAD_FRAME_EXIT
            os.write(2, f"pelton: the executor cannot read its channel: {error!r}\n".encode())
        finally:
            # Nobody is left to tell anything to, and user code must not go on alone.
            os._exit(code)

    def _take(self, data: bytes) -> None:
        runs: list[Run] = []
        for record in self._frames.feed(data):
            if record[0] == _RUN:
                runs.append(self._run(record))
                continue
            # Runs come first, so that what follows finds them.
            self._begin(runs)
            runs = []
            self._control(record)
        self._begin(runs)

    def _run(self, record: list[Any]) -> Run:
        hello = self._hello
        if hello is None or self._desk is None:
            raise ValueError("RUN before READY")
        _, run_id, call_id, attempt, delivery, deadline_ms, value = record
        run = Run(
            run_id,
            call_id,
            attempt,
            delivery,
            deadline_ms or 0,
            value,
            function=hello.function,
            instance=hello.instance,
            credit=hello.chunk_credit,
        )
        self._desk.runs[run_id] = run
        return run

    def _begin(self, runs: list[Run]) -> None:
        if runs and self._slots is not None:
            self._slots.begin(runs)

    def _control(self, record: list[Any]) -> None:
        kind = record[0]
        if kind in HEARD:
            if self._transport is not None:
                self._transport.take(record)
        elif kind == ToExecutor.UNPARK:
            run = self._find(record[1])
            if run is not None and run.place is not None:
                run.place.returned()
        elif kind == _CREDIT:
            run = self._find(record[1])
            if run is not None and self._slots is not None:
                run.acknowledged(record[2])
                self._slots.credited(run)
        elif kind == ToExecutor.INTERRUPT:
            run = self._find(record[1])
            if run is not None and self._slots is not None:
                self._slots.interrupt(run)
        elif kind == ToExecutor.CLOCK:
            self._clock.offset_ms = record[1]
        elif kind == ToExecutor.STOP:
            if self._slots is None:
                # Still loading: nothing runs that could be finished.
                os._exit(0)
            self._slots.stop()
        elif kind == ToExecutor.HELLO and self._hello is None:
            self._hello = Hello.read(record[1])
            self._greeted.set()
        else:
            raise ValueError(f"unexpected record of kind {kind!r}")

    def _find(self, run_id: int) -> Run | None:
        """The run, or None when it has ended already."""
        return None if self._desk is None else self._desk.runs.get(run_id)
